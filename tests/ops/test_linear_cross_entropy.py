"""gr::linear_cross_entropy and its two companions: against F.cross_entropy of F.linear, and what they never hold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import AotEagerAndRecordGraphs
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

import gr_compile.lowering.inductor  # noqa: F401  (registers the kernels of the CPU)
from gr_compile.lowering.cpu import kernels
from gr_compile.ops import linear_cross_entropy as operators

gr = torch.ops.gr
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True)
def _the_kernel_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(failure: object) -> None:
        raise AssertionError(failure)

    monkeypatch.setattr(kernels, "_warn_once", fail)


@pytest.fixture(params=["kernel", "reference"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GR_COMPILE_CPU_KERNELS", "1" if request.param == "kernel" else "0")
    return str(request.param)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of two tokens, so that few tokens are several blocks and a last one."""
    monkeypatch.setattr(operators, "_FEWEST_ROWS", 1)
    monkeypatch.setattr(operators, "_MOST_ROWS", 2)
    yield


@dataclass
class Case:
    """Operands: `ignored` of the tokens, at random, weigh 0 and have targets and features that must not count."""

    tokens: int
    items: int
    width: int
    bias: bool = True
    scale: float = 1.0
    ignored: float = 0.0
    dtype: torch.dtype = torch.float32
    seed: int = 0
    spread: float = 1.0

    def operands(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)

        def drawn(*shape: int) -> Tensor:
            return (torch.randn(shape, generator=generator, dtype=torch.float64) * self.spread).to(self.dtype)

        x, table = drawn(self.tokens, self.width), drawn(self.items, self.width)
        bias = drawn(self.items) if self.bias else None
        target = torch.randint(self.items, (self.tokens,), generator=generator)
        weight = torch.rand(self.tokens, generator=generator) + 0.1
        out = torch.rand(self.tokens, generator=generator) < self.ignored
        weight[out], x[out] = 0.0, math.nan
        target[out] = torch.where(torch.arange(int(out.sum())) % 2 == 0, -100, self.items + 7)
        return x, table, bias, target, weight.to(torch.float64 if self.dtype == torch.float64 else torch.float32)


def exact(x: Tensor, table: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor, scale: float) -> Tensor:
    """What each token counts, in float64, by torch's own operators."""
    kept = weight != 0
    logits = F.linear(x[kept].double(), table.double()) * scale
    logits = logits if bias is None else logits + bias.double()
    losses = F.cross_entropy(logits, target[kept], reduction="none") * weight[kept].double()
    return torch.zeros(x.shape[0], dtype=torch.float64).index_put((kept,), losses)


def near(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    """Within a few roundings of the largest."""
    size = want.abs().max().clamp(min=1).item() if want.numel() else 1.0
    torch.testing.assert_close(got.double(), want.double(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * size)


def leaves(operands: tuple[Any, ...]) -> list[Tensor]:
    return [x.requires_grad_() for x in operands[:3] if x is not None]


CASES = [
    Case(9, 37, 8),
    Case(9, 37, 8, bias=False, scale=0.3, ignored=0.4),
    Case(13, 50, 5, scale=20.0, ignored=0.3),
    Case(1, 16, 3),
    Case(6, 1, 4),
    Case(0, 5, 4),
    Case(5, 7, 3, ignored=1.0),
    Case(4, 2049, 2, bias=False),
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("small_blocks")
def test_losses_and_gradients_are_torchs(case: Case, dtype: torch.dtype, way: str) -> None:
    case = Case(**{**vars(case), "dtype": dtype})
    operands = case.operands()
    given = leaves(operands)
    want = exact(*operands, case.scale)
    factors = torch.linspace(-1.0, 2.0, case.tokens, dtype=torch.float64)
    whole, tokens = gr.linear_cross_entropy(*operands, case.scale), gr.linear_cross_entropy_tokens(*operands, case.scale)
    assert whole.dtype == tokens.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    near(whole, want.sum(), torch.float32 if dtype != torch.float64 else dtype)
    near(tokens, want, torch.float32 if dtype != torch.float64 else dtype)
    for made, wanted in ((whole * 3, want.sum() * 3), (tokens * factors, want * factors)):
        grads = torch.autograd.grad(made.sum(), given)
        for leaf, grad, other in zip(given, grads, torch.autograd.grad(wanted.sum(), given, retain_graph=True)):
            assert grad.dtype == leaf.dtype and grad.shape == leaf.shape and grad.is_contiguous()
            near(grad, other, dtype)


@settings(deadline=None, max_examples=80)
@given(
    tokens=st.integers(0, 12), items=st.integers(1, 70), width=st.integers(0, 9), bias=st.booleans(),
    ignored=st.sampled_from([0.0, 0.5, 1.0]), scale=st.floats(-3, 3), seed=st.integers(0, 99), rows=st.integers(1, 6),
)  # fmt: skip
def test_any_sizes(
    tokens: int, items: int, width: int, bias: bool, ignored: float, scale: float, seed: int, rows: int
) -> None:
    case = Case(tokens, items, width, bias, scale, ignored, seed=seed)
    operands = case.operands()
    given = leaves(operands)
    want = exact(*operands, scale).sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "_FEWEST_ROWS", 1)
        patch.setattr(operators, "_MOST_ROWS", rows)
        got = gr.linear_cross_entropy(*operands, scale)
    near(got, want, torch.float32)
    for made, wanted in zip(torch.autograd.grad(got, given), torch.autograd.grad(want, given)):
        near(made, wanted, torch.float32)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(bias: bool) -> None:
    x, table, added, target, weight = Case(5, 4, 3, bias, ignored=0.3, dtype=torch.float64, seed=3).operands()
    x = x.nan_to_num()
    leaves((x, table, added))
    for operator in (gr.linear_cross_entropy, gr.linear_cross_entropy_tokens):
        torch.autograd.gradcheck(lambda *given: operator(*given, target, weight, 0.7), (x, table, added))  # noqa: B023


@pytest.mark.parametrize("asked", list(itertools.product([True, False], repeat=3)), ids=str)
def test_only_gradients_that_are_asked_for_are_made(asked: tuple[bool, ...], way: str) -> None:
    operands = Case(5, 11, 3).operands()
    loss, *grads = gr.linear_cross_entropy_gradients(*operands, 0.5, asked)
    everything = gr.linear_cross_entropy_gradients(*operands, 0.5, [True] * 3)
    torch.testing.assert_close(loss, everything[0])
    for need, made, want in zip(asked, grads, everything[1:]):
        torch.testing.assert_close(made, want if need else want.new_empty(0))
    for tensor, need in zip(operands, asked):
        tensor.requires_grad_(need)
    for operator in (gr.linear_cross_entropy, gr.linear_cross_entropy_tokens):
        made = operator(*operands, 0.5).sum()
        assert made.requires_grad == any(asked)
        if any(asked):
            found = torch.autograd.grad(made, [x for x, need in zip(operands, asked) if need])
            for one, want in zip(found, [x for x, need in zip(everything[1:], asked) if need]):
                torch.testing.assert_close(one, want)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.t().contiguous().t() if x.dim() == 2 else x,
    "columns apart": lambda x: torch.stack([x, x], -1)[..., 0],
    "rows apart": lambda x: torch.stack([x, x], 1)[:, 0],
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("view", VIEWS)
def test_any_strides(view: str, way: str) -> None:
    operands = Case(7, 19, 6).operands()
    want = gr.linear_cross_entropy_gradients(*operands, 0.5, [True] * 3)
    got = gr.linear_cross_entropy_gradients(*map(VIEWS[view], operands), 0.5, [True] * 3)
    for made, wanted in zip(got, want):
        torch.testing.assert_close(made, wanted)


def strange(name: str) -> tuple[Tensor, ...]:
    x, table, bias, target, weight = Case(4, 21, 3, spread=0.5).operands()
    if name == "huge logits":
        x *= 1e6
    elif name == "equal huge logits":
        bias += 3e38
        x *= 0
    elif name == "items masked by -inf":
        bias[::2] = -math.inf
        target[:] = 1
    elif name == "a target of -inf":
        bias[2], target[1] = -math.inf, 2
    elif name == "all -inf":
        bias[:] = -math.inf
    elif name == "an item of +inf":
        bias[5] = math.inf
    elif name == "NaN in a token":
        x[2, 1] = math.nan
    elif name == "an infinite token":
        x[2, 1] = -math.inf
    elif name == "NaN in the table":
        table[20, 2] = math.nan
    return x, table, bias, target, weight


@pytest.mark.parametrize("name", [
    "huge logits", "equal huge logits", "items masked by -inf", "a target of -inf", "all -inf", "an item of +inf",
    "NaN in a token", "an infinite token", "NaN in the table",
])  # fmt: skip
def test_what_is_not_finite_is_as_in_eager(name: str, way: str) -> None:
    operands = strange(name)
    given = leaves(operands)
    x, table, bias, target, weight = operands
    want = F.cross_entropy(F.linear(x, table) + bias, target, reduction="none") * weight
    got = gr.linear_cross_entropy_tokens(*operands, 1.0)
    torch.testing.assert_close(got, want, equal_nan=True)
    whole = gr.linear_cross_entropy(*operands, 1.0)
    torch.testing.assert_close(whole, want.sum(), equal_nan=True)
    wanted = torch.autograd.grad(want.sum(), given)
    for made, other in zip(torch.autograd.grad(whole, given), wanted):
        torch.testing.assert_close(made, other, equal_nan=True, rtol=1e-4, atol=1e-5 * max(1.0, x.detach().abs().max().item()))


@pytest.mark.parametrize("bad", [-1, -100, 7])
def test_a_target_that_is_no_item_is_named(bad: int, way: str) -> None:
    x, table, bias, target, weight = Case(5, 7, 3).operands()
    target[3] = bad
    for operator in (gr.linear_cross_entropy, gr.linear_cross_entropy_tokens):
        with pytest.raises(IndexError, match=rf"token 3 has target {bad}, which is not in \[0, 7\)"):
            operator(x, table, bias, target, weight, 1.0)
    with pytest.raises(IndexError, match="token 3"):
        gr.linear_cross_entropy_gradients(x, table, bias, target, weight, 1.0, [True] * 3)
    weight[3] = 0
    assert gr.linear_cross_entropy(x, table, bias, target, weight, 1.0).isfinite()


X, TABLE, TARGET, WEIGHT = torch.ones(2, 3), torch.ones(4, 3), torch.zeros(2, dtype=torch.int64), torch.ones(2)


@pytest.mark.parametrize(("operands", "message"), [
    ((X.long(), TABLE, None, TARGET, WEIGHT), "x must be floating point"),
    ((torch.ones(3), TABLE, None, TARGET, WEIGHT), r"x must be \[T, D\], not \[3\]"),
    ((torch.ones(()), TABLE, None, TARGET, WEIGHT), r"x must be \[T, D\], not \[\]"),
    ((X, torch.ones(4, 3, 1), None, TARGET, WEIGHT), r"table must be \[V, D\], not \[4, 3, 1\]"),
    ((X, torch.ones(4, 5), None, TARGET, WEIGHT), r"x must be \[2, 5\], not \[2, 3\]"),
    ((X, TABLE.double(), None, TARGET, WEIGHT), "table must be torch.float32, not torch.float64"),
    ((X, TABLE, torch.ones(5), TARGET, WEIGHT), r"bias must be \[4\], not \[5\]"),
    ((X, TABLE, torch.ones(4).half(), TARGET, WEIGHT), "bias must be torch.float32"),
    ((X, TABLE, None, TARGET.int(), WEIGHT), "target must be torch.int64, not torch.int32"),
    ((X, TABLE, None, TARGET[:1], WEIGHT), r"target must be \[2\], not \[1\]"),
    ((X, TABLE, None, TARGET, WEIGHT[:, None]), r"weight must be \[2\], not \[2, 1\]"),
    ((X, TABLE, None, TARGET, WEIGHT.double()), "weight must be torch.float32, not torch.float64"),
])  # fmt: skip
def test_bad_operands(operands: tuple[Any, ...], message: str, way: str) -> None:
    for operator in (gr.linear_cross_entropy, gr.linear_cross_entropy_tokens):
        with pytest.raises(ValueError, match=message):
            operator(*operands, 1.0)
    with pytest.raises(ValueError, match=message):
        gr.linear_cross_entropy_gradients(*operands, 1.0, [True] * 3)


def test_needs_grad_tells_three() -> None:
    with pytest.raises(ValueError, match="needs_grad must tell x, table and bias"):
        gr.linear_cross_entropy_gradients(X, TABLE, None, TARGET, WEIGHT, 1.0, [True])


@pytest.mark.parametrize("operator", [gr.linear_cross_entropy, gr.linear_cross_entropy_tokens])
def test_no_second_derivative_and_none_of_weights(operator: Any) -> None:
    x, table, bias, target, weight = Case(5, 7, 3, dtype=torch.float64).operands()
    leaves((x, table, bias))
    (first,) = torch.autograd.grad(operator(x, table, bias, target, weight, 1.0).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        first.square().sum().backward()
    with pytest.raises(NotImplementedError, match="no derivative of its weights"):
        operator(x, table, bias, target, weight.requires_grad_(), 1.0).sum().backward()


def test_half_gradients_do_not_vanish_before_they_are_scaled() -> None:
    """What a loss scaler multiplies by is not known when the gradients are made: they wait in float32."""
    x, table, _, target, _ = Case(64, 40, 8, dtype=torch.float16).operands()
    leaves((x, table, None))
    loss = gr.linear_cross_entropy(x, table, None, target, torch.full((64,), 1e-9), 1.0)
    (grad,) = torch.autograd.grad(loss * 2.0**30, table)
    want = torch.autograd.grad(exact(x, table, None, target, torch.full((64,), 1e-9), 1.0).sum() * 2.0**30, table)[0]
    near(grad, want, torch.float16)


def test_autocast_does_not_reach_into_it(way: str) -> None:
    operands = Case(6, 9, 4).operands()
    want = gr.linear_cross_entropy_gradients(*operands, 1.0, [True] * 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gr.linear_cross_entropy_gradients(*operands, 1.0, [True] * 3)
    assert all(torch.equal(one, other) for one, other in zip(got, want))


def test_the_same_bits_in_every_run() -> None:
    operands = Case(300, 501, 40, ignored=0.2).operands()
    first, second = (gr.linear_cross_entropy_gradients(*operands, 1.0, [True] * 3) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second))


def test_the_softmax_gives_the_same_bits_whatever_the_threads() -> None:
    few, many = Case(100, 333, 1, ignored=0.2).operands(), Case(100_000, 3, 1).operands()
    found = []  # of width 1: the products have no order of their own
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append((gr.linear_cross_entropy_tokens(*few, 1.0), gr.linear_cross_entropy(*many, 1.0)))
    torch.set_num_threads(1)
    assert all(torch.equal(one, other) for made in found[1:] for one, other in zip(found[0], made))


class Largest(TorchDispatchMode):
    """The most elements of one storage that an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for value in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.untyped_storage().nbytes() // value.itemsize)
        return made


@pytest.mark.parametrize("operator", [gr.linear_cross_entropy, gr.linear_cross_entropy_tokens])
@pytest.mark.parametrize("items", [64, 300])
def test_all_logits_are_never_held(operator: Any, items: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "_BLOCK_BYTES", 4 * items * 40)
    calls = {"kernel": (operators_on_cpu().tokens, operators_on_cpu().gradients)}
    calls["reference"] = (operators.tokens_reference, operators.gradients_reference)
    operands = Case(400, items, 8).operands()
    tokens, gradients = calls[way]
    with Largest() as seen:
        tokens(*operands, 1.0)
        gradients(*operands, 1.0, [True] * 3)
    assert 40 * items <= seen.elements < 2 * 40 * items < 400 * items


def operators_on_cpu() -> Any:
    from gr_compile.lowering.cpu import linear_cross_entropy

    return linear_cross_entropy


def test_blocks() -> None:
    assert operators.block_rows(50_000, 4) == 671
    assert operators.block_rows(100, 4) == operators.block_rows(0, 4) == 2048
    assert operators.block_rows(100_000_000, 4) == 32


def test_opcheck() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        operands = Case(5, 7, 3, ignored=0.3, dtype=dtype).operands()
        operands = (operands[0].nan_to_num(), *operands[1:])
        leaves(operands)
        torch.library.opcheck(gr.linear_cross_entropy.default, (*operands, 0.5))
        torch.library.opcheck(gr.linear_cross_entropy_tokens.default, (*operands, 0.5))
    empty = Case(0, 7, 3, bias=False).operands()
    torch.library.opcheck(gr.linear_cross_entropy.default, (*empty, 0.5))
    plain = tuple(None if x is None else x.detach() for x in operands)
    torch.library.opcheck(
        gr.linear_cross_entropy_gradients.default, (*plain, 0.5, [True, False, True]),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


def test_the_fake_takes_a_number_of_tokens_that_is_not_known() -> None:
    shapes = ShapeEnv()
    with FakeTensorMode(shape_env=shapes):
        tokens = shapes.create_unbacked_symint()
        x, table = torch.empty(tokens, 8), torch.empty(50, 8)
        target, weight = torch.empty(tokens, dtype=torch.int64), torch.empty(tokens)
        assert gr.linear_cross_entropy(x, table, None, target, weight, 1.0).shape == ()
        assert gr.linear_cross_entropy_tokens(x, table, None, target, weight, 1.0).shape[0] is not None
        made = gr.linear_cross_entropy_gradients(x, table, None, target, weight, 1.0, [True, True, True])
        assert [one.dim() for one in made] == [0, 2, 2, 1]
        assert made[2].shape == (50, 8) and made[3].shape == (0,)


def mean(x: Tensor, table: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    counted = target != -100
    return gr.linear_cross_entropy(x, table, bias, target, counted / counted.sum(), 0.7).sin()


def each(x: Tensor, table: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    losses = gr.linear_cross_entropy_tokens(x, table, bias, target, (target != -100).to(x.dtype), 0.7)
    return (losses * losses).mean()


@pytest.mark.parametrize("loss", [mean, each])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_in_training_and_inference_with_any_number_of_tokens(loss: Callable[..., Tensor], backend: str) -> None:
    torch._dynamo.reset()
    fast = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    for tokens in (6, 9, 2):
        x, table, bias, target, weight = Case(tokens, 23, 4, ignored=0.3, seed=tokens).operands()
        target[weight == 0] = -100
        given = leaves((x, table, bias))
        want, got = loss(x, table, bias, target), fast(x, table, bias, target)
        torch.testing.assert_close(got, want)
        for made, wanted in zip(torch.autograd.grad(got, given), torch.autograd.grad(want, given)):
            torch.testing.assert_close(made, wanted)
        with torch.no_grad():
            torch.testing.assert_close(fast(x, table, bias, target), want.detach())


def graphs(loss: Callable[..., Tensor], training: bool, needs: tuple[bool, ...]) -> tuple[list[Any], list[Any]]:
    """The operators gr::* of the forward and of the backward graph."""
    torch._dynamo.reset()
    backend = AotEagerAndRecordGraphs()
    x, table, bias, target, _ = Case(6, 23, 4).operands()
    for tensor, need in zip((x, table, bias), needs):
        tensor.requires_grad_(need)
    with torch.set_grad_enabled(training):
        made = torch.compile(loss, fullgraph=True, backend=backend)(x, table, bias, target)
    if training:
        made.backward()
    found = []
    for traced in (backend.fw_graphs, backend.bw_graphs):
        assert all(
            value.numel() < 6 * 23 for graph in traced for node in graph.graph.nodes
            if isinstance(value := node.meta.get("val"), Tensor)
        )  # fmt: skip
        found.append([
            (node.target, *node.args[6:]) for graph in traced for node in graph.graph.nodes
            if str(node.target).startswith("gr.")
        ])  # fmt: skip
    return found[0], found[1]


def test_which_operators_a_compiled_graph_holds() -> None:
    whole, gradients, tokens = (
        getattr(gr, f"linear_cross_entropy{x}").default for x in ("", "_gradients", "_tokens")
    )
    assert graphs(mean, False, (True,) * 3) == ([(whole,)], [])
    assert graphs(mean, True, (True,) * 3) == ([(gradients, [True] * 3)], [])
    assert graphs(mean, True, (False, True, False)) == ([(gradients, [False, True, False])], [])
    assert graphs(each, False, (True,) * 3) == ([(tokens,)], [])
    assert graphs(each, True, (True, False, True)) == ([(tokens,)], [(gradients, [True, False, True])])
