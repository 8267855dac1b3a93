"""fuse-sampled-logits: no row of the catalogue is kept for a logit.

    before   rows = embedding(table, ids)                         [T, R, D]
             logits = einsum("td,trd->tr", state, rows)           or bmm, matmul, (state * rows).sum(-1), cosine
    after    logits = gr.sampled_logits(state, table, ids)        a row is read where its logit is made

    before   loss = cross_entropy(linear(state, table), target)   logits [T, V]
    after    loss = gr.linear_cross_entropy(state, table, ...)    logits of a block of tokens at a time
"""

from gr_compile.passes.fuse_sampled_logits.rewrite import FuseSampledLogits

__all__ = ["FuseSampledLogits"]
