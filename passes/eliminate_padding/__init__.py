"""eliminate-padding: token-wise work on packed tokens instead of padded places.

    before   x: [B, N, D] = embedding(ids); y = linear(x); loss = cross_entropy(y.view(B * N, V), t.view(B * N))
    after    index = nonzero(keep); x: [T, D] = embedding(pack(ids)); y = linear(x); loss = cross_entropy(y, pack(t))

`keep` is computed from the data: the union of all places that something reads, closed under attention
(gr_compile/analysis/demand.py). Attention itself stays dense here, between `gr::unpack` and `gr::pack`.

Values that a model keeps jagged between operators that pad and unpad them are spelled as padded ones first (jagged.py).
"""

from __future__ import annotations

from gr_compile.passes.eliminate_padding.rewrite import EliminatePadding

__all__ = ["EliminatePadding"]
