"""After warm-up no batch compiles again, whatever its B, N and lengths."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import gr_compile
import gr_compile.model_zoo as zoo

LONGEST = 24


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch._dynamo.reset()
    yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()


def model() -> zoo.HSTU:
    torch.manual_seed(0)
    config = zoo.HSTUConfig(
        num_items=50, max_seq_len=LONGEST, embedding_dim=8, num_layers=1, attention_dim=4, linear_dim=4,
        num_time_buckets=16, dropout=0.0,
    )  # fmt: skip
    return zoo.HSTU(config)


def batch(count: int, n: int, chooser: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    kind = chooser.choice(["any", "any", "any", "all full", "all empty", "above N"])
    bounds = {"any": (0, n), "all full": (n, n), "all empty": (0, 0), "above N": (n, n + 5)}[kind]
    lengths = torch.tensor([chooser.randint(*bounds) for _ in range(count)])
    valid = torch.arange(n) < lengths[:, None]
    ids = torch.randint(1, 51, (count, n)) * valid
    return ids, torch.randint(0, 90000, (count, n)).cumsum(1), torch.randint(1, 51, (count, n)) * valid


def random_sizes(steps: int) -> list[tuple[int, int]]:
    chooser = random.Random(1)
    return [(chooser.randint(2, 12), chooser.randint(2, LONGEST)) for _ in range(steps)]


@pytest.mark.parametrize("mode", ["unbacked", "host"])
def test_one_graph_serves_a_hundred_batches_through_inductor(mode: str) -> None:
    original, chooser = model(), random.Random(0)
    fast = gr_compile.optimize(original, passes=f"default,eliminate-padding{{mode={mode}}}")
    for count, n in [(5, 11), (7, 13)]:
        fast(*batch(count, n, chooser)).backward()
    warm = len(gr_compile.report(fast))
    assert warm <= 2
    for count, n in random_sizes(100):
        ids, times, targets = batch(count, n, chooser)
        loss = fast(ids, times, targets)
        torch.testing.assert_close(loss, original(ids, times, targets), rtol=1e-4, atol=1e-5, equal_nan=True)
        loss.backward()
    assert len(gr_compile.report(fast)) == warm
    assert all("jagged_attention" in str(r.passes[-1].operators_after) for r in gr_compile.report(fast))


@pytest.mark.parametrize("mode", ["unbacked", "host"])
def test_modes_take_one_graph_each_and_sizes_of_one_may_add_one(mode: str) -> None:
    original, chooser = model(), random.Random(0)
    passes = f"default,eliminate-padding{{mode={mode}}}"
    fast = gr_compile.optimize(original, target="eager", dynamic=True, passes=passes)

    def graphs() -> int:
        return len(gr_compile.report(fast))

    def run(count: int, n: int) -> None:
        ids, times, targets = batch(count, n, chooser)
        fast(ids, times, targets)

    run(5, 11)
    for switch in (torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)):
        before = graphs()
        with switch():
            run(5, 11)
            run(6, 9)
            run(3, 12)
        assert graphs() - before <= 1
    fast.eval()
    before = graphs()
    run(5, 11)
    run(4, 7)
    assert graphs() - before <= 1
    for shapes in ([(1, 5), (1, 9)], [(4, 1), (6, 1)]):
        before = graphs()
        for count, n in shapes:
            run(count, n)
        assert graphs() - before <= 1


@pytest.mark.slow
def test_five_hundred_batches() -> None:
    original, chooser = model(), random.Random(2)
    fast = gr_compile.optimize(original)
    for count, n in [(5, 11), (7, 13), *random_sizes(500)]:
        fast(*batch(count, n, chooser)).backward()
    assert len(gr_compile.report(fast)) <= 2
