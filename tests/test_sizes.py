"""Symbolic sizes: exact divisions, and what a flattened loss says of the sizes of its inputs."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch._dynamo.source import ConstantSource, TensorProperty, TensorPropertySource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.functions import FloorDiv

from gr_compile.sizes import settle_flattened_sizes, simplified


@pytest.mark.parametrize(
    ("expression", "expected"),
    [("FloorDiv(s*t, t)", "s"), ("FloorDiv(s, 2)", "FloorDiv(s, 2)"), ("FloorDiv(4*s*s + 2*s, 2*s)", "2*s + 1")],
)
def test_exact_divisions_are_carried_out(expression: str, expected: str) -> None:
    s, t = sympy.symbols("s t", positive=True, integer=True)
    table = {"FloorDiv": FloorDiv, "s": s, "t": t}
    assert simplified(sympy.sympify(expression, table)) == sympy.sympify(expected, table)


def size(shape_env: ShapeEnv, name: str, dim: int, value: int) -> torch.SymInt:
    source = TensorPropertySource(ConstantSource(name), TensorProperty.SIZE, dim)
    symbol = shape_env.create_symbol(value, source, dynamic_dim=DimDynamic.DYNAMIC)
    made: torch.SymInt = shape_env.create_symintnode(symbol, hint=value, source=source)
    return made


@pytest.mark.parametrize(
    ("first", "second", "settled"),
    [((5, 7), (5, 7), True), ((6, 6), (6, 6), True), ((4, 6), (3, 8), False), ((2, 6), (6, 2), False)],
)
def test_sizes_of_a_flattened_product_are_settled_dimension_by_dimension(
    first: tuple[int, int], second: tuple[int, int], settled: bool
) -> None:
    shape_env = ShapeEnv()
    ids, targets = ([size(shape_env, name, d, v) for d, v in enumerate(s)] for name, s in (("i", first), ("t", second)))
    assert ids[0] * ids[1] == targets[0] * targets[1]
    settle_flattened_sizes(shape_env)
    assert [a.node.expr == b.node.expr for a, b in zip(ids, targets)] == [settled, settled]
    assert ids[0].node.expr != ids[1].node.expr


def test_a_fixed_batch_size_is_no_obstacle() -> None:
    shape_env = ShapeEnv()
    ids, targets = size(shape_env, "i", 1, 7), size(shape_env, "t", 1, 7)
    assert 16 * ids == 16 * targets
    settle_flattened_sizes(shape_env)
    assert ids.node.expr == targets.node.expr
