"""hoist-scale: multiply by a number in front of a matmul that widens, not behind it.

    before   y = linear(x, W); z = y / 0.05          x: [T, D], y and z: [T, V], V much larger than D
    after    y = x / 0.05;     z = linear(y, W)

The scale touches D values a token instead of V. Rounding changes, nothing else: numerics "reassociates".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.fx as fx

from gr_compile import Match, Miss, Pass, PassContext, PassResult

aten = torch.ops.aten
SCALES = (aten.mul.Tensor, aten.div.Tensor)


@dataclass(frozen=True)
class HoistScale(Pass):
    """Scale the input of a widening linear, not its output.

    Attributes:
        min_widening: least ratio of the linear's output features to its input features
    """

    min_widening: float = 2.0

    name: ClassVar[str] = "hoist-scale"
    after: ClassVar[frozenset[str]] = frozenset({"canonicalize"})
    numerics: ClassVar[Any] = "reassociates"

    def __post_init__(self) -> None:
        if self.min_widening < 1:
            raise ValueError(f"min_widening={self.min_widening}: at least 1")

    def run(self, graph_module: fx.GraphModule, context: PassContext) -> PassResult:
        """Look at every linear whose result is multiplied or divided by a number."""
        matches: list[Match] = []
        misses: list[Miss] = []
        for scale in list(graph_module.graph.nodes):
            if not is_scaled_linear(scale):
                continue
            miss = self.blocked(scale)
            if miss is not None:
                misses.append(miss)
                continue
            what = f"scale of {scale.args[0].name}"
            if context.allow(what, scale):
                hoist(scale, context)
                matches.append(Match(what, scale, detail=f"by {scale.args[1]}"))
        return PassResult(bool(matches), tuple(matches), tuple(misses))

    def blocked(self, scale: fx.Node) -> Miss | None:
        """Why this one stays as it is; None where nothing blocks."""
        linear: Any = scale.args[0]
        others = [user for user in linear.users if user is not scale]
        if others:
            return Miss("the linear's unscaled result is read, too", others[0])
        if len(linear.args) > 2 and linear.args[2] is not None:
            return Miss(
                "the linear adds a bias, which is scaled, too",
                linear,
                hint="bias=False, where it is not needed",
            )
        wide, narrow = linear.meta["val"].shape[-1], linear.args[0].meta["val"].shape[-1]
        if not isinstance(wide, int) or not isinstance(narrow, int):
            return Miss("the linear's widths are known at run time only", linear)
        if wide < self.min_widening * narrow:
            return Miss(
                f"{narrow} features become {wide}: less than min-widening", linear,
                hint=f"hoist-scale{{min-widening={max(wide / narrow, 1):g}}} moves it all the same",
            )  # fmt: skip
        return None


def is_scaled_linear(node: fx.Node) -> bool:
    """node = linear(...) * number, or / number."""
    if node.target not in SCALES or node.kwargs or isinstance(node.args[1], fx.Node):
        return False
    return isinstance(node.args[0], fx.Node) and node.args[0].target is aten.linear.default


def hoist(scale: fx.Node, context: PassContext) -> None:
    """Make the new nodes where the old linear stands, as the user's line that wrote the scale."""
    editor, linear = context.editor, scale.args[0]
    assert isinstance(linear, fx.Node)
    with editor.at(before=linear, like=scale):
        scaled = editor.call(scale.target, linear.args[0], scale.args[1])  # type: ignore[arg-type]
        made = editor.call(aten.linear.default, scaled, linear.args[1])
    editor.replace(scale, made)
    editor.erase(scale)
    editor.erase(linear)
