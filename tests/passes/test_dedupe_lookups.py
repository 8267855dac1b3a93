"""dedupe-lookups: programs of an item run once for each distinct item; outputs and gradients stay those of eager."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from item_programs import ITEMS, PROGRAMS, WIDTH, Items, autocast, tower
from loss_models import Recommender, batch, mean
from pass_bench import PassBench, assert_close, run
from torch import Tensor, nn

import gr_compile
from gr_compile.pipeline import PRESETS, Pipeline, PipelineError

DEDUPE = "dedupe-lookups"
ALWAYS = f"canonicalize,eliminate-padding,{DEDUPE}{{least-gain=0}}"
WITH_LOSSES = f"default,{DEDUPE}{{least-gain=0}}"


def ids(*shape: int, seed: int = 0, below: int = ITEMS) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


BATCHES = [(ids(3, 7, 2),), (ids(2, 9, 3, seed=1),), (torch.full((5, 4, 2), 3),)]


def rows_of_places(made: PassBench) -> list[str]:
    """Products with weights that still have a row for every place."""
    places = [str(size) for size in next(n for n in made.graph().graph.nodes if "ids" in n.name).meta["val"].shape]
    return [
        node.name for node in made.graph().graph.nodes
        if node.target is torch.ops.aten.linear.default and "token" not in node.args[1].name
        and [str(size) for size in node.meta["val"].shape[: len(places)]] == places
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------- programs of a row
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_of_rows_runs_by_distinct_id(name: str) -> None:
    made = PassBench(Items(PROGRAMS[name], padding_idx=0), BATCHES, passes=ALWAYS).assert_parity()
    after = made.operators_after(DEDUPE)
    assert made.matches(DEDUPE) and not made.misses(DEDUPE)
    assert after["occurring"] == after["true_places"] == after["numbered"] == len(made.matches(DEDUPE))
    assert rows_of_places(made) == []
    assert len(made.compilations) == 1, "a batch compiled anew"
    again = made.run_again()[-1]
    assert again.name == DEDUPE and not again.changed


@pytest.mark.parametrize("name", ["tower", "features", "gated", "from the end", "twice"])
def test_inductor_compiles_it_once(name: str) -> None:
    made = PassBench(Items(PROGRAMS[name], padding_idx=0), BATCHES, passes=ALWAYS, target="inductor").assert_parity()
    assert len(made.compilations) == 1
    made.batches = [(ids(2, 9, 3, below=1),)]
    with torch.compiler.set_stance("fail_on_recompile"):
        made.assert_parity()
    made.batches = [(ids(0, 7, 2),)]
    made.assert_parity()


def test_all_distinct_and_none_at_all() -> None:
    every = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(1))
    given_ids = [(every[None, :, None],), (torch.zeros(1, 6, 1, dtype=torch.long),), (ids(0, 3, 2),)]
    PassBench(Items(tower, padding_idx=0), given_ids, passes=ALWAYS).assert_fires(DEDUPE).assert_parity()


def test_ids_of_32_bits() -> None:
    PassBench(Items(tower), [(ids(3, 7).int(),)], passes=ALWAYS).assert_fires(DEDUPE).assert_parity()


def test_a_frozen_table() -> None:
    model = Items(tower, padding_idx=2)
    model.items.weight.requires_grad_(False)
    PassBench(model, [(ids(3, 7),)], passes=ALWAYS).assert_fires(DEDUPE).assert_parity()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_tables(dtype: torch.dtype) -> None:
    model = Items(lambda m, i: m.mlp(m.items(i).float()), padding_idx=0)
    model.items.to(dtype)
    made = PassBench(model, [(ids(3, 7),)], passes=ALWAYS).assert_fires(DEDUPE)
    got, want = run(made.fast, made.batches[0]), run(copy.deepcopy(model), made.batches[0])
    assert_close("output", got.outputs[0], want.outputs[0], 1e-5)
    for name, gradient in want.gradients.items():
        assert_close(name, got.gradients[name], gradient, 0.02 if "items" in name else 1e-4)
    assert not got.gradients["items.weight"][0].any()


def test_under_autocast() -> None:
    made = PassBench(Items(autocast), [(ids(3, 7),)], passes=ALWAYS).assert_fires(DEDUPE)
    got, want = run(made.fast, made.batches[0]), run(copy.deepcopy(made.model), made.batches[0])
    assert_close("output", got.outputs[0], want.outputs[0], 0.01)
    for name, gradient in want.gradients.items():
        assert_close(name, got.gradients[name], gradient, 0.05)


def test_without_gradients_and_deterministic() -> None:
    model, (given_ids,) = Items(tower, padding_idx=0), BATCHES[0]
    fast = gr_compile.optimize(model, passes=ALWAYS, target="inductor", dynamic=True)
    with torch.no_grad():
        assert_close("output", fast(given_ids), model(given_ids), 1e-5)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run(fast, (given_ids,)) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first.outputs[0], second.outputs[0])
    assert all(torch.equal(first.gradients[name], second.gradients[name]) for name in first.gradients)


@pytest.mark.parametrize("target", ["eager", "inductor"])
@pytest.mark.parametrize("wrong", [ITEMS, -2])
def test_an_id_outside_of_the_table_is_named(wrong: int, target: str) -> None:
    fast = gr_compile.optimize(Items(tower), passes=ALWAYS, target=target, dynamic=True)
    given_ids = ids(3, 7)
    given_ids[1, 4] = wrong
    with pytest.raises(IndexError, match=rf"id {wrong} at place \[1, 4\]"):
        fast(given_ids)


# ------------------------------------------------------------------------------------------- several tensors of ids
class Retrieval(nn.Module):
    """States, targets and negatives go through one tower."""

    def __init__(self, items: int = ITEMS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(items, WIDTH, padding_idx=0)
        self.mlp, self.state = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, WIDTH)), nn.Linear(WIDTH, WIDTH)

    def tower(self, i: Tensor) -> Tensor:
        return F.normalize(self.mlp(self.items(i)), dim=-1)

    def forward(self, inputs: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
        x = self.state(self.tower(inputs).flip(1))
        logits = torch.einsum("bnd,bnrd->bnr", x, self.tower(negatives))
        return torch.cat([(x * self.tower(targets)).sum(-1, keepdim=True), logits], -1).log_softmax(-1)[..., 0]


def retrieval(b: int, n: int, r: int, items: int = ITEMS) -> tuple[Tensor, ...]:
    return ids(b, n, below=items), ids(b, n, seed=1, below=items), ids(b, n, r, seed=2, below=items)


def test_ids_whose_rows_go_through_one_program_are_taken_together() -> None:
    made = PassBench(Retrieval(), [retrieval(3, 7, 4), retrieval(2, 5, 3)], passes=ALWAYS).assert_parity()
    before, after = made.operators_before(DEDUPE), made.operators_after(DEDUPE)
    (match,) = made.matches(DEDUPE)
    assert "3 tensors of ids" in match.what
    assert (after["occurring"], after["numbered"]) == (1, 3)
    assert before["linear"] == 7 and after["linear"] == 3, "the tower's two, and that of states"
    assert before["embedding"] == 3 and after["embedding"] == 4, "one lookup of items, three of rows"


def test_products_with_rows_of_a_tower_are_fused_then() -> None:
    made = PassBench(Retrieval(), [retrieval(3, 7, 4)], passes=WITH_LOSSES, target="inductor").assert_parity()
    after = made.operators_after("fuse-sampled-logits")
    assert after["sampled_logits"] == 1 and after["einsum"] == 0
    assert not PassBench(Retrieval(), [retrieval(3, 7, 4)]).matches("fuse-sampled-logits")


def test_ids_that_are_made_of_rows_come_later() -> None:
    def chosen(m: Items, i: Tensor) -> Tensor:
        x = tower(m, i)
        return x + tower(m, x.argmax(-1))

    made = PassBench(Items(chosen), [(ids(3, 7),)], passes=ALWAYS).assert_parity()
    assert [match.what.split(", ")[1] for match in made.matches(DEDUPE)] == ["1 tensor of ids"] * 2


def _loss_of_a_tower(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, negatives: Tensor, _: Tensor) -> Tensor:
    def rows(i: Tensor) -> Tensor:
        return F.normalize(m.o(m.items(i)), dim=-1)

    logits = torch.cat([(x * rows(t)).sum(-1, keepdim=True), torch.einsum("bnd,bnrd->bnr", x, rows(negatives))], -1)
    return mean(-F.log_softmax(logits, -1)[..., 0], mask)


def test_packed_tokens_and_padding_that_holds_anything() -> None:
    """No id of a padded place is looked up: what stands there changes nothing."""
    batches = [batch([3, 5, 1, 0], 6, 3), batch([6, 2, 9], 8, 3), batch([0, 0], 8, 3)]
    made = PassBench(Recommender(_loss_of_a_tower), batches, passes=WITH_LOSSES).assert_fires("eliminate-padding", DEDUPE)
    made.assert_parity()
    items, targets, negatives, others = batches[0]
    junk = (items, torch.where(items != 0, targets, 17), torch.where((items != 0)[..., None], negatives, 23), others)
    first, second = run(made.fast, batches[0]), run(made.fast, junk)
    assert torch.equal(first.outputs[0], second.outputs[0])
    assert all(torch.equal(first.gradients[name], second.gradients[name]) for name in first.gradients)
    assert len(made.compilations) == 1


def test_an_id_of_another_sequence_changes_nothing() -> None:
    made = PassBench(Items(tower), [(ids(3, 7),)], passes=ALWAYS)
    states: list[Tensor] = []
    model = nn.Sequential(nn.Embedding(ITEMS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh())
    fast = gr_compile.optimize(lambda i: model(i), passes=ALWAYS, target="eager", dynamic=True)
    for edited in (0, 11):
        given_ids = made.batches[0][0].clone()
        given_ids[2] += edited
        states.append(fast(given_ids % ITEMS))
    assert torch.equal(states[0][:2], states[1][:2]) and not torch.equal(states[0][2], states[1][2])


@settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 5), st.integers(1, 6), st.integers(1, 3), st.integers(1, ITEMS), st.integers(0, 10_000))
def test_of_any_sizes_and_ids(b: int, n: int, r: int, below: int, seed: int) -> None:
    model, fast = _COMPILED
    given_ids = ids(b, n, r, seed=seed, below=below)
    got, want = run(fast, (given_ids,)), run(model, (given_ids,))
    assert_close("output", got.outputs[0], want.outputs[0], 1e-5)
    for name, gradient in want.gradients.items():
        assert_close(name, got.gradients[name], gradient, 1e-4, 1e-3)


def _compiled() -> tuple[nn.Module, nn.Module]:
    model = Items(PROGRAMS["features"], padding_idx=0)
    return model, gr_compile.optimize(copy.deepcopy(model), passes=ALWAYS, target="eager", dynamic=True)


_COMPILED = _compiled()


# ------------------------------------------------------------------------------------------- what it leaves
def _with_positions(m: Items, i: Tensor) -> Tensor:
    return m.mlp(m.items(i) + torch.arange(i.shape[-1])[:, None].float().sin())


def _with_dropout(m: Items, i: Tensor) -> Tensor:
    return m.mlp(F.dropout(m.items(i), 0.5, True))


def _centred(m: Items, i: Tensor) -> Tensor:
    return m.mlp(m.items(i) - m.items(i).mean((0, 1), keepdim=True))


def _cumulative(m: Items, i: Tensor) -> Tensor:
    return m.mlp(m.items(i).cumsum(1))


MISSES: dict[str, tuple[Callable[[Items, Tensor], Tensor], str]] = {
    "too little is computed of rows": (lambda m, i: m.items(i), ""),
    "which is no value of the id alone": (_with_positions, "arange"),
    "draws other numbers at every place": (_with_dropout, "dropout"),
    "cumsum.default mixes places": (_cumulative, "cumsum"),
    "mean.dim mixes places": (_centred, "mean"),
}


@pytest.mark.parametrize("reason", MISSES)
def test_it_says_why_not_and_where(reason: str) -> None:
    body, line = MISSES[reason]
    passes = f"canonicalize,{DEDUPE}"
    made = PassBench(Items(body), [(ids(3, 7),)], passes=passes)
    found = [miss for miss in made.misses(DEDUPE) if reason in miss.reason]
    assert found and not made.matches(DEDUPE), [str(miss) for miss in made.misses(DEDUPE)]
    assert "accesses" in found[0].reason and found[0].where is not None and line in found[0].where.code
    if line != "dropout":
        made.assert_parity()


@pytest.mark.parametrize("body", [_with_positions, _centred, _cumulative])
def test_what_meets_its_place_is_computed_there(body: Callable[[Items, Tensor], Tensor]) -> None:
    """With the gate open, too."""
    made = PassBench(Items(body), [(ids(3, 7),)], passes=ALWAYS).assert_parity()
    assert made.operators_after("final")["linear"] == made.operators_before("eliminate-padding")["linear"]


def test_dropout_is_drawn_for_every_place() -> None:
    model = nn.Sequential(nn.Embedding(ITEMS, 64), nn.Linear(64, 64), nn.Dropout(0.5), nn.Linear(64, 64))
    fast = gr_compile.optimize(lambda i: model(i), passes=ALWAYS, target="eager", dynamic=True)
    first, second = fast(torch.full((1, 2), 3))[0]
    assert not torch.allclose(first, second)
    assert [r.operators_after["aten.dropout.default"] for r in gr_compile.report(fast)[0].passes][-1] == 1


@pytest.mark.parametrize("options", [{"sparse": True}, {"scale_grad_by_freq": True}])
def test_gradients_that_are_no_sum_of_rows_are_left(options: dict[str, Any]) -> None:
    made = PassBench(Items(tower, **options), [(ids(3, 7),)], passes=ALWAYS)
    assert not made.matches(DEDUPE)
    assert "leave sparse=True" in made.assert_misses(DEDUPE, "sparse, or scaled by how often", "m.items(ids)").hint
    got, want = run(made.fast, made.batches[0]), run(copy.deepcopy(made.model), made.batches[0])
    assert_close("gradient", *(r.gradients["items.weight"].to_dense() for r in (got, want)), 1e-4)


def test_rows_that_are_cut_to_a_norm_run_as_torch_compile_would_run_them() -> None:
    model = Items(tower, max_norm=0.5)
    fast = gr_compile.optimize(copy.deepcopy(model), passes=ALWAYS, target="eager")
    assert_close("output", fast(ids(3, 7)), model(ids(3, 7)), 1e-5)
    assert "changed in place" in gr_compile.report(fast)[0].not_captured.reason


def test_a_bag_of_rows_is_no_lookup() -> None:
    model = nn.Sequential(nn.EmbeddingBag(ITEMS, WIDTH), nn.Linear(WIDTH, 1))
    made = PassBench(model, [(ids(3, 7),)], passes=ALWAYS).assert_parity()
    assert not made.matches(DEDUPE) and not made.misses(DEDUPE)


def test_rows_of_the_whole_catalogue_are_distinct() -> None:
    made = PassBench(Items(lambda m, i: tower(m, torch.arange(ITEMS))[i]), [(ids(3, 7),)], passes=ALWAYS).assert_parity()
    made.assert_misses(DEDUPE, "do not come from the data", "m.items(ids)")
    assert not any("embedding" in match.node_name for match in made.matches(DEDUPE))


# ------------------------------------------------------------------------------------------- the gate
class Large(nn.Module):
    def __init__(self, items: int, width: int) -> None:
        super().__init__()
        self.items, self.mlp = nn.Embedding(items, width), nn.Sequential(nn.Linear(width, width), nn.GELU())

    def forward(self, given_ids: Tensor) -> Tensor:
        return self.mlp(self.items(given_ids))


@pytest.mark.parametrize("items, places, options, fires", [
    (1000, 8000, "", True),  # about 1,000 distinct
    (100_000, 8000, "", False),  # about 7,700
    (100_000, 8000, "{distinct=0.2}", True),
    (1000, 8000, "{distinct=0.9}", True),  # there are 1,000 rows all the same
    (1000, 8000, "{least-gain=20}", False),
    (40, 200, "", False),  # finding them takes longer than computing the rows
])  # fmt: skip
def test_the_gate(items: int, places: int, options: str, fires: bool) -> None:
    given_ids = ids(places // 100, 100, below=items)
    made = PassBench(Large(items, 32), [(given_ids,)], passes=f"canonicalize,{DEDUPE}{options}", target="eager")
    told = made.matches(DEDUPE) if fires else made.misses(DEDUPE)
    assert len(told) == 1 and len(made.matches(DEDUPE)) == fires
    said = told[0].detail if fires else told[0].reason  # type: ignore[union-attr]
    assert f"of {places:,} ids distinct among {items:,} rows expected" in said and "accesses" in said
    made.assert_parity()


class Categories(nn.Module):
    """Most of the work depends on the item's category alone, the rest on the item."""

    def __init__(self, items: int, categories: int) -> None:
        super().__init__()
        self.items, self.categories = nn.Embedding(items, 8), nn.Embedding(categories, 32)
        self.register_buffer("category_of", torch.randint(categories, (items,)))
        self.mlp = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 32), nn.ReLU())
        self.both = nn.Linear(40, 64)

    def forward(self, given_ids: Tensor) -> Tensor:
        category = self.mlp(self.categories(self.category_of[given_ids]))
        return self.both(torch.cat([self.items(given_ids), category], -1))


def test_categories_of_distinct_items_are_taken_after_the_items() -> None:
    given_ids = ids(60, 200, below=9000)
    made = PassBench(Categories(9000, 20), [(given_ids,)], passes=f"canonicalize,{DEDUPE}").assert_parity()
    first, second = made.matches(DEDUPE)
    assert "among 9,000 rows" in first.detail and "among 20 rows" in second.detail
    assert rows_of_places(made) == []


def test_the_estimate_is_what_draws_of_equal_probability_give() -> None:
    from gr_compile.passes.dedupe_lookups.profit import expected_distinct

    generator = torch.Generator().manual_seed(0)
    for rows, places in ((1000, 300), (1000, 5000), (7, 3)):
        counts = [len(torch.randint(rows, (places,), generator=generator).unique()) for _ in range(200)]
        mean_count = sum(counts) / len(counts)
        assert abs(expected_distinct(places, rows) - mean_count) < 0.02 * mean_count + 0.05
        popularity = 1 / torch.arange(1.0, rows + 1)
        skewed = torch.multinomial(popularity.expand(50, -1), places, replacement=True, generator=generator)
        assert sum(len(row.unique()) for row in skewed) / 50 <= expected_distinct(places, rows)
    assert expected_distinct(0, 10) == 0 and expected_distinct(5, 1) == 1


def test_packed_tokens_are_counted_by_the_expected_fill() -> None:
    for fill, fires in ((0.9, True), (0.02, False)):
        torch._dynamo.reset()

        class Padded(Large):
            def forward(self, given_ids: Tensor) -> Tensor:
                rows = super().forward(given_ids)
                return (rows * (given_ids != 0)[..., None]).sum()

        passes = f"canonicalize,eliminate-padding,{DEDUPE}"
        options = {"expected_fill": fill, "padding": {"given_ids": 0}}
        made = PassBench(Padded(2000, 32), [(ids(80, 100, below=2000),)], passes=passes, options=options)
        assert bool(made.matches("eliminate-padding")) and bool(made.matches(DEDUPE)) == fires


def test_it_is_on_by_name_only_and_before_the_losses() -> None:
    for preset in PRESETS:
        assert DEDUPE not in Pipeline.parse(preset, "inductor").text()
    order = [item.name for item in Pipeline.parse(f"{DEDUPE},share-logits,default").passes]
    assert order.index("eliminate-padding") < order.index(DEDUPE) < order.index("fuse-sampled-logits")
    for wrong in ("least-gain=0.5", "distinct=1.5", "distinct=-1"):
        with pytest.raises(PipelineError, match=wrong.split("=")[0]):
            Pipeline.parse(f"{DEDUPE}{{{wrong}}}")
