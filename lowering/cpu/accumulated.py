"""The gradient that a table has accumulated, taken so that a backward adds to it in place.

    usual:  new = zeros [V, D];  new[ids] += ...;  autograd: table.grad += new
    here:   new = table.grad;  table.grad = None;  new[ids] += ...;  autograd: table.grad = new, which is not copied

Sums are the same: whatever else autograd sums for the table, before or after, it adds to `new`. What could make a
difference leaves the usual way (`take_gradient`), but two things. Until autograd has all that it sums for the table,
the table has no gradient, so that a hook of something else that reads `table.grad` in the middle of a backward finds
None. And where a backward fails in that time, what was accumulated is gone, and a warning says so; the usual way would
keep it, beside gradients of other parameters that hold a part of the failed backward.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

import torch
import torch._dynamo.compiled_autograd as compiled_autograd
from torch import Tensor
from torch.autograd import Variable
from torch.autograd.graph import get_gradient_edge


def take_gradient(table: Tensor) -> Tensor | None:
    """What `table` has accumulated, now the caller's alone to add to and to return; None where it has to stay.

    The caller knows that what it returns goes into the table's `.grad`, alone or in a sum, if the table is a leaf
    (gr_compile.ops.leaves). It stays there

    - unless the table is a leaf, contiguous, that autograd will accumulate into before this backward ends: not
      under torch.autograd.grad, nor where `inputs=` of a backward leaves it out;
    - where the gradient is not as a fresh one would be: another dtype or layout, a view, a tensor with a history or
      of a subclass, memory that processes share;
    - where somebody else holds the gradient or its memory, and would see it change or miss it;
    - where hooks of the table would be given old and new together, or anomaly mode would look for NaN in them;
    - where another thread is in a backward, which may be adding to the same gradient;
    - under compiled autograd, which has read `.grad` before.
    """
    if not _is_plain(table) or _is_watched(table) or _holders(table) != _holders_of_a_fresh_gradient():
        return None
    if not _will_accumulate(table):
        return None
    grad, table.grad = table.grad, None
    Variable._execution_engine.queue_callback(_End(table))
    return grad


class _End:
    """Called when the backward has ended well; a backward that fails drops it uncalled, and then it warns."""

    def __init__(self, table: Tensor) -> None:
        self.table: Tensor | None = table

    def __call__(self) -> None:
        self.table = None

    def __del__(self) -> None:
        if self.table is not None and self.table.grad is None:
            warnings.warn(
                f"a backward failed, and what a table {list(self.table.shape)} had accumulated in .grad before it is "
                f"gone: set all gradients to None (optimizer.zero_grad()) and accumulate anew",
                RuntimeWarning,
                stacklevel=1,
            )


def _is_plain(table: Tensor) -> bool:
    """Whether this is a contiguous leaf with a gradient that a first backward could have left there."""
    if not (table.is_leaf and table.requires_grad and table.is_contiguous()):
        return False
    grad = table.grad
    if type(grad) is not Tensor or grad.layout != torch.strided or grad.requires_grad or grad._is_view():
        return False
    if (grad.dtype, grad.device, grad.shape) != (table.dtype, table.device, table.shape):
        return False
    return grad.is_contiguous() and not grad.is_shared()  # type: ignore[no-untyped-call]


def _is_watched(table: Tensor) -> bool:
    hooks: Any = (table._backward_hooks, table._post_accumulate_grad_hooks)
    if any(hooks) or torch.is_anomaly_enabled() or compiled_autograd.in_compiled_autograd_region:
        return True
    return _is_in_a_backward_elsewhere()


def _is_in_a_backward_elsewhere() -> bool:
    engine = torch.autograd.graph._engine_run_backward.__code__
    frames = sys._current_frames()
    frames.pop(threading.get_ident(), None)  # one's own frame in its own variable would be held by a cycle, and hold
    return any(engine in _codes(frame) for frame in frames.values())


def _codes(frame: FrameType | None) -> Iterator[CodeType]:
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def _holders(table: Tensor) -> tuple[int, ...]:
    """How often the gradient and its memory are held, each as a Python object and in C++."""
    grad: Any = table.grad
    memory = grad.untyped_storage()
    in_cpp = torch._C._storage_Use_Count(memory._cdata)
    return sys.getrefcount(grad), grad._use_count(), sys.getrefcount(memory), in_cpp


def _holders_of_a_fresh_gradient() -> tuple[int, ...]:
    """The same where nobody else holds it: what counts as a holder is Python's and torch's matter."""
    table = torch.zeros(1, requires_grad=True)
    table.grad = torch.zeros(1)
    return _holders(table)


def _will_accumulate(table: Tensor) -> bool:
    """Whether the backward that runs in this thread will accumulate into the leaf, with nothing hooked to that."""
    if torch._C._current_graph_task_id() == -1:
        return False
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False):
        node: Any = get_gradient_edge(table).node  # asks autograd, which a kernel runs below
    try:
        return bool(torch._C._will_engine_execute_node(node)) and not _has_hooks(node)
    except RuntimeError:  # a leaf of torch.autograd.grad
        return False


def _has_hooks(node: Any) -> bool:
    """Whether a node has hooks: they are told by those that one more hook finds beside itself."""
    for register in (node.register_prehook, node.register_hook):
        handle = register(lambda *grads: None)
        beside = handle.hooks_dict_ref()
        handle.remove()
        if beside:
            return True
    return False
