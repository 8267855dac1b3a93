"""insert-fp16{sites=communication}: what collectives of a graph carry, in a group of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor, nn

import gr_compile
from gr_compile.backend import Session
from gr_compile.graph_pass import PassRecord
from gr_compile.optimize import _compiled

HALF = "insert-fp16"


@pytest.fixture(autouse=True)
def _group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Sent(nn.Module):
    """A projection that goes through a collective."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.how = nn.Linear(8, 8), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.how == "gather":
            return collectives.all_gather_tensor(y, 0, dist.group.WORLD) * 2
        if self.how == "gather of a row":
            return collectives.all_gather_tensor(y.sum(-1) * 2, 0, dist.group.WORLD) * 2
        if self.how == "exchange":
            return collectives.all_to_all_single(y, None, None, dist.group.WORLD) + 1
        return collectives.all_reduce(y, "sum", dist.group.WORLD) + 1


def sent(how: str, options: str = "", target: str = "eager", training: bool = False) -> tuple[PassRecord, Tensor, Tensor, int]:
    """(what the pass did, the result, eager's, bytes that travel)."""
    torch._dynamo.reset()
    model, x = Sent(how), torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    fast = gr_compile.optimize(model, passes=f"{HALF}{{sites=communication{options}}}", target=target)
    session: Session = _compiled(fast).session
    traffic: list[int] = []

    def count(event: object) -> None:
        if event.stage == "final":  # type: ignore[attr-defined]
            nodes = event.graph_module.graph.nodes  # type: ignore[attr-defined]
            moved = [n for n in nodes if "_c10d_functional" in str(n.target) and "wait" not in str(n.target)]
            traffic.append(sum(n.meta["val"].numel() * n.meta["val"].element_size() for n in moved))

    session.hooks = [*session.hooks, count]
    with torch.set_grad_enabled(training):
        got, want = fast(x), model(x)
    (record,) = gr_compile.report(fast)[-1].passes
    return record, got, want, traffic[-1]


@pytest.mark.parametrize("target", ["eager", "inductor"])
@pytest.mark.parametrize("how", ["gather", "exchange"])
def test_what_is_moved_is_moved_in_16_bits(how: str, target: str) -> None:
    record, got, want, traffic = sent(how, target=target)
    assert [match.what.split(" of ")[0] for match in record.matches] == ["communication"] and not record.misses
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    assert not torch.equal(got, want), "nothing was rounded"
    assert traffic == 6 * 8 * 2 + 6 * 4  # values, and a scale for each row


@pytest.mark.parametrize(
    ("how", "options", "training", "reason"),
    [
        ("sum", "", False, "the collective adds up what it is given"),
        ("gather", ",scale=per-table", False, "each process would have a scale of its own"),
        ("gather of a row", "", False, "a value of one dimension is one row"),
        ("gather", ",scale=none", False, "nothing is known of the range"),
        ("exchange", "", True, "a gradient may travel back through this collective"),
    ],
)
def test_what_travels_in_32_bits_and_why(how: str, options: str, training: bool, reason: str) -> None:
    record, got, want, _ = sent(how, options, training=training)
    assert not record.matches and [reason in miss.reason for miss in record.misses] == [True]
    assert torch.equal(got, want)
