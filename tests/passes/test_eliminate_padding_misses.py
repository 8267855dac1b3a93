"""What eliminate-padding may not touch: the reason, the line that blocks, and still the right answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from padded_models import data
from pass_bench import PACK, PassBench
from torch import Tensor, nn

BATCHES = [data([3, 6, 1], 6), data([5, 1, 4, 2], 7, seed=1)]
PASSES = f"canonicalize,{PACK}"


class Model(nn.Module):
    """Embedding and feed-forward; `body` is what stands in the way."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.items, self.feed = nn.Embedding(21, 8), nn.Linear(8, 8)
        self.norm, self.convolution = nn.BatchNorm1d(8, track_running_stats=False), nn.Conv1d(8, 8, 3, padding=1)
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.key = nn.Linear(8, 8)
        self.body = body

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = F.gelu(self.feed(self.items(ids)))
        return self.body(self, x, ids, targets)


def run(body: Callable[..., Tensor], **options: object) -> PassBench:
    torch.manual_seed(0)
    model = Model(body).double()
    return PassBench(model, [(d.ids, d.targets) for d in BATCHES], passes=PASSES, **options)  # type: ignore[arg-type]


def loss(m: Model, x: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, m.items.weight).flatten(0, 1), targets.flatten(), ignore_index=0)


def undeclared_outputs(m: Model, x: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    places = torch.arange(x.shape[1]).unsqueeze(-1)
    return m.key(x) + places


def batch_norm(m: Model, x: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    normed = m.norm(x.transpose(1, 2))  # statistics over B * N
    return loss(m, normed.transpose(1, 2), targets)


def convolution(m: Model, x: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    mixed = m.convolution(x.transpose(1, 2))
    return loss(m, mixed.transpose(1, 2), targets)


def gru(m: Model, x: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    states = m.recurrent(x)[0]
    return loss(m, states, targets)


def cumulative_mean(m: Model, x: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    running = x.cumsum(1)
    return loss(m, running, targets)


def mean_of_everything(m: Model, x: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    return x.mean(1)


def loss_of_everything(m: Model, x: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    return ((m.key(x) - x) ** 2).mean()


def shift(m: Model, x: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    moved = torch.roll(x, 1, 1)
    return (moved * (ids != 0)[..., None]).sum(1)


def attention_without_mask(m: Model, x: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    x = x + torch.arange(x.shape[1]).unsqueeze(-1)
    weights = torch.softmax(m.key(x) @ x.transpose(1, 2), -1)
    mixed = weights @ x
    return loss(m, mixed, targets)


def sorted_places(m: Model, x: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    best = x.topk(2, 1)[0]
    return best.flatten(1)


CASES = [
    (undeclared_outputs, "an output holds what the model computes at padded places", ""),
    (batch_norm, "may read every place", "m.norm(x.transpose(1, 2))"),
    (convolution, "may read every place", "m.convolution(x.transpose(1, 2))"),
    (cumulative_mean, "may read every place", "x.cumsum(1)"),
    (mean_of_everything, "may read every place", "x.mean(1)"),
    (loss_of_everything, "may read every place", ".mean()"),
    (shift, "may read every place", "torch.roll(x, 1, 1)"),
    (attention_without_mask, "attention reads padded places", ""),
    (sorted_places, "may read every place", "x.topk(2, 1)"),
]


@pytest.mark.parametrize(("body", "reason", "line"), CASES, ids=[body.__name__ for body, _, _ in CASES])
def test_a_miss_names_the_operation_that_blocks(body: Callable[..., Tensor], reason: str, line: str) -> None:
    made = run(body)
    found = [m for m in made.misses(PACK) if reason in m.reason]
    assert found, [str(m) for m in made.misses(PACK)]
    if line:
        assert any(m.where is not None and line in m.where.code for m in found), [str(m) for m in found]
    made.assert_parity()


def test_a_recurrent_network_breaks_the_graph_and_is_named_with_its_line() -> None:
    made = run(gru, may_fail=True).assert_parity()
    said = [miss for report in made.reports for miss in report.graph_breaks]
    assert any(miss.where is not None and "m.recurrent(x)" in miss.where.code for miss in said), said


def test_the_miss_of_an_output_names_the_argument_to_set() -> None:
    (miss,) = [m for m in run(undeclared_outputs).misses(PACK) if "output" in m.reason]
    assert "padding=" in miss.hint and "padded_outputs" in miss.hint


def test_the_miss_of_a_mean_says_how_to_leave_padded_places_out() -> None:
    (miss,) = [m for m in run(mean_of_everything).misses(PACK) if "every place" in m.reason]
    assert "set them to 0 before" in miss.hint


def test_strict_turns_a_miss_into_an_error_that_names_the_line() -> None:
    with pytest.raises(Exception, match=r"strict=True(.|\n)*x\.mean\(1\)"):
        run(mean_of_everything, options={"strict": True})


# ----------------------------------------------------------------------------------- what the mask must say
def attending(seen: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Keys have positions: padded ones are no single row."""

    def body(m: Model, x: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
        x = x + torch.arange(x.shape[1]).unsqueeze(-1) / 8
        scores = (m.key(x) @ x.transpose(1, 2)).masked_fill(~seen(ids), torch.finfo(torch.float32).min)
        return loss(m, x + torch.softmax(scores, -1) @ x, targets)

    return body


def causal(ids: Tensor) -> Tensor:
    n = ids.shape[1]
    return torch.ones(n, n, dtype=torch.bool).tril()[None]


def random_mask(ids: Tensor) -> Tensor:
    return (ids[:, :, None] * 7 + ids[:, None, :] * 3) % 5 > 1


MASKS = {
    "causal": causal,
    "causal and keys": lambda ids: causal(ids) & (ids != 0)[:, None],
    "keys": lambda ids: (ids != 0)[:, None].expand(-1, ids.shape[1], -1),
    "anything at random": random_mask,
    "one ahead": lambda ids: torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril(1)[None],
}


@pytest.mark.parametrize("side", ["right", "left", "holes"])
@pytest.mark.parametrize("mask", MASKS)
def test_whatever_the_mask_and_the_side_of_the_padding_the_answer_stays_right(mask: str, side: str) -> None:
    made = shared(mask)
    holes, where = side == "holes", "left" if side == "left" else "right"
    batches = [data([3, 6, 1, 0], 6, where, holes=holes), data([2, 7, 5], 7, where, seed=4, holes=holes)]
    for batch in batches:
        made._compare((batch.ids, batch.targets), True, 1.0)


_MADE: dict[str, PassBench] = {}


def shared(mask: str) -> PassBench:
    if mask not in _MADE:
        _MADE[mask] = run(attending(MASKS[mask]))
    return _MADE[mask]


def test_causal_attention_over_targets_without_key_mask_keeps_everything_before_a_kept_place() -> None:
    (match,) = shared("causal").matches(PACK)
    assert "every place before a kept one" in match.detail


def test_random_masks_do_not_prove_that_keys_are_valid() -> None:
    made = shared("anything at random")
    assert not any("l_ids_[b, n] != 0" in m.detail for m in made.matches(PACK))
