"""Whole models of the zoo, training and inference: nothing dense is left, and the numbers are eager's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pass_bench import FUSE, PACK, PassBench, operators, pair_values
from torch import Tensor, nn

import gr_compile.model_zoo as zoo

SIZES: dict[str, Any] = {"num_items": 30, "max_seq_len": 12, "embedding_dim": 8, "num_layers": 2, "dropout": 0.0}
TOKEN_WISE = {"linear", "matmul", "mm", "addmm", "layer_norm", "gelu", "silu", "relu", "embedding"}


def hstu(**changed: Any) -> nn.Module:
    return zoo.HSTU(zoo.HSTUConfig(**SIZES, attention_dim=4, linear_dim=6, num_time_buckets=16, **changed))


def fuxi(**changed: Any) -> nn.Module:
    return zoo.FuXi(zoo.FuXiConfig(**SIZES, attention_dim=4, linear_dim=6, num_time_buckets=16, **changed))


def stu(**changed: Any) -> nn.Module:
    return zoo.STU(zoo.STUConfig(**SIZES, attention_dim=4, hidden_dim=6, num_time_buckets=16, **changed))


def sasrec(**changed: Any) -> nn.Module:
    return zoo.SASRec(zoo.SASRecConfig(**SIZES, feedforward_dim=16, layer_norm_eps=1e-5, **changed))


MODELS = {
    "hstu": (hstu, {}),
    "hstu, u concatenated": (hstu, {"concat_u": True}),
    "fuxi": (fuxi, {}),
    "stu": (stu, {}),
    "stu with targets, context and window": (stu, {"contextual_seq_len": 2, "num_context_ids": 3, "max_attn_len": 3}),
    "sasrec": (sasrec, {}),
}


def batch(name: str, lengths: list[int], n: int, training: bool, seed: int = 0) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    given, place = torch.tensor(lengths), torch.arange(n)
    valid = place < given[:, None]
    ids = torch.randint(1, 31, valid.shape, generator=generator) * valid
    times = torch.randint(0, 90000, valid.shape, generator=generator).cumsum(1)
    targets: Tensor | None = torch.randint(1, 31, valid.shape, generator=generator) * valid if training else None
    if name.startswith(("hstu", "fuxi")):
        return ids, times, targets
    if name.startswith("stu"):
        counts = torch.tensor([max(0, min(2, length - 3)) for length in lengths]) if "targets" in name else None
        return ids, times, given, counts, targets
    return ids, targets


def batches(name: str, training: bool) -> list[tuple[Any, ...]]:
    least = 2 if "context" in name else 0
    return [
        batch(name, [max(x, least) for x in lengths], n, training, seed)
        for seed, (lengths, n) in enumerate([([3, 9, 1], 9), ([7, 1, 0, 5, 2], 7), ([12, 12], 12)])
    ]


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", MODELS)
def test_a_whole_model(name: str, training: bool) -> None:
    make, changed = MODELS[name]
    torch.manual_seed(0)
    model = make(**changed).train(training)
    for weight in model.parameters():
        weight.data.mul_(4.0) if weight.dim() > 1 else None  # scores of a size that tells masks apart
    made = PassBench(model, batches(name, training)).assert_fires(PACK, FUSE)
    assert len(made.compilations) == 1
    assert made.operators_after("final")["jagged_attention"] == (6 if name.startswith("fuxi") else 2)
    assert_nothing_dense(made)
    made.assert_parity(scale=3.0)


@pytest.mark.parametrize("name", ["fuxi", pytest.param("hstu", marks=pytest.mark.slow)])
def test_a_loss_over_sampled_negatives(name: str) -> None:
    """Negatives of padded places are neither looked up nor scored."""
    torch.manual_seed(0)
    drawn = torch.Generator().manual_seed(1)
    given = [(*b, torch.randint(1, 31, (*b[0].shape, 4), generator=drawn)) for b in batches(name, True)]
    made = PassBench(MODELS[name][0](), given).assert_fires(PACK, FUSE, "fuse-sampled-logits")
    assert_nothing_dense(made)
    item_ids = next(n for n in made.graph().graph.find_nodes(op="placeholder") if "item_ids" in n.name)
    padded = [str(size) for size in item_ids.meta["val"].shape]
    floats = [n for n in made.graph().graph.nodes if n.op == "call_function" and operators_of(n) & {"sampled_logits", "log_softmax"}]
    assert len(floats) == 2 and not [n.name for n in floats if [str(x) for x in n.meta["val"].shape[:2]] == padded]
    made.assert_parity(scale=3.0)


@pytest.mark.parametrize("name", ["hstu", "fuxi"])
def test_a_whole_model_shares_its_logits(name: str) -> None:
    """Over rows of a batch that differ, the loss of more negatives is greater, and the same lookups make it."""
    torch.manual_seed(0)
    (inputs, *_) = batches(name, True)
    given = [(*inputs, torch.randint(1, 31, (*inputs[0].shape, 4)))]
    made = PassBench(MODELS[name][0](), given, passes="default,share-logits").assert_fires("share-logits")
    before, after = made.operators_before("share-logits"), made.operators_after("share-logits")
    assert (after["sampled_logits"], after["embedding"]) == (1, before["embedding"])
    shared, alone = (float(model(*given[0]).detach()) for model in (made.fast, made.model))
    assert shared > alone


@pytest.mark.parametrize("name", ["hstu", "stu", "sasrec"])
def test_rows_of_a_whole_model_are_looked_up_once_where_that_is_forced_and_left_where_it_is_not(name: str) -> None:
    given = batches(name, True)
    torch.manual_seed(0)
    model = MODELS[name][0]()
    made = PassBench(model, given, passes="default,dedupe-lookups{least-gain=0}").assert_fires(PACK, FUSE, "dedupe-lookups")
    assert len(made.compilations) == 1
    made.assert_parity(scale=3.0)
    left = PassBench(model, given, passes="default,dedupe-lookups")
    assert left.misses("dedupe-lookups") and not left.matches("dedupe-lookups")


def assert_nothing_dense(made: PassBench) -> None:
    """No floating value over pairs of places, no token-wise operator over padded places."""
    graph = made.graph()
    item_ids = next(n for n in graph.graph.find_nodes(op="placeholder") if "item_ids" in n.name)
    padded = [str(size) for size in item_ids.meta["val"].shape]
    assert pair_values(graph, padded[1]) == []
    dense = [
        node.name for node in graph.graph.nodes
        if node.op == "call_function" and isinstance(value := node.meta.get("val"), torch.Tensor)
        and value.dtype.is_floating_point and value.dim() > 2 and [str(size) for size in value.shape[:2]] == padded
        and operators_of(node) & TOKEN_WISE
    ]  # fmt: skip
    assert dense == []
    assert not set(operators(graph)) & {"softmax", "scaled_dot_product_attention", "bmm", "tril"}


def operators_of(node: torch.fx.Node) -> set[str]:
    return {str(getattr(node.target, "overloadpacket", node.target)).rpartition(".")[2]}


def test_the_kept_places_of_a_loss_and_of_a_prediction() -> None:
    torch.manual_seed(0)
    (loss,) = PassBench(hstu(), [batch("hstu", [3, 5], 6, True)]).matches(PACK)
    assert "a loss that ignores some targets" in loss.detail
    (scores,) = PassBench(hstu(), [batch("hstu", [3, 5], 6, False)]).matches(PACK)
    assert "gather" in scores.detail and "keys that kept queries read" in scores.detail


@pytest.mark.parametrize("name", ["hstu", "sasrec"])
def test_the_graph_after_warm_up_packs_the_loss_as_the_first_one_does(name: str) -> None:
    """Sizes become symbols with the second batch; those of the targets need not be those of the ids."""
    torch.manual_seed(0)
    make, changed = MODELS[name]
    made = PassBench(make(**changed), batches(name, True)[:2], dynamic=False).assert_fires(PACK, FUSE).assert_parity(scale=3.0)
    for stages in made.compilations:
        graph = stages.graphs["final"].graph
        (loss,) = (n for n in graph.nodes if operators_of(n) & {"cross_entropy_loss", "linear_cross_entropy"})
        assert "u" in str(loss.args[0].meta["val"].shape[0]), "losses of padded places are computed"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_whole_model_through_inductor(name: str) -> None:
    make, changed = MODELS[name]
    torch.manual_seed(0)
    PassBench(make(**changed), batches(name, True), target="inductor").assert_fires(PACK, FUSE).assert_parity(scale=3.0)
