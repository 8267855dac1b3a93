"""The jagged operators `gr::*`: schema, exact fake, reference in plain torch, and autograd formula.

Importing this package registers them; call them as `torch.ops.gr.pack(...)`, and so on.
"""

from gr_compile.ops import (
    dropout_share,
    jagged_attention,
    linear_cross_entropy,
    lookup,
    norms,
    other_tokens,
    pack,
    places,
    sampled_logits,
    segmented_logits,
    silu_split,
)
from gr_compile.ops.score_program import ScoreProgram

__all__ = [
    "ScoreProgram",
    "dropout_share",
    "jagged_attention",
    "linear_cross_entropy",
    "lookup",
    "norms",
    "other_tokens",
    "pack",
    "places",
    "sampled_logits",
    "segmented_logits",
    "silu_split",
]
