"""The row that a packed value holds at padded places: its token-wise program, run on one row of known constants."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis.pad_rows import PadRows
from gr_compile.passes.eliminate_padding.packed import Packer

aten = torch.ops.aten


class RowPacker(Packer):
    """A Packer whose only token is a padded one."""

    def __init__(self, packer: Packer, rows: PadRows) -> None:
        super().__init__(packer.editor, packer.layout, packer.packable, packer.index)
        self.rows = rows

    def packed(self, node: fx.Node) -> fx.Node:
        """[1, *rest]: what `node` holds at every padded place."""
        if node not in self._packed:
            with self.editor.at(like=node):
                fill = self.rows.constant(node)
                self._packed[node] = self._compute(node) if fill is None else self._constant(node, fill)
        return self._packed[node]

    def _constant(self, node: fx.Node, fill: float) -> fx.Node:
        value = node.meta["val"]
        made: fx.Node = self.editor.call(
            aten.full.default, [1, *self._shape(node)], typed(fill, node), dtype=value.dtype, device=value.device
        )
        return made


def typed(fill: float, node: fx.Node) -> Any:
    """A number of the node's own kind: bool, int or float."""
    dtype = node.meta["val"].dtype
    return bool(fill) if dtype == torch.bool else fill if dtype.is_floating_point else int(fill)
