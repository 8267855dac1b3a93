"""Activations that a model keeps jagged between fbgemm's operators: the round trips go, or stay with a reason."""

from __future__ import annotations

from collections.abc import Callable

import jagged_operators
import pytest
import torch
import torch.nn.functional as F
from pass_bench import FUSE, PACK, PassBench
from torch import Tensor, nn

jagged_operators.define()
pytestmark = pytest.mark.filterwarnings("ignore:At pre-dispatch tracing")
fbgemm = torch.ops.fbgemm
N, D, HEADS, ITEMS = 6, 8, 2, 20
LENGTHS = [[3, 6, 0, 1], [6, 6], [1, 9, 2], [0, 0, 0], [0, 1]]
"""One sequence is longer than N: fbgemm gives 0 for rows that have no place, and leaves them out."""
ROUND_TRIPS = ("dense_to_jagged", "jagged_to_padded_dense")


def batch(lengths: list[int], junk: bool = False) -> tuple[Tensor, Tensor]:
    given = torch.tensor(lengths)
    ids = torch.randint(1, ITEMS, (len(lengths), N), generator=torch.Generator().manual_seed(len(lengths)))
    return (ids if junk else ids * (torch.arange(N) < given[:, None])), given


BATCHES = [batch(lengths) for lengths in LENGTHS]


class Attention(nn.Module):
    """HSTU's attention with jagged values around it; the causal mask is a float buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.register_buffer("seen", torch.ones(N, N).tril())

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        def padded(values: Tensor) -> Tensor:
            return fbgemm.jagged_to_padded_dense(values, [offsets], [N], 0.0).view(-1, N, HEADS, D // HEADS)

        q, k, v = (padded(part) for part in self.project(F.layer_norm(x, (D,))).split(D, 1))
        weights = F.silu(torch.einsum("bnhd,bmhd->bhnm", q, k)) / N * self.seen
        mixed = torch.einsum("bhnm,bmhd->bnhd", weights, v).reshape(-1, N, D)
        return x + self.out(fbgemm.dense_to_jagged(mixed, [offsets])[0])


class Model(nn.Module):
    """ids -> jagged -> `middle` -> padded."""

    def __init__(self, middle: Callable[..., Tensor] | nn.Module, readout: Callable[[Tensor], Tensor] = torch.sin) -> None:
        super().__init__()
        self.items, self.middle, self.readout = nn.Embedding(ITEMS, D, padding_idx=0), middle, readout

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        offsets = fbgemm.asynchronous_complete_cumsum(lengths)
        x = fbgemm.dense_to_jagged(self.items(ids), [offsets])[0]
        return self.readout(fbgemm.jagged_to_padded_dense(self.middle(x, offsets), [offsets], [N], 0.0))


def bench(model: nn.Module, batches: list[tuple[Tensor, Tensor]] = BATCHES, **options: object) -> PassBench:
    torch.manual_seed(0)
    return PassBench(model.double(), batches, dynamic=False, **options)  # type: ignore[arg-type]


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Attention() for _ in range(2))

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, offsets)
        return x


# ------------------------------------------------------------------------------------------------- it fires
@pytest.fixture(scope="module")
def attention() -> PassBench:
    return bench(Model(Blocks()))


def test_the_round_trips_go_and_attention_is_fused_between_packed_tokens(attention: PassBench) -> None:
    attention.assert_fires(PACK, FUSE).assert_parity()
    before, after = attention.operators_before(PACK), attention.operators_after(FUSE)
    assert [before[name] for name in ROUND_TRIPS] == [3, 7]
    assert [after[name] for name in (*ROUND_TRIPS, "einsum", "where")] == [0, 0, 0, 0]
    assert after["jagged_attention"] == 2 and after["nonzero"] == 1 and after["unpack"] == 1


def test_one_graph_runs_batches_of_one_size_whatever_their_lengths(attention: PassBench) -> None:
    known = len(attention.compilations)
    for lengths in ([6, 0, 0, 2], [1, 1, 7, 1], [0, 0, 0, 0]):
        attention.fast(*batch(lengths))
    assert len(attention.compilations) == known


def test_a_second_run_finds_nothing(attention: PassBench) -> None:
    assert [len(record.matches) for record in attention.run_again(f"{PACK},{FUSE}")] == [0, 0]


def test_junk_at_padded_places_changes_nothing(attention: PassBench) -> None:
    clean, dirty = (attention.fast(*batch([3, 6, 0, 1], junk=junk)) for junk in (False, True))
    assert clean.equal(dirty)


def test_no_sequence_reads_another(attention: PassBench) -> None:
    ids, lengths = batch([3, 6, 0, 1])
    other = ids.clone()
    other[1] = 1 + ids[1] % (ITEMS - 1)
    got, want = attention.fast(other, lengths), attention.fast(ids, lengths)
    assert got[[0, 2, 3]].equal(want[[0, 2, 3]]) and not got[1].equal(want[1])


def test_offsets_that_are_given_serve_as_well() -> None:
    class Given(Model):
        def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
            x = fbgemm.dense_to_jagged(self.items(ids), [offsets])[0]
            return fbgemm.jagged_to_padded_dense(self.middle(x, offsets), [offsets], [N], 0.0)

    batches = [(ids, F.pad(lengths.cumsum(0), (1, 0))) for ids, lengths in BATCHES]
    made = bench(Given(Attention()), batches).assert_fires(PACK, FUSE).assert_parity()
    assert not any(made.operators_after(PACK)[name] for name in ROUND_TRIPS)


@pytest.mark.parametrize("mode", ["mode=bucket,multiple=4", "mode=host"])
def test_however_the_tokens_are_counted(mode: str) -> None:
    """A bucket is filled with padded places, whose keys must stay 0."""
    made = bench(Model(Attention()), passes=f"canonicalize,{PACK}{{{mode}}},{FUSE}").assert_fires(PACK, FUSE)
    assert not any(made.operators_after(PACK)[trip] for trip in ROUND_TRIPS)
    assert made.operators_after(PACK)["where"] == (4 if "bucket" in mode else 0)
    made.assert_parity()


def test_a_padding_value_is_kept() -> None:
    class Padded(Model):
        def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
            offsets = fbgemm.asynchronous_complete_cumsum(lengths)
            x = fbgemm.dense_to_jagged(self.items(ids), [offsets])[0]
            return fbgemm.jagged_to_padded_dense(F.gelu(self.middle(x)), [offsets], [N], -2.5)

    bench(Padded(nn.Linear(D, D))).assert_fires(PACK).assert_parity()


# ------------------------------------------------------------------------------------- operators over rows
class OverRows(nn.Module):
    """One operator over rows, with weights where it wants them."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.randn(D, D)), function

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        return self.function(F.gelu(x @ self.weight), self.weight)


def by_heads(x: Tensor) -> Tensor:
    return x.view(x.shape[0], HEADS, -1)


ROWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mm": lambda x, w: torch.mm(x, w),
    "addmm": lambda x, w: torch.addmm(w[0], x, w),
    "linear": lambda x, w: F.linear(x, w, w[0]),
    "einsum with a weight for each head": lambda x, w: torch.einsum("thd,hde->the", by_heads(x), w.view(HEADS, 4, D)).flatten(1),
    "a product for each row": lambda x, w: (by_heads(x).transpose(1, 2) @ by_heads(x)).flatten(1),
    "softmax": lambda x, w: x.softmax(1),
    "softmax from the end": lambda x, w: by_heads(x).softmax(-2).flatten(1),
    "layer_norm": lambda x, w: F.layer_norm(x, (D,), w[0], w[1]),
    "rms_norm": lambda x, w: F.rms_norm(x, (D,)),
    "chunk": lambda x, w: torch.mul(*x.chunk(2, 1)),
    "unbind": lambda x, w: torch.add(*by_heads(x).unbind(1)),
    "glu": lambda x, w: F.glu(x, 1),
    "cat": lambda x, w: torch.cat([x, x.sin()], 1),
    "stack": lambda x, w: torch.stack([x, x.cos()], 1).flatten(1),
    "slice": lambda x, w: x[:, 2:5],
    "select": lambda x, w: by_heads(x)[:, 1],
    "permute": lambda x, w: by_heads(x).permute(0, 2, 1).reshape(x.shape[0], -1),
    "mean": lambda x, w: x - x.mean(1, keepdim=True),
    "sum of heads": lambda x, w: by_heads(x).sum(-1),
    "norm": lambda x, w: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-3),
    "expand": lambda x, w: x[:, :1].expand(-1, D) * w[0],
    "gather": lambda x, w: x.gather(1, x.argmax(1, keepdim=True)).expand(-1, D),
    "embedding of a bucket": lambda x, w: F.embedding(x[:, 0].abs().mul(3).long().clamp(max=D - 1), w),
    "row of weights": lambda x, w: x * w[:1] + w[0],
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_an_operator_over_rows_is_one_over_places(name: str) -> None:
    made = bench(Model(OverRows(ROWS[name])), BATCHES[:3]).assert_fires(PACK).assert_parity()
    for compilation in range(len(made.compilations)):
        assert not any(made.operators_after(PACK, compilation)[trip] for trip in ROUND_TRIPS)


def test_dropout_drops_the_same_share_of_rows() -> None:
    torch.manual_seed(0)
    made = bench(Model(lambda x, offsets: F.dropout(torch.ones_like(x), 0.25), torch.clone), [batch([6, 6, 3, 0] * 50)])
    assert not any(made.operators_after(PACK)[trip] for trip in ROUND_TRIPS)
    ids, lengths = made.batches[0]
    found = made.fast(ids, lengths)[torch.arange(N) < lengths[:, None]]
    assert set(found.unique().tolist()) == {0.0, 1 / 0.75}
    assert abs(float((found == 0).double().mean()) - 0.25) < 0.03


# --------------------------------------------------------------------------------------------- near misses
def at_another_length(x: Tensor, offsets: Tensor) -> Tensor:
    return fbgemm.jagged_to_padded_dense(x, [offsets], [N + 2], 0.0).sum(1)


class Read(nn.Module):
    """What `function` makes of the jagged values is returned."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.items, self.inner, self.function = nn.Embedding(ITEMS, D), nn.Linear(D, D), function

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        offsets = fbgemm.asynchronous_complete_cumsum(lengths)
        return self.function(self.inner(fbgemm.dense_to_jagged(self.items(ids), [offsets])[0]), offsets)


def back(x: Tensor, offsets: Tensor) -> Tensor:
    return fbgemm.jagged_to_padded_dense(x, [offsets], [N], 0.0)


STAYS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "returned": (lambda x, o: x, "returns a jagged value"),
    "another length": (at_another_length, "padded to another length"),
    "sum over rows": (lambda x, o: x.sum(0), "aten.sum.dim_IntList may read jagged rows elsewhere"),
    "softmax over rows": (lambda x, o: back(x.softmax(0), o), "aten.softmax.int may read jagged rows elsewhere"),
    "cumulative": (lambda x, o: back(x.cumsum(0), o), "aten.cumsum.default may read jagged rows elsewhere"),
    "backwards": (lambda x, o: back(x.flip(0), o), "aten.flip.default may read jagged rows elsewhere"),
    "products of rows": (lambda x, o: back(x @ (x.T @ x), o), "aten.matmul.default may read jagged rows elsewhere"),
    "a transposed product": (lambda x, o: back((x.T * 2.0).T, o), "may read jagged rows elsewhere"),
    "the number of rows": (lambda x, o: back(x / (x.shape[0] + 1), o), "the number of jagged rows is used as a number"),
    "rows of another kind": (
        lambda x, o: back(x + torch.arange(x.shape[0], dtype=x.dtype)[:, None], o), "aten.add.Tensor may read jagged rows"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_values_whose_rows_are_read_otherwise_stay_jagged_and_right(name: str) -> None:
    function, reason = STAYS[name]
    made = bench(Read(function), BATCHES[:3])
    assert any(reason in str(miss) and "stay jagged" in miss.reason for miss in made.misses(PACK)), made.misses(PACK)
    assert all(made.operators_before(PACK)[trip] == made.operators_after(PACK)[trip] for trip in ROUND_TRIPS)
    made.assert_parity()


def test_values_stay_jagged_where_every_place_would_be_computed() -> None:
    """Packing is declined, and over places the layer would run on all of them."""
    made = bench(Model(OverRows(ROWS["linear"])), BATCHES[:1], passes=f"canonicalize,{PACK}{{min-saving=0.99}}")
    assert any("as places, aten.matmul.default would run over all of them" in miss.reason for miss in made.misses(PACK))
    assert all(made.operators_before(PACK)[trip] == made.operators_after(PACK)[trip] for trip in ROUND_TRIPS)
    made.assert_parity()


def test_values_over_two_offsets_meet_in_no_row() -> None:
    class Two(Model):
        def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
            first, second = (fbgemm.asynchronous_complete_cumsum(x) for x in (lengths, lengths.flip(0)))
            x, y = (fbgemm.dense_to_jagged(self.items(ids), [o])[0] for o in (first, second))
            return fbgemm.jagged_to_padded_dense(self.middle(x * y), [first], [N], 0.0)

    made = bench(Two(nn.Linear(D, D)), BATCHES[:3])
    assert any("may read jagged rows elsewhere" in miss.reason for miss in made.misses(PACK)), made.misses(PACK)
    made.assert_parity()


def test_a_family_is_left_alone_where_the_pass_is_not_allowed_to() -> None:
    made = bench(Model(Attention()), BATCHES[:1], options={"padding": "none"})
    assert all(made.operators_before(PACK)[trip] == made.operators_after(PACK)[trip] for trip in ROUND_TRIPS)
    made.assert_parity()
