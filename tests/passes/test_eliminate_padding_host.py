"""mode=host: packed tokens are counted before the graph runs; the graph itself asks nothing of the data."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from padded_models import Data, Parts, Recommender, data
from pass_bench import FUSE, PACK, PassBench, data_dependent
from test_zoo_models import MODELS, batches
from torch import Tensor, nn
from torch._inductor.compile_fx import compile_fx, compile_fx_inner

from gr_compile.host_sizes import split
from gr_compile.lowering.eager import EagerTarget

HOST = f"canonicalize,{PACK}{{mode=host}},{FUSE}"
BATCHES = [
    data([3, 6, 1], 6), data([5, 1, 9, 2], 7, seed=1), data([0, 2, 0], 5, seed=2), data([0, 0], 4, seed=3),
    data([4, 2, 5], 6, seed=4, junk=True),
]  # fmt: skip
LEFT = [data([3, 6, 1], 6, side="left"), data([5, 0, 9], 7, side="left", seed=1)]
HOLES = [data([3, 6, 1], 6, holes=True), data([5, 2, 9], 7, holes=True, seed=1)]
TOKENWISE = Parts(spelling="none")

# parts of a recommender, batches, how many counts its graph has
SPELLINGS: dict[str, tuple[Parts, list[Data], int]] = {
    "loss": (Parts(masking="fill min"), BATCHES, 1),
    "token-wise": (TOKENWISE, BATCHES, 1),
    "silu attention with time bias": (Parts(activation="silu", masking="mul", bias="time"), BATCHES, 1),
    "sdpa, last place": (Parts(spelling="sdpa", readout="last_by_gather"), BATCHES[:2], 1),
    "left padding": (TOKENWISE.but(readout="last_column"), LEFT, 1),
    "holes": (TOKENWISE.but(readout="bce"), HOLES, 1),
    "a sequence and the one cut short": (TOKENWISE.but(readout="cross_entropy_shifted"), BATCHES, 2),
    "every place is an output": (TOKENWISE.but(readout="zeroed_places"), BATCHES, 1),
}


def bench(model: nn.Module, given: list[tuple[Any, ...]], **options: Any) -> PassBench:
    return PassBench(model, given, passes=HOST, **options)


def recommender(parts: Parts, given: list[Data], **options: Any) -> PassBench:
    torch.manual_seed(0)
    return bench(Recommender(parts).double(), [d.args() for d in given], **options)


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_graph_takes_its_counts_as_inputs_and_is_right(name: str) -> None:
    parts, given, counts = SPELLINGS[name]
    made = recommender(parts, given).assert_fires(PACK).assert_parity()
    assert not [miss for miss in made.misses(PACK) if "stays inside" in miss.reason]
    for compilation in range(len(made.compilations)):
        cut = split(made.graph(compilation=compilation))
        assert cut is not None and len(cut.sizes) == counts
        assert data_dependent(cut.main) == []


def test_states_at_a_mask_are_counted_outside_and_targets_at_it_where_the_model_says() -> None:
    made = recommender(TOKENWISE.but(readout="cross_entropy_of_masked_rows"), BATCHES).assert_fires(PACK).assert_parity()
    cut = split(made.graph())
    assert cut is not None and len(cut.sizes) == 2
    (left,) = data_dependent(cut.main)
    assert "targets" in str(next(n for n in cut.main.graph.nodes if n.name == left).args[0])


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", ["hstu", "sasrec"])
def test_whole_models(name: str, training: bool) -> None:
    make, changed = MODELS[name]
    torch.manual_seed(0)
    made = bench(make(**changed).train(training), batches(name, training)).assert_fires(PACK, FUSE)
    made.assert_parity(gradients=training)
    cut = split(made.graph(compilation=0))
    assert cut is not None and len(cut.sizes) == 1 and data_dependent(cut.main) == []


def test_one_graph_is_dumped_verified_and_bisected_and_only_the_target_sees_two(monkeypatch: pytest.MonkeyPatch) -> None:
    lowered: list[torch.fx.GraphModule] = []
    compile_eagerly = EagerTarget.compile

    def watched(self: EagerTarget, graph_module: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        lowered.append(graph_module)
        return compile_eagerly(self, graph_module, inputs)

    monkeypatch.setattr(EagerTarget, "compile", watched)
    made = recommender(SPELLINGS["token-wise"][0], BATCHES[:2], options={"verify": "numerics"}).assert_fires(PACK)
    placeholders = [len(graph.graph.find_nodes(op="placeholder")) for graph in (made.graph("captured"), made.graph())]
    assert placeholders[0] == placeholders[1] == len(lowered[-1].graph.find_nodes(op="placeholder")) - 1
    assert made.operators_after(PACK)["count_true"] == 1 and made.operators_after(PACK)["nonzero"] == 0
    assert made.reports[-1].facts["sizes counted before the graph"] == "1"


def test_what_inductor_compiles_forward_and_backward_asks_nothing_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.fx.GraphModule] = []

    def inner(graph_module: torch.fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        compiled.append(graph_module)
        return compile_fx_inner(graph_module, *args, **kwargs)

    watched = functools.partial(compile_fx, inner_compile=inner)
    monkeypatch.setattr("gr_compile.lowering.inductor.compile_fx", watched)
    with torch._inductor.config.patch(force_disable_caches=True):
        made = recommender(SPELLINGS["loss"][0], BATCHES[:3], target="inductor").assert_fires().assert_parity()
    assert len(made.compilations) == 1 and len(compiled) == 2
    assert [data_dependent(graph) for graph in compiled] == [[], []]


# ------------------------------------------------------------------------------------------------ near misses
class Gated(nn.Module):
    """Embedding and feed-forward under a loss over the places that `keep` chooses."""

    def __init__(self, keep: Callable[..., Tensor]) -> None:
        super().__init__()
        self.items, self.feed, self.head = nn.Embedding(21, 8), nn.Linear(8, 8), nn.Linear(8, 21)
        self.keep = keep

    def forward(self, ids: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        x = self.head(F.gelu(self.feed(self.items(ids))))
        kept = torch.where(self.keep(self, ids, weights), targets, 0)
        return F.cross_entropy(x.flatten(0, 1), kept.flatten(), ignore_index=0, reduction="sum")


NEAR_MISSES: dict[str, tuple[Callable[..., Tensor], str, str]] = {
    "a function of the weights": (
        lambda m, ids, weights: F.softplus(weights) > 0.9, "floating-point arithmetic (aten.softplus", "F.softplus(weights)",
    ),
    "weights above their mean": (
        lambda m, ids, weights: weights > weights.mean(), "floating-point arithmetic (aten.mean", "weights.mean()",
    ),
    "the first of the sorted": (lambda m, ids, weights: ids.argsort(1) < 3, "aten.argsort", "ids.argsort(1)"),
}  # fmt: skip


def gated(keep: Callable[..., Tensor]) -> PassBench:
    torch.manual_seed(0)
    weights = [torch.rand(d.ids.shape, dtype=torch.float64) for d in BATCHES[:3]]
    return bench(Gated(keep).double(), [(d.ids, d.targets, w) for d, w in zip(BATCHES, weights)])


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_count_that_may_round_otherwise_outside_stays_inside_and_is_right(name: str) -> None:
    keep, reason, line = NEAR_MISSES[name]
    made = gated(keep).assert_fires(PACK)
    miss = made.assert_misses(PACK, "stays inside the graph", line)
    assert reason in miss.reason and "integer and boolean inputs" in miss.hint
    assert made.operators_after(PACK)["nonzero"] == 1 and made.operators_after(PACK)["count_true"] == 0
    assert split(made.graph()) is None
    made.assert_parity()


def test_weights_that_are_only_compared_are_no_hindrance() -> None:
    made = gated(lambda m, ids, weights: weights > 0.5).assert_fires(PACK).assert_parity()
    assert split(made.graph()) is not None


def test_a_target_without_the_kernels_packs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EagerTarget, "supports", lambda self, operator: "true_places" not in operator)
    made = recommender(SPELLINGS["loss"][0], BATCHES[:2]).assert_fires()
    assert any("no kernel for gr::count_true" in miss.reason for miss in made.misses(PACK))
    assert made.operators_after(PACK)["nonzero"] == 1
    made.assert_parity()


# ------------------------------------------------------------------------------------------- running again
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_second_run_changes_nothing(name: str) -> None:
    parts, given, _ = SPELLINGS[name]
    made = recommender(parts, given[:1])
    for record in made.run_again(f"{PACK}{{mode=host}},{FUSE}"):
        assert not record.changed, record.matches
