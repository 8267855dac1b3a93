"""Capture: what reaches the passes is functional ATen without modes; what cannot, runs right and says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import WIDTH, Layer, Mlp, graphs, optimize, vectors
from torch import nn
from torch.utils.checkpoint import checkpoint

import gr_compile
from gr_compile.capture import capture

aten = torch.ops.aten
W = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))


def captured(function: Any, *args: Any) -> torch.fx.GraphModule:
    """The graph that the passes would be given. Raises CannotCapture as `capture` does."""
    found: list[Any] = []

    def backend(graph_module, inputs):
        found.append(capture(graph_module))
        return graph_module.forward

    try:
        torch.compile(function, backend=backend, isolate_recompiles=True)(*args)
    except torch._dynamo.exc.BackendCompilerFailed as failed:
        raise failed.inner_exception from None
    assert len(found) == 1
    return found[0]


def calls(graph_module: torch.fx.GraphModule, target: Any) -> list[torch.fx.Node]:
    return list(graph_module.graph.find_nodes(op="call_function", target=target))


def runs_captured(function: Any, *args: Any) -> Any:
    """`function` optimised, equal to eager, in one captured graph."""
    fast = optimize(function, passes="none")
    got, want = fast(*args), function(*args)
    assert graphs(fast) == 1 and gr_compile.report(fast)[0].not_captured is None
    torch.testing.assert_close(got, want)
    return got


# ------------------------------------------------------------------------------------------ the form of it
PLACES = {
    "nonzero": lambda ids: torch.nonzero(ids, as_tuple=True),
    "method": lambda ids: ids.nonzero(as_tuple=True),
    "where": lambda ids: torch.where(ids != 0),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", PLACES)
def test_places_as_a_tuple_are_one_operator_and_its_columns(name, grad):
    def function(x, ids):
        places = PLACES[name](ids)
        return x[places].sum(-1), ids[places]

    given = torch.randn(2, 3, 4), torch.tensor([[1, 0, 2], [0, 0, 3]])
    with torch.set_grad_enabled(grad):
        fast = optimize(function, passes="canonicalize")
        torch.testing.assert_close(fast(*given), function(*given))
    held = gr_compile.report(fast)[0].passes[0].operators_before
    assert held["aten.nonzero.default"] == 1 and not {"aten.nonzero_numpy.default", "aten.where.default"} & set(held)


def test_operators_stay_whole_and_know_their_line():
    layer = Layer()
    graph = captured(layer, torch.randn(2, 5, WIDTH), torch.ones(2, 5, 5, dtype=torch.bool))
    for target, count in ((aten.linear.default, 2), (aten.einsum.default, 2), (aten.layer_norm.default, 1)):
        assert len(calls(graph, target)) == count
    assert "models.py" in calls(graph, aten.layer_norm.default)[0].meta["stack_trace"]
    assert all("val" in node.meta for node in graph.graph.nodes if node.op == "call_function")


def test_placeholders_keep_dynamos_order_names_and_sources():
    graph = captured(Mlp().eval(), vectors())
    sources = [node.meta["gr_source"] for node in graph.graph.find_nodes(op="placeholder")]
    assert "L['x']" in sources
    assert "L['self']._buffers['scale']" in sources


def test_in_place_work_on_fresh_tensors_becomes_functional():
    def f(x):
        y = x * 2
        y += 1
        y[:, 0] = 0
        y.masked_fill_(y > 1, 5.0).clamp_(max=3)
        return y

    graph = captured(f, vectors())
    for node in graph.graph.find_nodes(op="call_function", target=aten.add_.Tensor):
        raise AssertionError(node)
    assert not any(n.target._schema.is_mutable for n in graph.graph.nodes if n.op == "call_function")
    runs_captured(f, vectors())


@pytest.mark.parametrize(
    "part", [lambda y: y[:, 0], lambda y: y[:, 1:3], lambda y: y[..., :1], lambda y: y.view(-1)[2:4]]
)
@pytest.mark.parametrize("given", [lambda x: x[0, 0], lambda x: x[0, :1].double(), lambda x: x[:1, 0].half()])
def test_writing_over_a_part_has_a_derivative(part, given):
    """The functional copy that tracing makes of it has none."""

    def f(x):
        y = x.sin()
        part(y).copy_(given(x))
        return y

    graph = captured(f, vectors())
    assert not calls(graph, torch.ops.aten.copy.default)
    x, fast = vectors().requires_grad_(), optimize(f, passes="none", target="eager")
    (gradient,) = torch.autograd.grad(fast(x).pow(2).sum(), x)
    (expected,) = torch.autograd.grad(f(x).pow(2).sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_a_copy_of_an_input_is_not_the_input():
    fast, x = optimize(lambda x: torch.empty_like(x).copy_(x), passes="none", target="eager"), vectors()
    fast(x).zero_()
    assert x.abs().sum() > 0


def test_a_batch_of_other_sizes_runs_the_same_graph():
    fast = optimize(lambda x: (x[:, :2] * x.shape[0]).sum(), passes="none", dynamic=True)
    for rows in (5, 6, 9):
        torch.testing.assert_close(fast(vectors(rows)), (vectors(rows)[:, :2] * rows).sum())
    assert graphs(fast) == 1


def test_a_long_sum_of_sizes_is_captured():
    def f(x):
        size = x.shape[1]
        for _ in range(400):
            size = size + x.shape[0]
        return x.new_zeros(size) + x.sum()

    fast = optimize(f, passes="none", target="eager", dynamic=True)
    for rows in (3, 4):
        torch.testing.assert_close(fast(vectors(rows)), f(vectors(rows)))
    assert graphs(fast) == 1 and gr_compile.report(fast)[0].not_captured is None


def shifted(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y[:, 1:] = y[:, :-1].clone()
    return (y * other).sum(1)


def cast_and_broadcast(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y[:, 1:] = other[:, :1]
    y[0].copy_(x[1])
    return y.square().sum(1)


@pytest.mark.parametrize("function", [shifted, cast_and_broadcast])
def test_what_is_written_to_a_slice_has_its_gradient(function):
    x, other = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    graph = captured(function, x, other)
    assert not calls(graph, aten.copy.default)
    got = torch.autograd.grad(runs_captured(function, x, other).sum(), (x, other))
    for a, b in zip(got, torch.autograd.grad(function(x, other).sum(), (x, other))):
        torch.testing.assert_close(a, b)


# ------------------------------------------------------------------------------------------------- autocast
def nested_regions(x):
    with torch.autocast("cpu", enabled=False):
        y = x.float() @ W
        with torch.autocast("cpu", torch.float16):
            z = y @ W
        y = y @ W
    return y + z + (x @ W)


def other_device(x):
    with torch.autocast("cuda", torch.float16, enabled=False):
        return x @ W


AUTOCAST = {
    "linear": lambda x: F.linear(x, W),
    "einsum": lambda x: torch.einsum("bnd,de->bne", x, W),
    "tensordot": lambda x: torch.tensordot(x, W, 1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "softmax": lambda x: torch.softmax(x @ W, -1),
    "layer_norm": lambda x: F.layer_norm(x @ W, (4,)),
    "native layer_norm": lambda x: torch.native_layer_norm(x @ W, (4,), None, None, 1e-5)[0],
    "cross_entropy": lambda x: F.cross_entropy((x @ W).flatten(0, 1), torch.zeros(6, dtype=torch.long)),
    "cat of two dtypes": lambda x: torch.cat([x @ W, x], -1),
    "silu": lambda x: F.silu(x @ W),
    "sum": lambda x: (x @ W).sum(),
    "float64 stays": lambda x: x.double() @ W.double(),
    "cosine": lambda x: F.cosine_similarity(x @ W, x),
    "regions in regions": nested_regions,
    "region of another device": other_device,
}


@pytest.mark.parametrize("where", ["ambient", "inside"])
@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast_gives_bitwise_eagers_values_and_dtypes(name, where):
    x, function = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), AUTOCAST[name]

    def inside(x):
        with torch.autocast("cpu", torch.bfloat16):
            return function(x)

    if where == "inside":
        want, got = inside(x), runs_captured(inside, x)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            want, got = function(x), runs_captured(function, x)
    assert got.dtype == want.dtype
    assert torch.equal(got, want)


def test_operands_of_two_dtypes_under_autocast_are_no_error_in_torchs_log(monkeypatch):
    errors: list[str] = []
    monkeypatch.setattr(torch._subclasses.fake_tensor.log, "exception", lambda text, *args: errors.append(text))
    with torch.autocast("cpu", torch.bfloat16):
        captured(lambda x: torch.einsum("bnd,bmd->bnm", x @ W, x), vectors()[None])
    assert errors == []


def test_every_linear_under_autocast_has_operands_of_its_result_type():
    model = Mlp()
    with torch.autocast("cpu", torch.bfloat16):
        graph = captured(model, vectors())
    linears = calls(graph, aten.linear.default)
    assert len(linears) == 2
    for node in linears:
        assert node.meta["val"].dtype == torch.bfloat16
        assert all(argument.meta["val"].dtype == torch.bfloat16 for argument in node.args)


def test_layer_norm_with_float32_weights_stays_as_it_is_under_autocast():
    """With bfloat16 weights its backward would keep mean and deviation in bfloat16: gradients several times too large."""
    norm = nn.LayerNorm(4)
    with torch.autocast("cpu", torch.bfloat16):
        graph = captured(lambda x: norm(x @ W), vectors())
    (node,) = calls(graph, aten.layer_norm.default)
    assert [argument.meta["val"].dtype for argument in node.all_input_nodes] == [torch.bfloat16, *[torch.float32] * 2]


# ------------------------------------------------------------------------------------- grad mode, checkpoints
@pytest.mark.parametrize("region", [torch.no_grad, torch.inference_mode])
def test_a_region_without_gradients_becomes_detaches(region):
    model = nn.Linear(4, 4)

    def f(x):
        with region():
            target = model(x)
        return (model(x) - target.detach().clone()).square().sum() + target.sum()

    def gradient(run):
        model.zero_grad()
        run(vectors()).backward()
        return model.weight.grad.clone()

    fast = optimize(f, passes="none")
    torch.testing.assert_close(gradient(fast), gradient(f))
    assert gr_compile.report(fast)[0].not_captured is None
    assert calls(captured(f, vectors()), aten.detach.default)


def test_what_inference_mode_computes_has_no_history_outside_either():
    def f(x):
        with torch.inference_mode():
            y = x * 2
        return y + 1

    assert not optimize(f)(vectors().requires_grad_()).requires_grad


def test_gradients_turned_on_inside_no_grad_stay_on():
    def f(x):
        with torch.enable_grad():
            return (x * x).sum()

    x = vectors().requires_grad_()
    with torch.no_grad():
        assert optimize(f)(x).requires_grad


def test_checkpoint_regions_are_inlined_and_tagged_for_recomputation():
    layer = nn.Sequential(nn.Linear(4, 4), nn.SiLU())

    def f(x):
        return checkpoint(layer, checkpoint(layer, x, use_reentrant=False), use_reentrant=False).sum()

    graph = captured(f, vectors().requires_grad_())
    first, second = calls(graph, aten.linear.default)
    assert first.meta["ac_graph_id"] != second.meta["ac_graph_id"]
    assert all("recompute" in node.meta for node in (first, second, *calls(graph, aten.silu.default)))
    assert all("recompute" not in node.meta for node in calls(graph, aten.sum.default))


@pytest.mark.parametrize("p, training", [(0.0, True), (0.5, False), (0.0, False)])
def test_what_drops_nothing_is_its_operand_which_may_be_written_to(p, training):
    def f(x, mask):
        y = x * 2
        z = F.dropout(y, p, training)
        z *= mask
        return y + z

    runs_captured(f, vectors(), (vectors() > 0).float())


def test_the_result_of_a_dropout_may_be_written_to():
    def f(x, mask):
        y = x * 2
        z = F.dropout(y, 0.5)
        z *= mask
        return y, z

    torch.manual_seed(0)
    fast, mask = optimize(f, passes="none"), (vectors() > 0).float()
    y, z = fast(vectors(), mask)
    assert gr_compile.report(fast)[0].not_captured is None
    torch.testing.assert_close(y, vectors() * 2)
    assert bool(((z == 0) | torch.isclose(z, 2 * y * mask)).all()) and 0 < int((z != 0).sum()) < int(mask.sum())


def test_the_users_hooks_on_saved_tensors_do_not_see_the_tracing():
    model, seen = Mlp(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.append(x.data_ptr()) or x, lambda x: x):
        fast = optimize(model, passes="none")
        fast(vectors())
    assert seen and gr_compile.report(fast)[0].not_captured is None


# --------------------------------------------------------------------------------- what cannot be captured
def mutates_its_input(x):
    x.add_(1)
    return x * 2


def writes_a_slice_of_its_input(x):
    x[:, 0] = 7
    return x * 2


def mutates_an_input_in_a_view(x):
    row = x[0]
    row.mul_(2)
    return x.sum()


def branches_inside(x):
    return torch.cond(x.sum() > 0, lambda v: v.sin(), lambda v: v.cos(), (x,))


def differentiates(x):
    return torch.func.grad(lambda v: (v**3).sum())(x)


@pytest.mark.parametrize("function, reason, code", [
    (mutates_its_input, "changed in place", "x.add_(1)"),
    (writes_a_slice_of_its_input, "changed in place", "x[:, 0] = 7"),
    (mutates_an_input_in_a_view, "changed in place", "row.mul_(2)"),
    (branches_inside, "cond", "torch.cond("),
    (differentiates, "functorch", "torch.func.grad"),
])  # fmt: skip
def test_what_cannot_be_functional_runs_right_and_the_report_says_why(function, reason, code, said):
    fast = optimize(function)
    for seed in (0, 1, 0):
        a, b = vectors(seed=seed), vectors(seed=seed)
        torch.testing.assert_close(fast(a), function(b))
        torch.testing.assert_close(a, b)
    why = gr_compile.report(fast)[0].not_captured
    assert reason in why.reason
    assert code in why.where.code and why.where.file.endswith("test_capture.py")
    assert sum(reason in message for message in said) == 1, "said once"


class Counting(nn.Module):
    """Counts its calls in a buffer, as BatchNorm does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return x * self.count


def test_a_model_that_writes_its_own_buffer_is_followed():
    fast, eager = optimize(Counting()), Counting()
    for _ in range(3):
        torch.testing.assert_close(fast(vectors()), eager(vectors()))
    assert graphs(fast) == 1
    assert gr_compile.report(fast)[0].not_captured is None


def test_a_tensor_subclass_runs_as_torch_compile_runs_it():
    from torch.testing._internal.two_tensor import TwoTensor

    def f(x):
        return x * 2 + 1

    fast, x = optimize(f), TwoTensor(vectors(), vectors(seed=1))
    torch.testing.assert_close(fast(x).a, f(x.a))
    assert "TwoTensor" in gr_compile.report(fast)[0].not_captured.reason


def test_a_graph_without_tensors_runs():
    fast = optimize(lambda n: torch.zeros(n) + 1)
    assert fast(3).tolist() == [1, 1, 1]


# -------------------------------------------------------------------------------------------- graph breaks
def breaks_in_the_middle(x):
    y = x.relu()
    torch._dynamo.graph_break()
    return y + 1


def breaks_at_once(x):
    torch._dynamo.graph_break()
    return x.relu() + 1


def breaks_in_a_loop(x):
    for _ in range(2):
        x = x.relu() + 1
        torch._dynamo.graph_break()
    return x


def branches_on_content(x):
    if x.sum() > 100:
        return x + 1
    return x - 1


def prints(x):
    y = x * 2
    print(end="")
    return y + 1


@pytest.mark.parametrize("function, reason, code", [
    (breaks_in_the_middle, "graph_break", "torch._dynamo.graph_break()"),
    (breaks_at_once, "graph_break", "torch._dynamo.graph_break()"),
    (breaks_in_a_loop, "leaves breaks_in_a_loop to Python", "torch._dynamo.graph_break()"),
    (branches_on_content, "depends on the content of a tensor", "if x.sum() > 100"),
    (prints, "print", 'print(end="")'),
])  # fmt: skip
def test_graph_breaks_are_reported_with_their_line_and_said_once(function, reason, code, said):
    fast = optimize(function)
    for seed in range(3):
        torch.testing.assert_close(fast(vectors(seed=seed)), function(vectors(seed=seed)))
    found = [miss for report in gr_compile.report(fast) for miss in report.graph_breaks]
    assert len(found) == 1
    assert reason in found[0].reason and code in found[0].where.code
    assert sum(reason in message for message in said) == 1


def test_the_hint_of_a_graph_break_is_torchs():
    fast = optimize(breaks_in_the_middle)
    fast(vectors())
    assert "Remove the `torch._dynamo.graph_break()` call" in gr_compile.report(fast)[0].graph_breaks[0].hint
