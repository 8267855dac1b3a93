"""Any batch through one compiled graph: B, N, lengths from 0 to above N, both sides, holes, colliding sizes."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from padded_models import LONGEST, Data, Parts, Recommender, data
from pass_bench import FUSE, PACK, PassBench

MODELS = {
    "softmax loss": Parts(masking="fill min"),
    "silu with time bias": Parts(activation="silu", masking="mul", bias="time", readout="cross_entropy"),
    "causal without keys, last place": Parts(spelling="sdpa causal", readout="last_by_negative_index"),
    "keys only, additive": Parts(seen="keys", masking="add -1e4", spelling="matmul", readout="mean_over_valid_places"),
    "lengths and a window": Parts(valid="lengths", seen="window+keys", masking="fill min", readout="zeroed_places"),
    "one head, one feature": Parts(spelling="one head", heads=1, dim=1, masking="fill min", readout="cross_entropy_masked"),
    "the last column": Parts(masking="fill min", readout="last_column"),
}  # fmt: skip
COLLIDING = [(8, 8), (2, 2), (4, 8), (8, 4), (2, 16), (16, 2)]
"""B and N that equal one another, the width (8), the number of heads (2) or the width of a head (4)."""


@functools.cache
def compiled(name: str) -> PassBench:
    torch.manual_seed(0)
    made = PassBench(Recommender(MODELS[name]).double(), [data([3, 5, 0, 9, 1], 7).args()])
    return made.assert_fires(PACK, FUSE)


@st.composite
def batch(draw: st.DrawFn) -> Data:
    count, n = draw(st.integers(2, 6)), draw(st.integers(2, LONGEST))
    side = draw(st.sampled_from(["right", "left"]))
    lengths = draw(st.lists(st.integers(0, n + (3 if side == "right" else 0)), min_size=count, max_size=count))
    return data(lengths, n, side, draw(st.integers(0, 99)), holes=draw(st.booleans()))


@pytest.mark.parametrize("name", MODELS)
def test_any_batch_is_right_with_one_graph(name: str) -> None:
    made = compiled(name)

    @settings(max_examples=40, deadline=None, derandomize=True, database=None,
              suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
    @given(batch())
    def check(drawn: Data) -> None:
        made._compare(drawn.args(), True, 1.0)

    check()
    assert len(made.compilations) <= 3  # B == N, and sizes that equal the width, may be guarded apart


@pytest.mark.parametrize(("count", "n"), COLLIDING)
@pytest.mark.parametrize("name", ["softmax loss", "silu with time bias"])
def test_sizes_that_collide_from_the_first_batch_on(name: str, count: int, n: int) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    lengths = [k % (n + 1) for k in range(count)]
    made = PassBench(Recommender(MODELS[name]).double(), [data(lengths, n).args(), data(lengths, n, seed=7).args()])
    made.assert_fires(PACK, FUSE).assert_parity()


@pytest.mark.parametrize(
    "lengths", [[0, 0, 0], [6, 6, 6], [0, 0, 6], [1, 1, 1], [9, 8, 7]],
    ids=["all empty", "all full", "one full", "ones", "all above N"],
)  # fmt: skip
@pytest.mark.parametrize("name", MODELS)
def test_extreme_batches(name: str, lengths: list[int]) -> None:
    compiled(name)._compare(data(lengths, 6).args(), True, 1.0)


@pytest.mark.parametrize("shape", [(1, 5), (3, 1), (1, 1)])
def test_one_sequence_and_one_place(shape: tuple[int, int]) -> None:
    count, n = shape
    made = compiled("softmax loss")
    for lengths in ([n] * count, [n] + [0] * (count - 1)):
        made._compare(data(lengths, n).args(), True, 1.0)
