"""Whether what a derivative returns for an operand goes into the `.grad` of a leaf, and nowhere else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensor


def goes_into_leaf(operand: Tensor) -> bool:
    """Asked where an operator's derivative is set up: is autograd's edge from `operand` that of a leaf?

    Then the operator's gradient reaches the leaf as it is, alone or in a sum. It does not where the operand is made of
    the leaf, even if it is equal to it, as the result of a function that scales gradients is.

    While AOTAutograd traces a graph, the graph's inputs stand for leaves: what the graph returns as an input's gradient
    autograd hands on as it is. They are functional tensors whose history is a node that only marks them
    (torch::autograd::Error, of `_mirror_autograd_meta_to`). Whether such an input is a leaf is for the run to say.
    """
    if not operand.requires_grad:
        return False
    if isinstance(operand, FunctionalTensor):
        node, functions = operand.grad_fn, torch._C._functions
        error: Any = functions.Error  # type: ignore[attr-defined]
        return isinstance(node, error) and not node.next_functions
    return operand.is_leaf
