"""share-logits: the negative logits of other tokens are further negatives of a token, without lookups or products.

    before   z [T, 1 + R]: the target's logit and those of R negatives     loss of log_softmax(z)[:, 0]
    after    z' = cat([z, shared_1, ..., shared_{k-1}])                    the same loss of z'
             shared_i[t] = z[s_i(t), 1:], or -inf where that negative is t's own target

s_i(t) is the token i places behind t in a random cycle of the T tokens, drawn anew in every step. Intra-batch logit
sharing of TurboGR (arXiv 2605.13433); docs/losses.md has the mathematics. The loss changes: on by name only.
"""

from gr_compile.passes.share_logits.rewrite import ShareLogits

__all__ = ["ShareLogits"]
