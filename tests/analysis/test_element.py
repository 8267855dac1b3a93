"""The pull: one element of a value as an expression that gives what torch computed, at every index."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import Body, Captured, at
from torch import Tensor

from gr_compile.analysis.element import Blocked
from gr_compile.analysis.expr import Expr, walk


def place(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1])


def distance(ids: Tensor) -> Tensor:
    return place(ids)[:, None] - place(ids)[None]


def toeplitz(m: Any, ids: Tensor) -> Tensor:
    """The pad-repeat-reshape-slice trick of relative positions."""
    n = ids.shape[1]
    table = F.pad(m.bias[: 2 * n - 1], (0, n)).repeat(n)
    shifted = table[..., :-n].reshape(1, n, 3 * n - 2)
    r = (2 * n - 1) // 2
    return shifted[..., r:-r]


def written(x: Tensor, write: Any, lead: bool = True) -> Tensor:
    """A copy of `x` that was written to; with `lead` a batch dimension is put in front."""
    x = x.clone()
    write(x)
    return x[None] if lead else x


PAIRS: dict[str, Body] = {
    "causal by tril": lambda m, ids, *_: torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None],
    "causal by triu": lambda m, ids, *_: ~torch.triu(torch.ones(ids.shape[1], ids.shape[1]), diagonal=1).bool()[None],
    "causal by comparison": lambda m, ids, *_: (place(ids)[:, None] >= place(ids)[None])[None],
    "causal by a buffer": lambda m, ids, *_: m.causal[: ids.shape[1], : ids.shape[1]][None],
    "a diagonal": lambda m, ids, *_: torch.eye(ids.shape[1])[None],
    "a window": lambda m, ids, *_: ((distance(ids) <= 2) & (distance(ids) > -2))[None],
    "keys": lambda m, ids, *_: (ids != 0)[:, None, :].expand(-1, ids.shape[1], -1),
    "queries": lambda m, ids, *_: (ids != 0)[:, :, None].expand(-1, -1, ids.shape[1]),
    "both by a product": lambda m, ids, lengths, mask, *_: mask.float()[:, :, None] * mask.float()[:, None, :],
    "keys by lengths": lambda m, ids, lengths, *_: (place(ids) < lengths[:, None])[:, None] & (distance(ids) >= 0),
    "keys by lengths from the left": lambda m, ids, lengths, *_: (place(ids) >= ids.shape[1] - lengths[:, None])[:, None]
    & (distance(ids) >= 0),
    "additive": lambda m, ids, lengths, mask, *_: ((1.0 - mask.float()) * -1e4)[:, None, :] + 0.0 * distance(ids),
    "additive infinity": lambda m, ids, *_: torch.zeros(1, ids.shape[1], ids.shape[1]).masked_fill(
        distance(ids) < 0, float("-inf")),
    "finfo.min": lambda m, ids, *_: torch.where(distance(ids) >= 0, 0.0, torch.finfo(torch.float32).min)[None],
    "position bias": lambda m, ids, *_: m.bias[distance(ids) + 12][None],
    "position bias by index_select": lambda m, ids, *_: torch.index_select(
        m.bias, 0, (distance(ids) + 12).view(-1)).view(1, ids.shape[1], ids.shape[1]),
    "position bias by a Toeplitz trick": lambda m, ids, *_: toeplitz(m, ids),
    "position bias clamped": lambda m, ids, *_: m.bias[distance(ids).clamp(-3, 3) + 3][None],
    "differences of timestamps": lambda m, ids, *_: ids[:, :, None] - ids[:, None, :],
    "logarithmic buckets": lambda m, ids, *_: (torch.log((ids[:, :, None] - ids[:, None, :]).abs().clamp(min=1).float())
                                               / 0.301).long(),
    "bias by buckets": lambda m, ids, *_: m.bias[(ids[:, :, None] - ids[:, None, :]).abs() // 3],
    "next timestamps": lambda m, ids, *_: torch.cat([ids, ids[:, -1:]], 1)[:, 1:, None] - ids[:, None, :],
    "shifted by a roll": lambda m, ids, *_: torch.roll(ids, 1, 1)[:, :, None] - ids[:, None, :],
    "reversed": lambda m, ids, *_: ids.flip(1)[:, :, None] - ids[:, None, :],
    "float of a difference": lambda m, ids, *_: (ids[:, :, None] - ids[:, None, :]).float() * 0.1,
    "difference of floats": lambda m, ids, *_: ids.float()[:, :, None] * 0.1 - ids.float()[:, None, :] * 0.1,
    "alibi": lambda m, ids, *_: -0.25 * distance(ids).abs().float()[None],
    "remainders": lambda m, ids, *_: (distance(ids) % 3 + distance(ids).div(2, rounding_mode="floor"))[None],
    "truncated quotients": lambda m, ids, *_: distance(ids).div(2, rounding_mode="trunc")[None],
    "same session": lambda m, ids, *_: (ids // 4)[:, :, None] == (ids // 4)[:, None, :],
    "a given table": lambda m, ids, lengths, mask, x, p: p * 2.0,
    "a given table, transposed": lambda m, ids, lengths, mask, x, p: p.mT + 0.0 * distance(ids),
    # 0.3125 is exact in bf16: torch rounds other factors before or after the product, depending on the kernel
    "half precision": lambda m, ids, *_: ((distance(ids) * 201).to(torch.bfloat16) * 0.3125).float()[None],
    "stacked and selected": lambda m, ids, *_: torch.stack([distance(ids), distance(ids) * 2], -1)[..., 1][None],
    "floored quotients of floats": lambda m, ids, *_: distance(ids).float() // 0.1 + (ids[:, :1, None] * 0.1) // 0.3,
    "logarithm to base 2": lambda m, ids, *_: torch.log2(distance(ids).abs() + 1.0)[None],
    "decay by the reciprocal": lambda m, ids, *_: (1 / (1 + distance(ids).abs().float()))[None],
    "square, sign and ceil": lambda m, ids, *_: ((distance(ids) / 2).ceil().square() * distance(ids).sign())[None],
    "leaky": lambda m, ids, *_: F.leaky_relu(distance(ids).float(), 0.3)[None],
    "softplus": lambda m, ids, *_: F.softplus(distance(ids).float())[None],
    "a mask of 8 bits": lambda m, ids, *_: (1 - (distance(ids) > 0).to(torch.uint8)).float()[None],
    "a slice written": lambda m, ids, *_: written(distance(ids), lambda x: x[:, 1:].fill_(7)),
    "a slice written up to the end": lambda m, ids, *_: written(distance(ids), lambda x: x[:-2].mul_(3)),
    "a slice beyond the end written": lambda m, ids, *_: written(distance(ids), lambda x: x[2:100].neg_()),
    "every second place written": lambda m, ids, *_: written(distance(ids), lambda x: x[1::2].add_(40)),
    "a row and a column written": lambda m, ids, *_: written(
        distance(ids), lambda x: (x[0].copy_(place(ids)), x[:, -1].fill_(2))),
    "the diagonal written": lambda m, ids, *_: written(
        ids[:, :, None] - ids[:, None, :], lambda x: torch.diagonal(x, dim1=1, dim2=2).zero_(), lead=False),
    "beside the diagonal written": lambda m, ids, *_: written(
        distance(ids), lambda x: (x.diagonal(1).copy_(place(ids)[1:] * 9), x.diagonal(-2).fill_(5))),
    "a mask written": lambda m, ids, *_: written(distance(ids), lambda x: x.__setitem__(x > 1, -3)),
    "a mask of rows written": lambda m, ids, *_: written(
        ids[:, :, None] - ids[:, None, :], lambda x: x.__setitem__(ids == 0, 11), lead=False),
    "rounded by what it is written to": lambda m, ids, *_: written(
        distance(ids), lambda x: x[1:].copy_(distance(ids)[1:] * 0.7)),
    "the diagonal filled": lambda m, ids, *_: written(distance(ids), lambda x: x.fill_diagonal_(9)),
    "both by an outer product": lambda m, ids, lengths, mask, *_: torch.bmm(mask.float()[:, :, None], mask.float()[:, None]),
    "both by an einsum": lambda m, ids, lengths, mask, *_: torch.einsum("bi,bj->bij", mask.float(), mask.float()),
    "elu": lambda m, ids, *_: F.elu(distance(ids).float(), 0.7)[None],
    "hardtanh": lambda m, ids, *_: (F.hardtanh(distance(ids).float(), -2, 3) + F.relu6(distance(ids).float() * 2))[None],
    "a decay by distance": lambda m, ids, *_: (0.9 ** distance(ids).float())[None],
    "the last places": lambda m, ids, *_: torch.cat([distance(ids), distance(ids) * 3])[None, -ids.shape[1] :],
    "the last half": lambda m, ids, *_: torch.cat([distance(ids)[-(ids.shape[1] // 2) :], distance(ids) * 3])[None],
    "the last hundred of fewer": lambda m, ids, *_: distance(ids)[None, -100:],
    "up to the last hundred but one, of fewer": lambda m, ids, *_: torch.cat([distance(ids) * 3, distance(ids)[-100:-1]])[None],
    "a place from the end": lambda m, ids, *_: ids[:, -ids.shape[1]][:, None, None] + distance(ids),
    "the last places written": lambda m, ids, *_: written(
        distance(ids), lambda x: x[-(ids.shape[1] // 2) :].copy_(distance(ids)[: ids.shape[1] // 2] * 3)),
    "the last hundred of fewer written": lambda m, ids, *_: written(
        distance(ids), lambda x: x[-100:].copy_(distance(ids) * 3)),
    "a place from the end written": lambda m, ids, *_: written(distance(ids), lambda x: x[-ids.shape[1]].fill_(7)),
    "farther than a quarter": lambda m, ids, *_: (distance(ids) >= ids.shape[1] // 4)[None],
    "padded": lambda m, ids, *_: F.pad(distance(ids), (1, 1))[:, :-2][None],
}  # fmt: skip


@pytest.mark.parametrize("case", PAIRS)
def test_values_over_pairs_of_places(case: str) -> None:
    made = Captured(lambda *arguments: (PAIRS[case](*arguments), arguments[1] + 0))
    node = made.outputs[0]
    for name, extent in zip("bij", made.pull.shape(node)):
        made.pull.bind(name, extent)
    made.pull.forget(("i", "j"))
    expr = made.pull.element(node, at("b", "i", "j"))
    value = made.values[node]
    found = made.evaluate(expr, made.grid(b=value.shape[0], i=value.shape[1], j=value.shape[2])).expand(value.shape)
    assert torch.equal(found.to(value.dtype), value), f"{case}: {expr}"
    assert reads_no_pair(made, expr) or "given" in case


def reads_no_pair(made: Captured, expr: Expr) -> bool:
    """Nothing with both places stays a load of a computed tensor."""
    nodes = {node.name: node for node in made.graph_module.graph.nodes}
    loads = [p for p in walk(expr) if p.op == "load" and nodes[p.args[0]].op == "call_function"]
    return not any({"i", "j"} <= p.free and len(p.args[1]) > 1 for p in loads)


@pytest.mark.parametrize(("count", "n"), [(5, 5), (2, 2), (3, 1), (1, 4)])
@pytest.mark.parametrize("case", ["keys by lengths", "next timestamps", "position bias by index_select", "shifted by a roll"])
def test_colliding_and_small_sizes(case: str, count: int, n: int) -> None:
    made = Captured(lambda *arguments: (PAIRS[case](*arguments), arguments[1] + 0), count, n, [n] * count)
    node = made.outputs[0]
    for name, extent in zip("bij", made.pull.shape(node)):
        made.pull.bind(name, extent)
    made.pull.forget(("i", "j"))
    value = made.values[node]
    expr = made.pull.element(node, at("b", "i", "j"))
    found = made.evaluate(expr, made.grid(b=value.shape[0], i=n, j=n)).expand(value.shape)
    assert torch.equal(found.to(value.dtype), value)


BLOCKED: dict[str, tuple[Body, str]] = {
    "a cumulative sum over pairs": (lambda m, ids, lengths, mask, x, p: p.cumsum(-1), "cumsum"),
    "a write of many values by a mask": (lambda m, ids, *_: written(
        distance(ids) * 1.0, lambda x: x.__setitem__(x >= 0, (distance(ids) >= 0).sum().float().expand(15))), "index_put"),
    "a sort over pairs": (lambda m, ids, lengths, mask, x, p: p.sort(-1)[0], "sort"),
    "a convolution over pairs": (
        lambda m, ids, lengths, mask, x, p: F.conv2d(p[:, None], torch.ones(1, 1, 3, 3), padding=1)[:, 0], "conv"),
    "an inverse": (lambda m, ids, lengths, mask, x, p: torch.linalg.matrix_exp(p), "exp"),
    "a strided write beside the diagonal": (lambda m, ids, *_: written(
        distance(ids), lambda x: x.as_strided((2,), (3,)).fill_(7)), "as_strided_scatter"),
    "NaN of anything but a softmax": (lambda m, ids, lengths, mask, x, p: torch.nan_to_num(p), "nan_to_num"),
    "an elu with a scale": (lambda m, ids, lengths, mask, x, p: torch.selu(p), "selu"),
    "a softplus of its own": (lambda m, ids, lengths, mask, x, p: F.softplus(p, beta=3.0), "softplus with a beta"),
    "a softplus, linear early": (lambda m, ids, lengths, mask, x, p: F.softplus(p, threshold=1.0), "softplus with a beta"),
    "a cast that cuts off": (lambda m, ids, *_: (distance(ids)[None] * ids[:, :1, None]).to(torch.int8), "int8 arith"),
    "a sum that wraps around": (
        lambda m, ids, *_: (distance(ids) > 0).to(torch.uint8)[None] - (ids[:, :, None] > 0).to(torch.uint8), "uint8 arith"),
}  # fmt: skip


@pytest.mark.parametrize("case", BLOCKED)
def test_what_has_no_rule_over_pairs_blocks_and_names_the_operation(case: str) -> None:
    body, operation = BLOCKED[case]
    made = Captured(lambda *arguments: (body(*arguments), arguments[1] + 0))
    made.pull.forget(("i", "j"))
    with pytest.raises(Blocked) as blocked:
        made.pull.element(made.outputs[0], at("b", "i", "j"))
    assert blocked.value.node is not None and operation in str(blocked.value.node.target) + str(blocked.value)


def test_a_one_sided_opaque_value_stays_a_column() -> None:
    made = Captured(lambda m, ids, *_: ids.cumsum(1)[:, :, None] - ids[:, None, :])
    made.pull.forget(("i", "j"))
    expr = made.pull.element(made.outputs[0], at("b", "i", "j"))
    assert {p.args[0] for p in walk(expr) if p.op == "load"} >= {made.call("cumsum").name}


def test_arithmetic_keeps_the_models_order_and_dtypes() -> None:
    """log(x) / 0.301 is no multiplication by 3.322, and float(a) - float(b) is no float(a - b)."""
    made = Captured(lambda m, ids, *_: (torch.log(ids[:, :, None].float() + 1.0) / 0.301 + 0.0 * distance(ids),
                                        ids.float()[:, :, None] - ids.float()[:, None]))  # fmt: skip
    made.pull.forget(("i", "j"))
    first, second = (made.pull.element(node, at("b", "i", "j")) for node in made.outputs)
    assert any(p.op == "div" for p in walk(first))
    assert second.op == "sub" and all(p.op in ("cast", "load") for p in second.args)


def test_a_buffer_is_read_by_content_only_where_nothing_writes_it() -> None:
    made = Captured(lambda m, ids, *_: m.causal[: ids.shape[1], : ids.shape[1]][None] & (ids != 0)[:, None])
    made.pull.forget(("i", "j"))
    expr = made.pull.element(made.outputs[0], at("b", "i", "j"))
    assert not any("causal" in str(p.args[0]) for p in walk(expr) if p.op == "load")
    assert len(made.constants.used) == 1
    made.constants.tensors = {}
    made.pull.forget(("i", "j"))
    expr = made.pull.element(made.outputs[0], at("b", "i", "j"))
    assert any("causal" in str(p.args[0]) for p in walk(expr) if p.op == "load")


def test_a_buffer_without_a_closed_form_is_no_part_of_the_guard() -> None:
    made = Captured(lambda m, ids, *_: m.noise[: ids.shape[1], : ids.shape[1]][None] + ids[:, None].float())
    made.pull.forget(("i", "j"))
    made.pull.element(made.outputs[0], at("b", "i", "j"))
    assert not made.constants.used


def test_parameters_and_what_depends_on_them_are_not_closed() -> None:
    made = Captured(lambda m, ids, *_: (m.items(ids) + 1, ids != 0, m.steps + ids.shape[1], F.dropout(ids.float(), 0.5)))
    assert [made.pull.closed(node) for node in made.outputs] == [False, True, True, False]
