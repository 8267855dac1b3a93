"""Seeds: operators take their random numbers from a tensor, which a graph draws anew in every call."""

from __future__ import annotations

import torch
import torch.fx as fx

from gr_compile.editor import GraphEditor


def new_seed(editor: GraphEditor, device: torch.device) -> fx.Node:
    """int64, a scalar. What is computed again in the backward of a checkpoint uses the same one."""
    with editor.at():
        seed: fx.Node = editor.call(torch.ops.aten.randint.low, 0, 2**62, [], dtype=torch.int64, device=device)
    for key in ("recompute", "ac_graph_id"):
        seed.meta.pop(key, None)
    return seed
