"""Buffers by content: what was classified is guarded, and whatever changes, the answers stay right."""

from __future__ import annotations

import copy

import pytest
import torch
from models import Mlp, Sequences, batch, graphs, optimize, vectors
from torch import fx
from toy_passes import DropOnes

import gr_compile
from gr_compile.constants import Constants, ContentGuard, digest

TWOS = torch.full((3,), 2.0)


def in_place(model: Mlp) -> None:
    model.scale.copy_(TWOS)


def load_state_dict(model: Mlp) -> None:
    model.load_state_dict({**model.state_dict(), "scale": TWOS})


def load_by_assignment(model: Mlp) -> None:
    model.load_state_dict({**model.state_dict(), "scale": TWOS.clone()}, assign=True)


def assignment(model: Mlp) -> None:
    model.scale = TWOS.clone()


def inference_tensor(model: Mlp) -> None:
    with torch.inference_mode():
        model.scale = TWOS.clone()


@pytest.fixture
def model() -> Mlp:
    torch.manual_seed(0)
    return Mlp().eval()


def right(fast, model: Mlp) -> bool:
    """The optimised model's answer is a copy's, which shares nothing with it."""
    return torch.allclose(fast(vectors()), copy.deepcopy(model)(vectors()), atol=1e-6)


def optimized(model: Mlp):
    """A pass drops the multiplication by ones: an answer is wrong as soon as the guard lets one through."""
    return optimize(model, passes=[DropOnes()])


def test_the_content_of_a_buffer_is_what_the_pass_relies_on(model):
    fast = optimized(model)
    assert right(fast, model)
    assert [match.what for match in gr_compile.report(fast)[0].matches] == ["times one"]


CHANGES = [in_place, load_state_dict, load_by_assignment, assignment]


@pytest.mark.parametrize("change, mode", [
    *((change, mode) for change in CHANGES for mode in (torch.enable_grad, torch.inference_mode)),
    (inference_tensor, torch.no_grad), (inference_tensor, torch.inference_mode),
])  # fmt: skip
def test_a_changed_buffer_gives_right_answers_at_once_and_compiles_anew_later(model, change, mode):
    fast = optimized(model)
    with mode():
        assert right(fast, model)
        with torch.no_grad():
            change(model)
        assert right(fast, model), "the call that finds the change"
        assert right(fast, model) and graphs(fast) == 2
        assert right(fast, model) and graphs(fast) == 2
        assert not gr_compile.report(fast)[1].matches


def test_gradients_are_right_in_the_call_that_finds_the_change(model):
    fast = optimized(model)
    fast(vectors())
    in_place(model)
    twin = copy.deepcopy(model)
    fast(vectors()).sum().backward()
    twin(vectors()).sum().backward()
    torch.testing.assert_close(model.first.weight.grad, twin.first.weight.grad)


def same_bytes(model: Mlp) -> None:
    model.scale = model.scale.clone()


def same_content_in_place(model: Mlp) -> None:
    model.scale.copy_(torch.ones(3))


def moved(model: Mlp) -> None:
    model.to("cpu").float()


def reloaded(model: Mlp) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()))


@pytest.mark.parametrize("change", [same_bytes, same_content_in_place, moved, reloaded, lambda model: None])
def test_a_buffer_of_the_same_content_compiles_nothing(model, change):
    fast = optimized(model)
    for _ in range(4):
        assert right(fast, model)
        change(model)
    assert graphs(fast) == 1


def test_another_dtype_is_another_graph_and_right(model):
    fast = optimized(model)
    assert right(fast, model)
    model.double()
    torch.testing.assert_close(fast(vectors().double()), model(vectors().double()))


def test_a_buffer_that_changes_again_and_again_stops_compiling(model):
    fast = optimized(model)
    for step in range(8):
        model.scale.fill_(1 + step % 3)
        assert right(fast, model)
    assert graphs(fast) <= 3


def test_a_buffer_of_inference_tensors_changed_inside_inference_mode(model):
    with torch.inference_mode():
        model.scale = torch.ones(3)
        fast = optimized(model)
        assert right(fast, model)
        model.scale.mul_(2)
        assert right(fast, model)
        assert right(fast, model)


def test_our_own_passes_read_a_mask_and_follow_it():
    torch.manual_seed(0)
    model, data = Sequences().eval(), batch([6, 3, 1], 6)
    fast = optimize(model, dynamic=True)
    with torch.no_grad():
        fast(*data)
        model.causal.triu_(-1)
        for _ in range(2):
            torch.testing.assert_close(fast(*data), model(*data), rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------- the parts
def graph_of(values: dict[str, torch.Tensor]) -> fx.GraphModule:
    """A graph whose inputs come from the given sources."""
    graph = fx.Graph()
    for position, source in enumerate(values):
        graph.placeholder(f"p{position}").meta["gr_source"] = source
    graph.output(())
    return fx.GraphModule({}, graph)


BUFFER = "L['self']._buffers['mask']"


@pytest.mark.parametrize("source, value, constant", [
    (BUFFER, torch.ones(2), True),
    ("L['self']._modules['a']._buffers['mask']", torch.ones(2), True),
    ("L['self'].table", torch.ones(2), True),
    ("G['TABLE']", torch.ones(2), True),
    ("L['mask']", torch.ones(2), False),
    ("", torch.ones(2), False),
    ("L['self']._parameters['w']", torch.nn.Parameter(torch.ones(2)), False),
    (BUFFER, torch.ones(2, requires_grad=True), False),
    (BUFFER, torch.ones(2).to_sparse(), False),
])  # fmt: skip
def test_what_is_constant_by_construction(source, value, constant):
    found = Constants.of(graph_of({source: value}), [value])
    assert bool(found.tensors) == constant


def test_only_what_was_read_is_guarded():
    values = {BUFFER: torch.ones(2), "G['OTHER']": torch.zeros(2)}
    constants = Constants.of(graph_of(values), list(values.values()))
    node = next(iter(constants.tensors))
    assert constants.guards() == []
    assert constants.content(node) is not None
    assert [guard.source for guard in constants.guards()] == [BUFFER]


def test_a_distrusted_source_is_an_input_like_any_other():
    value = torch.ones(2)
    assert not Constants.of(graph_of({BUFFER: value}), [value], frozenset({BUFFER})).tensors


def test_large_inference_tensors_are_not_read_since_their_guard_would_hash_them_each_time():
    with torch.inference_mode():
        value = torch.ones((1 << 22) + 1, dtype=torch.bool)
    constants = Constants.of(graph_of({BUFFER: value}), [value])
    assert constants.content(next(iter(constants.tensors))) is None


def test_a_guard_holds_for_the_object_or_equal_content_and_renews_itself():
    tensor = torch.arange(6)
    guard = ContentGuard.of(0, BUFFER, tensor)
    assert guard.holds(tensor)
    tensor.add_(0)
    assert guard.holds(tensor) and guard.version == tensor._version
    assert guard.holds(tensor.clone())
    assert not guard.holds(tensor + 1)
    assert not guard.holds(tensor.reshape(2, 3))
    assert not guard.holds(tensor.to(torch.int32))


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(()), torch.ones(0, 3), torch.ones(2, 3).t(), torch.ones(2, dtype=torch.bfloat16),
     torch.ones(3, requires_grad=True), torch.ones(2, dtype=torch.complex64)],
)  # fmt: skip
def test_any_strided_tensor_has_a_digest(tensor):
    assert digest(tensor) == digest(tensor.detach().clone())
    assert digest(tensor) != digest(torch.zeros(4))
