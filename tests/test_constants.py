"""Buffers by content: what was classified is guarded, and whatever changes, the answers stay right."""

from __future__ import annotations

import copy

import pytest
import torch
from models import LONGEST, Sequences, batch, graphs, optimize
from torch import fx

from gr_compile.constants import Constants, ContentGuard, digest

DATA = batch([6, 3, 1], 6)


def window() -> torch.Tensor:
    """Another mask: causal, two places back at most."""
    ones = torch.ones(LONGEST, LONGEST, dtype=torch.bool)
    return ones.tril() & ones.triu(-2)


def everything() -> torch.Tensor:
    return torch.ones(LONGEST, LONGEST, dtype=torch.bool)


def in_place(model: Sequences) -> None:
    model.causal.copy_(window())


def load_state_dict(model: Sequences) -> None:
    model.load_state_dict({**model.state_dict(), "causal": window()})


def load_by_assignment(model: Sequences) -> None:
    model.load_state_dict({**model.state_dict(), "causal": window()}, assign=True)


def assignment(model: Sequences) -> None:
    model.causal = window()


def inference_tensor(model: Sequences) -> None:
    with torch.inference_mode():
        model.causal = window()


def other_dtype(model: Sequences) -> None:
    model.causal = window().to(torch.uint8).to(torch.bool)


@pytest.fixture
def model() -> Sequences:
    torch.manual_seed(0)
    return Sequences().eval()


def right(fast, model: Sequences) -> bool:
    return torch.allclose(fast(*DATA), copy.deepcopy(model)(*DATA), atol=1e-6)


@pytest.mark.parametrize(
    "change", [in_place, load_state_dict, load_by_assignment, assignment, inference_tensor, other_dtype]
)
def test_a_changed_buffer_gives_right_answers_at_once_and_compiles_anew_later(model, change):
    fast = optimize(model, dynamic=True)
    with torch.no_grad():
        assert right(fast, model)
        before = fast(*DATA)
        change(model)
        assert right(fast, model) and not torch.allclose(fast(*DATA), before)
        assert right(fast, model)
        assert graphs(fast) == 2
        assert right(fast, model)
        assert graphs(fast) == 2


def same_bytes(model: Sequences) -> None:
    model.causal = model.causal.clone()


def same_content_in_place(model: Sequences) -> None:
    model.causal.copy_(model.causal.clone())


def moved(model: Sequences) -> None:
    model.to("cpu").float()


def reloaded(model: Sequences) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()))


@pytest.mark.parametrize("change", [same_bytes, same_content_in_place, moved, reloaded, lambda model: None])
def test_a_buffer_of_the_same_content_compiles_nothing(model, change):
    fast = optimize(model, dynamic=True)
    with torch.no_grad():
        for _ in range(3):
            assert right(fast, model)
            change(model)
    assert graphs(fast) == 1


def test_a_buffer_that_changes_again_and_again_stops_compiling(model):
    fast = optimize(model, dynamic=True)
    with torch.no_grad():
        for step in range(6):
            model.causal.copy_(window() if step % 2 else everything())
            assert right(fast, model)
            assert right(fast, model)
    assert graphs(fast) <= 3


def test_a_buffer_of_inference_tensors_changed_inside_inference_mode(model):
    with torch.inference_mode():
        model.causal = torch.ones(LONGEST, LONGEST, dtype=torch.bool).tril()
        fast = optimize(model, dynamic=True)
        assert right(fast, model)
        model.causal.copy_(window())
        assert right(fast, model)
        assert right(fast, model)


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
    assert digest(tensor) != digest(tensor.detach().to(torch.float64))
