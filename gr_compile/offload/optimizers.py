"""Optimizers of tables in files: of a step they see lookups, and update the rows that were looked up.

The gradient of such a table is never made. It is a sum over lookups, grad[t, r] * query[t] for each row ids[t, r];
backwards leave those three, and a step sums them segment by segment while the rows are in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gr_compile.offload.stored import Rule, StoredTable, stored_table


class _RowOptimizer(torch.optim.Optimizer):
    """Steps over one table, which takes no gradient from now on.

    lr may be changed between steps, as learning rate schedules do. Rows of no lookup do not change, the padding row
    neither. What is recorded and not used is dropped by zero_grad(); backwards between two steps add up.

    Raises:
        ValueError: the table lies in no file, or another optimizer has it.
        PermissionError: its file was opened to be read only.
    """

    def __init__(self, table: nn.Embedding, defaults: dict[str, Any], deferred: bool) -> None:
        self.table, self.stored, self.deferred = table.weight, _stored(table), deferred
        if self.stored.collects:
            raise ValueError("the table has an optimizer already")
        self.table.requires_grad_(False)
        super().__init__([self.table], defaults)
        self.stored.collects = True
        module: Any = table
        module.register_state_dict_pre_hook(_flush_first)
        module.register_load_state_dict_pre_hook(_flush_first)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop what backwards have recorded since the last step."""
        self.stored.forget_recorded()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the rows that were looked up since the last step, and forget the lookups.

        Raises:
            RuntimeError: no backward went by the table since the last step.
            TableFileError: the file is short or cannot be written; some rows may be new, some old.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        if not self.stored.backwards:
            raise RuntimeError(
                "no backward has recorded lookups of the table: its loss goes through gr_compile.optimize with the "
                "pass offload-negatives (explain says why the pass left it), and something else of the loss takes a "
                "gradient"
            )
        if not self.stored.recorded:
            self.stored.forget_recorded()
        else:
            self.stored.update(self.table, self._rule(self.param_groups[0]), self.deferred)
        return loss

    def _rule(self, group: dict[str, Any]) -> Rule:
        raise NotImplementedError


class SGD(_RowOptimizer):
    """row -= lr * gradient, for the rows of `table` that were looked up.

    `deferred`: a step writes nothing at once; the next forward updates each segment when it reads it, which saves one
    reading of the table a step. Until then the file is a step behind: `offload.flush` before anything else reads it.
    """

    def __init__(self, table: nn.Embedding, lr: float, deferred: bool = False) -> None:
        _check(lr=lr)
        super().__init__(table, {"lr": lr}, deferred)

    def _rule(self, group: dict[str, Any]) -> Rule:
        return Rule(float(group["lr"]))


class RowwiseAdagrad(_RowOptimizer):
    """Adagrad with one sum of squares a row, as FBGEMM's EXACT_ROWWISE_ADAGRAD has it.

        sum[row] += mean(gradient ** 2);  row -= lr * gradient / (sqrt(sum[row]) + eps)

    The sums, [rows] float32, are in memory, and in state_dict(). `deferred`: see SGD.
    """

    def __init__(self, table: nn.Embedding, lr: float, eps: float = 1e-8, deferred: bool = False) -> None:
        _check(lr=lr, eps=eps)
        super().__init__(table, {"lr": lr, "eps": eps}, deferred)
        self.state[self.table]["sum"] = torch.zeros(self.table.shape[0], dtype=torch.float32)

    def _rule(self, group: dict[str, Any]) -> Rule:
        sums: Tensor = self.state[self.table]["sum"]
        return Rule(float(group["lr"]), float(group["eps"]), sums)

    def state_dict(self) -> dict[str, Any]:
        """As torch's; a step that is deferred is taken first, and so the sums are of the file's rows."""
        self.stored.flush()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would round the sums to the table's dtype. ValueError: they are of another table."""
        sums = state_dict["state"][0]["sum"]
        if sums.shape != self.table.shape[:1]:
            found, rows = list(sums.shape), self.table.shape[0]
            raise ValueError(f"the sums of another table: {found}, and the table has {rows} rows")
        super().load_state_dict(state_dict)
        self.state[self.table]["sum"] = sums.to("cpu", torch.float32, copy=True)


def _flush_first(table: nn.Module, *_: Any) -> None:
    """What reads or writes all of the weight finds no deferred step."""
    stored = stored_table(table.get_parameter("weight"))
    if stored is not None:
        stored.flush()


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be finite and not negative, not {value}")


def _stored(table: nn.Embedding) -> StoredTable:
    found = stored_table(table.weight)
    if found is None:
        raise ValueError("the table lies in no file: offload.move or offload.attach it first")
    if not found.file.writable:
        raise PermissionError(f"{found.file.path} was opened to be read only, and an optimizer writes")
    return found
