"""Products with one-hot rows read places by their numbers; what is not one-hot stays a product."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pass_bench import PACK, PassBench
from torch import Tensor, nn

N, ITEMS, D = 7, 20, 8


def batch(places: list[list[int]], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, ITEMS, (len(places), N), generator=generator), torch.tensor(places)


BATCHES = [batch([[0, 2], [6, 1], [3, 3]]), batch([[5, 5], [0, 6], [2, 1]], seed=1)]


class Model(nn.Module):
    """Token-wise layers, of which `rows(index, n)` [B, M, N] picks places."""

    def __init__(self, rows: Callable[[Tensor, int], Tensor], spelling: str = "bmm") -> None:
        super().__init__()
        self.items, self.inner, self.rows, self.spelling = nn.Embedding(ITEMS, D), nn.Linear(D, D), rows, spelling

    def forward(self, ids: Tensor, places: Tensor) -> Tensor:
        x = torch.tanh(self.inner(self.items(ids)))
        rows = self.rows(places, ids.shape[1]).to(x.dtype)
        if self.spelling == "einsum":
            return torch.einsum("bmn,bnd->bmd", rows, x)
        return torch.bmm(rows, x) if self.spelling == "bmm" else rows @ x


def written(places: Tensor, n: int, value: float = 1.0, backwards: bool = False) -> Tensor:
    """As RecBole's BERT4Rec writes them."""
    rows, flat = torch.arange(places.numel()), places.reshape(-1)
    found = torch.zeros(places.numel(), n)
    found[rows.flip(0) if backwards else rows, flat] = value
    return found.view(*places.shape, n)


def compared(places: Tensor, n: int) -> Tensor:
    return places[:, :, None] == torch.arange(n)


def bench(model: nn.Module, batches: list[tuple[Tensor, Tensor]] = BATCHES) -> PassBench:
    torch.manual_seed(0)
    return PassBench(model.double(), batches, passes=f"canonicalize,{PACK}", dynamic=False)


@pytest.mark.parametrize("spelling", ["bmm", "einsum", "matmul"])
@pytest.mark.parametrize("rows", [written, compared, nn.functional.one_hot])
def test_one_hot_rows_pick_places(rows: Callable[[Tensor, int], Tensor], spelling: str) -> None:
    made = bench(Model(rows, spelling)).assert_fires(PACK).assert_parity()
    assert not any(made.operators_after(PACK)[name] for name in ("bmm", "einsum", "matmul"))
    assert made.operators_after(PACK)["nonzero"] == 1, "only places that are picked are computed"


def test_a_written_place_may_count_from_the_end() -> None:
    bench(Model(written), [batch([[-1, 2], [-7, 0]])]).assert_fires(PACK).assert_parity()


def test_a_compared_place_outside_the_sequence_picks_nothing() -> None:
    bench(Model(compared), [batch([[-1, 2], [7, 0], [100, -100]])]).assert_fires(PACK).assert_parity()


@pytest.mark.parametrize("place", [7, -8, 20])
@pytest.mark.parametrize("rows", [written, nn.functional.one_hot])
def test_a_written_place_outside_the_sequence_is_an_error_as_it_was(rows: Callable[[Tensor, int], Tensor], place: int) -> None:
    made = bench(Model(rows)).assert_fires(PACK)
    for model in (made.model, made.fast):
        with pytest.raises((IndexError, RuntimeError), match=r"out of|must be"):
            model(*batch([[place, 2], [1, 0], [3, 4]]))


STAYS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "another number than 1": lambda p, n: written(p, n, 2.0),
    "rows in another order": lambda p, n: written(p, n, backwards=True),
    "several places in a row": lambda p, n: p[:, :, None] >= torch.arange(n),
    "two places in a row": lambda p, n: compared(p, n) | compared(p + 1, n),
}


@pytest.mark.parametrize("name", STAYS)
def test_other_rows_stay_a_product(name: str) -> None:
    made = bench(Model(STAYS[name]))
    assert made.operators_after(PACK)["bmm"] == 1
    made.assert_parity()
