"""A table's accumulated gradient is added to in place where nobody can tell; every other case goes the usual way."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch._dynamo.compiled_autograd as compiled_autograd
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import get_gradient_edge, save_on_cpu
from torch.utils.checkpoint import checkpoint

import gr_compile
import gr_compile.lowering.inductor
from gr_compile.lowering.cpu import sampled_logits as kernels

ROWS, WIDTH, TOKENS = 12, 16, 6
IDS = torch.tensor([[0, 3], [3, 5], [7, 7], [11, 0], [2, 3], [1, 10]])
Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture
def taken() -> Iterator[list[bool]]:
    """Whether the gradient was taken, for each backward of the operator that asked."""
    found: list[bool] = []
    take = kernels.take_gradient

    def watch(table: Tensor) -> Tensor | None:
        gradient = take(table)
        found.append(gradient is not None)
        return gradient

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "take_gradient", watch)
        yield found


def query() -> Tensor:
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def table_with_gradient(dtype: torch.dtype = torch.float32) -> nn.Parameter:
    generator = torch.Generator().manual_seed(2)
    table = nn.Parameter(torch.randn(ROWS, WIDTH, generator=generator).to(dtype))
    table.grad = torch.randn(ROWS, WIDTH, generator=generator).to(dtype)
    return table


def logits(query: Tensor, table: Tensor) -> Tensor:
    made: Tensor = torch.ops.gr.sampled_logits(query, table, IDS, None, None, -1)
    return made


def loss(query: Tensor, table: Tensor) -> Tensor:
    return logits(query, table).square().sum()


def plain(query: Tensor, table: Tensor) -> Tensor:
    return (table[IDS] * query.unsqueeze(-2)).sum(-1).square().sum()


def expected(of: Loss = plain, table: nn.Parameter | None = None, times: int = 1) -> Tensor:
    """The gradient after backward, from what the table has."""
    table = table_with_gradient() if table is None else table
    assert table.grad is not None
    leaf = table.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(of(query(), leaf), leaf)
    return table.grad.detach() + times * grad


def check(table: Tensor, want: Tensor, taken: list[bool], was: bool | list[bool]) -> None:
    assert table.grad is not None
    torch.testing.assert_close(table.grad, want, rtol=1e-5, atol=1e-5)
    assert taken == (was if isinstance(was, list) else [was])


# ----------------------------------------------------------------------------------------------- taken
@pytest.mark.parametrize("compiled", [False, True])
def test_rows_are_added_in_place_and_autograd_takes_the_result_over(compiled: bool, taken: list[bool]) -> None:
    torch._dynamo.reset()
    table, of = table_with_gradient(), torch.compile(loss, fullgraph=True) if compiled else loss
    want, where = expected(times=3), table.grad.data_ptr()
    for _ in range(3):
        of(query(), table).backward()
        assert table.grad.data_ptr() == where
    check(table, want, taken, [True] * 3)
    assert not table.grad._is_view() and table.grad.is_contiguous() and type(table.grad) is Tensor


@pytest.mark.parametrize("compiled", [False, True])
def test_after_a_first_backward_without_a_gradient(compiled: bool, taken: list[bool]) -> None:
    torch._dynamo.reset()
    table, of = table_with_gradient(), torch.compile(loss, fullgraph=True) if compiled else loss
    table.grad = None
    of(query(), table).backward()
    want = 2 * table.grad.clone()
    of(query(), table).backward()
    check(table, want, taken, [False, True])


def test_models_that_gr_compile_compiles_accumulate_in_place(taken: list[bool]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = table_with_gradient()

        def forward(self, query: Tensor) -> Tensor:
            return loss(query, self.table)

    torch._dynamo.reset()
    model = Model()
    fast, want, where = gr_compile.optimize(model), expected(times=2), model.table.grad.data_ptr()
    for _ in range(2):
        fast(query()).backward()
    check(model.table, want, taken, [True, True])
    assert model.table.grad.data_ptr() == where


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_bits_are_those_of_the_usual_way(dtype: torch.dtype, taken: list[bool]) -> None:
    table, other = table_with_gradient(dtype), table_with_gradient(dtype)
    holder = other.grad
    loss(query(), table).backward()
    loss(query(), other).backward()
    assert taken == [True, False] and holder is other.grad
    assert torch.equal(table.grad, other.grad)


def test_retained_graphs_add_twice(taken: list[bool]) -> None:
    table = table_with_gradient()
    want = expected(times=2)
    made = loss(query(), table)
    made.backward(retain_graph=True)
    made.backward()
    check(table, want, taken, [True, True])


@pytest.mark.parametrize("compiled", [False, True])
def test_other_uses_of_the_table_are_summed_with_it(compiled: bool, taken: list[bool]) -> None:
    def several(of: Loss) -> Loss:
        return lambda q, t: of(q, t) + t[2].sum() + of(2 * q, t) + t.square().sum()

    torch._dynamo.reset()
    table, want = table_with_gradient(), expected(several(plain))
    made = several(loss)
    (torch.compile(made, fullgraph=True) if compiled else made)(query(), table).backward()
    check(table, want, taken, [True, False])  # the second finds none


def test_a_backward_inside_the_backward_adds_what_it_has() -> None:
    class Nested(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            assert table.grad is None  # the outer one has it, and waits for this node
            with torch.enable_grad():
                loss(query(), table).backward()
            return grad

    table = table_with_gradient()
    want = expected(times=2) + 1
    (Nested.apply(table).sum() + loss(query(), table)).backward()
    torch.testing.assert_close(table.grad, want, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------ near misses: the leaf, the gradient
class Scaled(Function):
    """The table itself, with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -3 * grad


MADE_OF_THE_LEAF: dict[str, Callable[[Tensor], Tensor]] = {
    "a function with a gradient of its own": Scaled.apply,
    "a view": lambda table: table.view(ROWS, WIDTH),
    "a product": lambda table: table * 1,
    "rows": lambda table: table[:],
}


@pytest.mark.parametrize("made", MADE_OF_THE_LEAF)
@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_made_of_a_leaf_is_none(made: str, compiled: bool) -> None:
    torch._dynamo.reset()
    table = table_with_gradient()

    def of(loss: Loss) -> Loss:
        return lambda q, t: loss(q, MADE_OF_THE_LEAF[made](t))

    want = expected(of(plain))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "take_gradient", lambda table: pytest.fail("asked for a gradient that is not the leaf's"))
        (torch.compile(of(loss)) if compiled else of(loss))(query(), table).backward()
    torch.testing.assert_close(table.grad, want, rtol=1e-5, atol=1e-5)


def test_a_region_that_is_compiled_by_itself_has_no_leaves(taken: list[bool]) -> None:
    torch._dynamo.reset()
    region = torch.compiler.nested_compile_region(loss)
    table, want = table_with_gradient(), expected(lambda q, t: plain(q, Scaled.apply(t)))
    torch.compile(lambda q, t: region(q, Scaled.apply(t)), fullgraph=True)(query(), table).backward()
    assert not taken
    torch.testing.assert_close(table.grad, want, rtol=1e-5, atol=1e-5)


def transposed(table: nn.Parameter) -> None:
    table.data = table.data.t().contiguous().t()


def in_other_memory(make: Callable[[Tensor], Tensor]) -> Callable[[nn.Parameter], None]:
    def change(table: nn.Parameter) -> None:
        assert table.grad is not None
        table.grad = make(table.grad)

    return change


def with_history(grad: Tensor) -> Tensor:
    return grad.clone().requires_grad_()


class Tagged(Tensor):
    pass


ODD: dict[str, Callable[[nn.Parameter], object]] = {
    "a table that is not contiguous": transposed,
    "a gradient that is not contiguous": in_other_memory(lambda x: x.t().contiguous().t()),
    "a part of a gradient of all": in_other_memory(lambda x: torch.cat([x, x])[:ROWS]),
    "a view of flat memory": in_other_memory(lambda x: x.clone().flatten().view(ROWS, WIDTH)),
    "a gradient that has one": in_other_memory(with_history),
    "a subclass": in_other_memory(lambda x: x.clone().as_subclass(Tagged)),
    "memory of several processes": in_other_memory(lambda x: x.clone().share_memory_()),
    "a sparse gradient": in_other_memory(lambda x: x.to_sparse()),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_table_or_gradient_goes_the_usual_way(odd: str, taken: list[bool]) -> None:
    table = table_with_gradient()
    want = expected()
    ODD[odd](table)
    loss(query(), table).backward()
    grad = table.grad.detach()
    assert taken == [False]
    grad = grad.to_dense() if grad.is_sparse else grad
    torch.testing.assert_close(grad.as_subclass(Tensor), want, rtol=1e-5, atol=1e-5)


def test_a_gradient_of_another_dtype(taken: list[bool]) -> None:
    table, want = table_with_gradient(), expected().double()
    table.grad = None
    table.grad_dtype = torch.float64  # type: ignore[assignment]
    table.grad = expected_start().double()
    loss(query(), table).backward()
    check(table, want, taken, False)


def expected_start() -> Tensor:
    start = table_with_gradient().grad
    assert start is not None
    return start


HOLDERS: dict[str, Callable[[Tensor], object]] = {
    "the tensor": lambda grad: grad,
    "another tensor of its memory": lambda grad: grad.detach(),
    "a view": lambda grad: grad[1:],
    "its memory": lambda grad: grad.untyped_storage(),
    "its memory with a dtype": lambda grad: grad.storage(),
    "an array": lambda grad: grad.numpy(),
    "a graph that saved it": lambda grad: torch.ones((), requires_grad=True) * grad,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_gradient_that_somebody_holds_stays(holder: str, taken: list[bool]) -> None:
    table, want = table_with_gradient(), expected()
    held = HOLDERS[holder](table.grad)
    where = table.grad.data_ptr()
    loss(query(), table).backward()
    check(table, want, taken, False)
    assert table.grad.data_ptr() == where and held is not None


# ---------------------------------------------------------------------------------- near misses: the backward
def test_autograd_grad_leaves_it_alone(taken: list[bool]) -> None:
    table = table_with_gradient()
    before = expected_start()
    (found,) = torch.autograd.grad(loss(query(), table), table)
    check(table, before, taken, False)
    torch.testing.assert_close(found, expected() - before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_backward_that_leaves_the_table_out(compiled: bool, taken: list[bool]) -> None:
    torch._dynamo.reset()
    table, q = table_with_gradient(), query().requires_grad_()
    (torch.compile(loss) if compiled else loss)(q, table).backward(inputs=[q])
    check(table, expected_start(), taken, False)
    assert q.grad is not None


def test_a_backward_for_the_table_alone(taken: list[bool]) -> None:
    table, want = table_with_gradient(), expected()
    loss(query(), table).backward(inputs=[table])
    check(table, want, taken, True)


def test_the_operator_outside_of_a_backward(taken: list[bool]) -> None:
    table = table_with_gradient()
    torch.ops.gr.sampled_logits_backward(
        torch.ones(TOKENS, 2), query(), table, IDS, None, None, -1, True, False, True
    )
    check(table, expected_start(), taken, False)


def test_create_graph_goes_the_usual_way(taken: list[bool]) -> None:
    table, want = table_with_gradient(), expected()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss(query(), table).backward(create_graph=True)
    torch.testing.assert_close(table.grad.detach(), want, rtol=1e-5, atol=1e-5)
    assert not taken
    table.grad = None  # or table and gradient hold each other


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant: bool, taken: list[bool]) -> None:
    table, want = table_with_gradient(), expected()
    checkpoint(loss, query().requires_grad_(), table, use_reentrant=reentrant).backward()
    torch.testing.assert_close(table.grad, want, rtol=1e-5, atol=1e-5)


def test_saved_tensors_elsewhere(taken: list[bool]) -> None:
    table, want = table_with_gradient(), expected()
    with save_on_cpu():
        made = loss(query(), table)
    made.backward()
    check(table, want, taken, False)


def test_anomaly_mode(taken: list[bool]) -> None:
    table, want = table_with_gradient(), expected()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly():
            loss(query(), table).backward()
    check(table, want, taken, False)


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_compiled_autograd(compiler: str, taken: list[bool]) -> None:
    torch._dynamo.reset()
    table, want = table_with_gradient(), expected(times=2)
    region: AbstractContextManager[Any] = compiled_autograd._enable(torch.compile(backend=compiler))
    with region:
        for _ in range(2):
            torch.compile(loss)(query(), table).backward()
    torch.testing.assert_close(table.grad, want, rtol=1e-5, atol=1e-5)
    assert not any(taken)


def hook_of_tensor(table: nn.Parameter, see: Callable[[Tensor], object]) -> object:
    return table.register_hook(see)


def hook_after(table: nn.Parameter, see: Callable[[Tensor], object]) -> object:
    return table.register_post_accumulate_grad_hook(lambda leaf: see(leaf.grad))


def hook_before_the_node(table: nn.Parameter, see: Callable[[Tensor], object]) -> object:
    return get_gradient_edge(table).node.register_prehook(lambda grads: see(grads[0]))


def hook_behind_the_node(table: nn.Parameter, see: Callable[[Tensor], object]) -> object:
    return get_gradient_edge(table).node.register_hook(lambda given, grads: see(grads[0]))


@pytest.mark.parametrize("hook", [hook_of_tensor, hook_after, hook_before_the_node, hook_behind_the_node])
def test_hooks_see_what_they_would(hook: Callable[..., object], taken: list[bool]) -> None:
    table, want = table_with_gradient(), expected()
    seen: list[Tensor] = []
    made = loss(query(), table)
    handle: Any = hook(table, lambda grad: seen.append(grad.clone()))
    made.backward()
    check(table, want, taken, False)
    torch.testing.assert_close(seen[0], want if hook is hook_after else want - expected_start(), rtol=1e-5, atol=1e-5)
    handle.remove()
    loss(query(), table).backward()
    assert taken == [False, True]


def test_another_thread_in_a_backward(taken: list[bool]) -> None:
    class Wait(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            inside.set()
            assert leave.wait(30)
            return grad

    inside, leave = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: Wait.apply(torch.ones(2, requires_grad=True)).sum().backward())
    other.start()
    assert inside.wait(30)
    table, want = table_with_gradient(), expected(times=2)
    loss(query(), table).backward()
    leave.set()
    other.join()
    loss(query(), table).backward()
    check(table, want, taken, [False, True])


class Fails(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError("this one fails")


def test_a_backward_that_fails_before_the_gradient_is_back_says_that_it_is_gone(taken: list[bool]) -> None:
    table = table_with_gradient()
    made = Fails.apply(table).sum() + loss(query(), table)  # the later node runs first
    gone = pytest.warns(RuntimeWarning, match=r"what a table \[12, 16\] had accumulated in .grad before it is gone")
    with gone, pytest.raises(RuntimeError, match="this one fails"):
        made.backward()
    assert taken == [True] and table.grad is None


def test_a_backward_that_fails_later_has_accumulated(taken: list[bool]) -> None:
    table, want = table_with_gradient(), expected()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="this one fails"):
            loss(Fails.apply(query().requires_grad_()), table).backward()
    check(table, want, taken, True)


def test_a_kernel_that_refuses_its_ids_gives_the_gradient_back(taken: list[bool]) -> None:
    table, ids = table_with_gradient(), IDS.clone()
    made = torch.ops.gr.sampled_logits(query(), table, ids, None, None, -1)
    ids.data[1, 1] = 99  # behind autograd's back
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(IndexError, match=r"ids\[1, 1\] is 99"):
            made.sum().backward()
    check(table, expected_start(), taken, True)
