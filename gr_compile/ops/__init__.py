"""The jagged operators `gr::*`: schema, exact fake, reference in plain torch, and autograd formula.

Importing this package registers them; call them as `torch.ops.gr.pack(...)`, and so on.
"""

from gr_compile.ops import (
    distinct,
    dropout_share,
    jagged_attention,
    linear_cross_entropy,
    lookup,
    norms,
    other_tokens,
    pack,
    places,
    quantize,
    sampled_logits,
    segmented_logits,
    silu_split,
    stored_rows,
)
from gr_compile.ops.score_program import ScoreProgram

__all__ = [
    "ScoreProgram",
    "distinct",
    "dropout_share",
    "jagged_attention",
    "linear_cross_entropy",
    "lookup",
    "norms",
    "other_tokens",
    "pack",
    "places",
    "quantize",
    "sampled_logits",
    "segmented_logits",
    "silu_split",
    "stored_rows",
]
