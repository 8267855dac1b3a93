"""fuse-token-operators: which spellings become which operators, what stays and why, numbers and gradients of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pass_bench import PassBench
from torch import Tensor, nn

import gr_compile.model_zoo as zoo
from gr_compile.pipeline import Pipeline

TOKEN = "fuse-token-operators"
ALONE = f"canonicalize,{TOKEN}"
D = 8


class Layer(nn.Module):
    """`body(layer, x, u)` of tokens x, u [T, D], with what layers have: weights of D features and a linear to 4 D."""

    def __init__(self, body: Callable[[Any, Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = body
        self.w, self.b = nn.Parameter(torch.randn(D)), nn.Parameter(torch.randn(D))
        self.scale, self.shift = nn.Parameter(torch.ones(1)), nn.Parameter(torch.randn(D) / 4)
        self.linear = nn.Linear(D, 4 * D)
        self.layer_norm, self.rms_norm = nn.LayerNorm(D, eps=1e-6), nn.RMSNorm(D, eps=1e-6)

    def forward(self, x: Tensor, u: Tensor) -> Any:
        return self.body(self, x + self.shift, u)


def batch(*lead: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return tuple(torch.randn(*lead, D, dtype=dtype).requires_grad_() for _ in range(2))


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def sliced(x: Tensor) -> list[Tensor]:
    return [x[..., :3], x.narrow(-1, 3, 7), x[..., 10:30], x[..., 30:]]


def first_activated(x: Tensor) -> tuple[Tensor, ...]:
    u, v, q, k = x.split([5, 11, 10, 6], -1)
    return F.silu(u) * 2, v + 1, q * k.sum(-1, keepdim=True)


NORMS = {
    "layer norm, then u": (lambda m, x, u: F.layer_norm(x, [D]) * u, "norm_gate"),
    "u, then a layer norm with weights": (lambda m, x, u: u * m.layer_norm(x), "norm_gate"),
    "native layer norm": (lambda m, x, u: torch.native_layer_norm(x, [D], m.w, m.b, 1e-5)[0] * u, "norm_gate"),
    "weights behind the norm": (lambda m, x, u: (F.layer_norm(x, [D]) * m.w + m.b) * u, "norm_gate"),
    "rms norm, then u": (lambda m, x, u: m.rms_norm(x) * u, "norm_gate"),
    "rms norm without weights": (lambda m, x, u: F.rms_norm(x, [D]), "rms_norm"),
    "by hand": (lambda m, x, u: rms(x) * m.w, "rms_norm"),
    "by hand, without weights": (lambda m, x, u: rms(x), "rms_norm"),
    "by hand, the weight first": (lambda m, x, u: m.w * (torch.rsqrt(1e-6 + (x * x).mean((-1,), True)) * x), "rms_norm"),
    "by hand, divided": (lambda m, x, u: x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6), "rms_norm"),
    "by hand, powers": (lambda m, x, u: x * (x**2).mean(-1, True).add(1e-6).pow(-0.5) * m.w, "rms_norm"),
    "by hand, reciprocal": (lambda m, x, u: x * (x * x).mean(-1, True).add(1e-6).sqrt().reciprocal(), "rms_norm"),
    "by hand, a bias behind": (lambda m, x, u: rms(x) * m.w + m.b, "rms_norm"),
    "by hand, weight, bias and u": (lambda m, x, u: u * (rms(x) * m.w + m.b), "norm_gate"),
    "of what is centered": (lambda m, x, u: rms(x - x.mean(-1, keepdim=True)) * u, "norm_gate"),
    "dropout behind": (lambda m, x, u: F.dropout(u * m.layer_norm(x), 0.3, False), "norm_gate"),
}
SPLITS = {
    "silu, then a split": lambda m, x, u: F.silu(m.linear(x)).split([5, 11, 10, 6], -1),
    "by hand, then chunks": lambda m, x, u: silu(m.linear(x)).chunk(4, -1),
    "then slices": lambda m, x, u: sliced(F.silu(m.linear(x))),
    "then equal parts": lambda m, x, u: torch.split(F.silu(m.linear(x)), 8, dim=-1),
    "u alone": lambda m, x, u: first_activated(m.linear(x)),
    "two by hand": lambda m, x, u: [silu(p) if k % 2 else p * 2 for k, p in enumerate(m.linear(x).chunk(4, -1))],
    "no linear": lambda m, x, u: F.silu(torch.cat([x, u], -1)).split([4, 4, 4, 4], -1),
}


def fired(bench: PassBench, *names: str) -> None:
    """The operators are there, the numbers are eager's, and a second run finds nothing."""
    after = bench.operators_after(TOKEN)
    assert [after[name] for name in ("norm_gate", "rms_norm", "silu_split")] == [
        names.count(name) for name in ("norm_gate", "rms_norm", "silu_split")
    ]
    assert len(bench.matches(TOKEN)) == len(names)
    bench.assert_parity()
    assert not next(record for record in bench.run_again() if record.name == TOKEN).matches


@pytest.mark.parametrize("spelling", NORMS)
def test_norms_fire(spelling: str) -> None:
    body, name = NORMS[spelling]
    bench = PassBench(Layer(body), [batch(5)], ALONE)
    fired(bench, name)
    left = bench.operators_after(TOKEN)
    assert not {"rms_norm", "layer_norm", "native_layer_norm", "rsqrt", "sqrt", "pow", "square"} & (set(left) - {name})


@pytest.mark.parametrize("spelling", SPLITS)
def test_splits_fire(spelling: str) -> None:
    bench = PassBench(Layer(SPLITS[spelling]), [batch(2, 3)], ALONE)
    fired(bench, "silu_split")
    left = bench.operators_after(TOKEN)
    assert not {"silu", "sigmoid", "split", "split_with_sizes", "chunk", "slice"} & set(left)


def test_a_norm_in_float32_of_halves_is_the_operator_that_computes_so() -> None:
    def body(m: Any, x: Tensor, u: Tensor) -> Tensor:
        return u * (m.w * rms(x.float()).to(x.dtype))

    bench = PassBench(Layer(body).bfloat16(), [batch(5, dtype=torch.bfloat16)], ALONE)
    assert [str(match.detail) for match in bench.matches(TOKEN)] == ["gr::norm_gate"]
    left = bench.operators_after(TOKEN)
    assert left["norm_gate"] == 1 and not {"to", "_to_copy"} & set(left)
    bench.assert_parity(scale=1e3)


MISSES = {
    "normalised value is read elsewhere": (lambda m, x, u: (n := F.layer_norm(x, [D])) * u + n, "* u + n"),
    "a value inside the norm is read elsewhere": (
        lambda m, x, u: (x * (s := torch.rsqrt(x.pow(2).mean(-1, True) + 1e-6))) * s.exp(), "s.exp()",
    ),
    "not over the last dimension": (lambda m, x, u: x * torch.rsqrt(x.pow(2).mean(0, True) + 1e-6), "mean(0, True)"),
    "eps is a tensor": (lambda m, x, u: x * torch.rsqrt(x.pow(2).mean(-1, True) + m.scale.abs()), "m.scale.abs()"),
    "over several dimensions": (lambda m, x, u: F.layer_norm(x, [2, D]) * u, "[2, D]"),
    "several dtypes": (lambda m, x, u: F.rms_norm(x.half(), [D], m.w, 1e-6), "x.half()"),
    "float64": (lambda m, x, u: F.layer_norm(x.double(), [D]) * u.double(), "x.double()"),
    "not along the features": (lambda m, x, u: F.silu(x).chunk(4, 0), "chunk(4, 0)"),
    "a split in 2": (lambda m, x, u: F.silu(m.linear(x)).chunk(2, -1), "chunk(2, -1)"),
    "what is split is read elsewhere": (lambda m, x, u: ((s := F.silu(m.linear(x))).chunk(4, -1), s.sum()), "s.sum()"),
}  # fmt: skip


@pytest.mark.parametrize("reason", MISSES)
def test_it_says_why_not_and_where(reason: str) -> None:
    body, line = MISSES[reason]
    bench = PassBench(Layer(body), [batch(4, 2)], ALONE)
    bench.assert_misses(TOKEN, reason, line)
    assert not bench.matches(TOKEN)


QUIET = {
    "a layer norm without a gate": lambda m, x, u: F.layer_norm(x, [D]) + u,
    "a gate of another shape": lambda m, x, u: F.layer_norm(x, [D]) * u[:1],
    "its own square": lambda m, x, u: F.layer_norm(x, [D]).square(),
    "itself as the gate": lambda m, x, u: (n := F.layer_norm(x, [D])) * n,
    "another scale": lambda m, x, u: x * torch.rsqrt(u.pow(2).mean(-1, True) + 1e-6),
    "a split without silu": lambda m, x, u: m.linear(x).chunk(4, -1),
    "silu without a split": lambda m, x, u: F.silu(m.linear(x)),
    "slices that leave something out": lambda m, x, u: ((s := F.silu(m.linear(x)))[..., :3], s[..., 4:]),
    "slices that overlap": lambda m, x, u: ((s := F.silu(m.linear(x)))[..., :5], s[..., 4:]),
}


@pytest.mark.parametrize("case", QUIET)
def test_what_is_no_candidate_needs_no_word(case: str) -> None:
    bench = PassBench(Layer(QUIET[case]), [batch(4)], ALONE)
    assert not bench.matches(TOKEN) and not bench.misses(TOKEN)
    bench.assert_parity()


def test_a_norm_that_is_read_elsewhere_may_still_be_one_operator() -> None:
    bench = PassBench(Layer(lambda m, x, u: (n := rms(x) * m.w) * u + n), [batch(5)], ALONE)
    bench.assert_misses(TOKEN, "normalised value is read elsewhere", "* u + n")
    fired(bench, "rms_norm")


# ------------------------------------------------------------------------------------------------ models
def test_presets_take_it_for_ascend_alone_and_names_take_it_or_leave_it() -> None:
    def names(passes: str, target: str = "") -> list[str]:
        return [item.name for item in Pipeline.parse(passes, target).passes]

    for preset in ("default", "all"):
        assert TOKEN in names(preset, "ascend") and TOKEN not in names(preset, "inductor")
        assert [name for name in names(preset, "ascend") if name != TOKEN] == names(preset)
    assert TOKEN not in names("default,-fuse-token-operators", "ascend") + names("bitwise", "ascend")
    assert names(f"default,{TOKEN}", "inductor")[-1] == TOKEN and names("canonicalize", "ascend") == ["canonicalize"]


MODELS = {
    "hstu": (zoo.HSTU, zoo.HSTUConfig, ("item_ids", "timestamps"), ("norm_gate", "silu_split")),
    "stu": (zoo.STU, zoo.STUConfig, ("item_ids", "timestamps", "lengths"), ("norm_gate", "silu_split")),
    "fuxi": (zoo.FuXi, zoo.FuXiConfig, ("item_ids", "timestamps"), ("norm_gate", "rms_norm", "rms_norm", "silu_split")),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "fuxi" else pytest.mark.slow) for n in MODELS])
def test_it_fires_in_the_zoo(name: str) -> None:
    make, config, arguments, operators = MODELS[name]
    ids = torch.tensor([[3, 1, 0, 0], [5, 6, 7, 8], [9, 0, 0, 0]])
    given = {"item_ids": ids, "timestamps": ids * 1000, "lengths": torch.tensor([2, 4, 1])}
    torch.manual_seed(0)
    model = make(config(num_items=20, max_seq_len=6, embedding_dim=8, num_layers=1, dropout=0.0))
    bench = PassBench(model, [tuple(given[one] for one in arguments)], f"default,{TOKEN}")
    fired(bench, *operators)
    assert not bench.misses(TOKEN)


# --------------------------------------------------------------------------------------------- any of them
STEPS = {
    "layer_norm": lambda m, x, u: m.layer_norm(x), "bare": lambda m, x, u: F.layer_norm(x, [D]),
    "rms": lambda m, x, u: rms(x), "own_rms": lambda m, x, u: m.rms_norm(x), "weight": lambda m, x, u: x * m.w,
    "bias": lambda m, x, u: x + m.b, "gate": lambda m, x, u: u * x, "residual": lambda m, x, u: x + u,
    "activation": lambda m, x, u: silu(x), "scale": lambda m, x, u: x * 0.5, "self": lambda m, x, u: x * x,
    "parts": lambda m, x, u: torch.cat(F.silu(x).chunk(4, -1)[::-1], -1), "double": lambda m, x, u: x * x.sigmoid() + x,
}  # fmt: skip


@settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6), st.booleans())
def test_any_chain_of_steps_keeps_its_numbers(steps: list[str], joined: bool) -> None:
    def body(m: Any, x: Tensor, u: Tensor) -> Any:
        seen = [x]
        for step in steps:
            seen.append(STEPS[step](m, seen[-1], u))
        return sum(seen) if joined else seen[-1]

    torch._dynamo.reset()
    bench = PassBench(Layer(body), [batch(3)], ALONE, dynamic=False)
    bench.assert_parity(scale=10)
    assert not next(record for record in bench.run_again() if record.name == TOKEN).matches
