"""Recommenders as published, trained: which passes fire, what stays dense and why, and the numbers are eager's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import published_models as published
import pytest
import torch
from pass_bench import FUSE, PACK, Batch, PassBench, short_name
from published_models import ITEMS
from torch import Tensor, nn

import gr_compile
from gr_compile.graph_pass import Miss

TOKEN_WISE = {
    "embedding", "linear", "matmul", "mm", "bmm", "addmm", "einsum", "convolution", "conv1d", "layer_norm",
    "gelu", "relu", "silu", "softmax", "scaled_dot_product_attention", "cumsum", "fft_rfft", "fft_irfft",
}  # fmt: skip


class Sessions:
    """Random sequences with the given lengths: ids [B, N] that are 0 where padded, and what else a model may want."""

    def __init__(self, lengths: list[int], n: int, side: str = "right") -> None:
        self.generator = torch.Generator().manual_seed(n)
        self.batch, self.n = len(lengths), n
        self.lengths = torch.tensor(lengths)
        place = torch.arange(n)
        self.mask = place < self.lengths[:, None] if side == "right" else place >= n - self.lengths[:, None]
        self.ids, self.next, self.other = self.places(), self.places(), self.places()

    def some(self, *shape: int, below: int = ITEMS) -> Tensor:
        return torch.randint(1, below, (self.batch, *shape), generator=self.generator)

    def places(self, *shape: int, below: int = ITEMS) -> Tensor:
        """[B, N, *shape], 0 where padded."""
        return self.some(self.n, *shape, below=below) * self.mask.reshape(self.batch, self.n, *[1] * len(shape))

    def chance(self, *shape: int) -> Tensor:
        return torch.rand(self.batch, *shape, generator=self.generator, dtype=torch.float64)

    def clicks(self, *shape: int) -> Tensor:
        return (self.chance(*shape) < 0.5).double()


# ------------------------------------------------------------------------------------------ arguments of the models
def ids_and_next(s: Sessions) -> Batch:
    return s.ids, s.next


def ids_next_and_negatives(s: Sessions) -> Batch:
    return s.ids, s.next, s.other


def ids_next_and_many_negatives(s: Sessions) -> Batch:
    return s.ids, s.next, s.places(3)


def masked_items(s: Sessions) -> Batch:
    labels = s.ids * (s.chance(s.n) < 0.4)
    labels[0, 0] = 3
    return torch.where(labels != 0, ITEMS - 1, s.ids), labels


def ids_mask_and_labels(s: Sessions) -> Batch:
    return s.ids, s.mask.long(), torch.where(s.mask, s.ids, -100)


def ids_times_lengths_and_next(s: Sessions) -> Batch:
    return s.ids, s.some(s.n, below=1000).cumsum(1) * s.mask, s.lengths, s.next


def history_and_candidates(s: Sessions) -> Batch:
    return s.ids, s.places(below=3), s.some(3), s.clicks(3)


def history_and_candidate(s: Sessions) -> Batch:
    return s.ids, s.some(), s.clicks()


def ids_lengths_and_target(s: Sessions) -> Batch:
    return s.ids, s.lengths, s.some()


def two_views(s: Sessions) -> Batch:
    return s.ids, s.next, s.ids * (s.chance(s.n) < 0.7), s.other


def ids_attributes_and_next(s: Sessions) -> Batch:
    return s.ids, s.places(3, below=30) * (s.chance(s.n, 3) < 0.7), s.next


@dataclass(frozen=True)
class Case:
    """One model and what becomes of it.

    Attributes:
        make: the model.
        arguments: sessions -> arguments of forward.
        fires: passes that match in every graph; those not named match in none.
        attentions: jagged attentions in the final graph.
        dense: the only token-wise operators that may go on running over [B, N].
        misses: reason and source line of what eliminate-padding must name as staying dense, and rightly so.
        breaks: the line at which torch.compile leaves the model to Python.
        side: where the padding is.
        empty: whether a sequence may have no item (where it may not, eager gives NaN).
        longest: of the sequences of the two batches.
    """

    make: Callable[[], nn.Module]
    arguments: Callable[[Sessions], Batch]
    fires: tuple[str, ...] = (PACK, FUSE)
    attentions: int = 0
    dense: frozenset[str] = frozenset()
    misses: tuple[tuple[str, str], ...] = ()
    breaks: str = ""
    side: str = "right"
    empty: bool = True
    longest: tuple[int, int] = (9, 11)

    def batches(self) -> list[Batch]:
        first, second = self.longest
        least = 0 if self.empty else 1
        return [
            self.arguments(Sessions([first, least, 4, 2], first, self.side)),
            self.arguments(Sessions([3, second, least, 7, 1], second, self.side)),
        ]


EVERY_PLACE = "may read every place"
ONE_NUMBER_A_PLACE = frozenset({"softmax"})  # over places, of pooling weights: nothing to save

SEQUENCE_MODELS: dict[str, Case] = {
    "TiSASRec": Case(published.TiSASRec, ids_next_and_negatives, attentions=2, side="left"),
    "BERT4Rec": Case(published.BERT4Rec, masked_items, attentions=2, empty=False),
    "Llama decoder": Case(published.LlamaDecoder, ids_mask_and_labels, attentions=2),
    "Llama decoder, padded left": Case(published.LlamaDecoder, ids_mask_and_labels, attentions=2, side="left"),
    "HSTU": Case(published.HSTU, ids_times_lengths_and_next, attentions=2),
    "HSTU with targets": Case(
        published.HSTUWithTargets, history_and_candidates, attentions=1,
        dense=frozenset({"embedding"}), misses=((f"aten.cat.default {EVERY_PLACE}", "x = torch.cat("),),
    ),
    "NextItNet": Case(
        published.NextItNet, ids_and_next, fires=(PACK,), side="left",
        dense=frozenset({"embedding", "conv1d"}), misses=((f"aten.pad.default {EVERY_PLACE}", "F.pad(x.transpose"),),
    ),
    "GRU4Rec": Case(published.GRU4Rec, lambda s: (s.ids, s.lengths), fires=(), breaks="self.gru(self.items(ids))"),
    "RecBole SASRec": Case(published.RecBoleSASRec, ids_lengths_and_target, attentions=2),
    "SASRec, BPR": Case(published.SASRecBPR, ids_next_and_many_negatives, attentions=2),
    "SASRec, BPR, padded left": Case(published.SASRecBPR, ids_next_and_many_negatives, attentions=2, side="left"),
    "SASRec, BCE": Case(published.SASRecBCE, ids_next_and_negatives, attentions=2),
    "SASRec, NLL": Case(published.SASRecNLL, ids_and_next, attentions=2),
    "gSASRec": Case(
        published.GSASRec, ids_next_and_many_negatives, attentions=1
    ),
    "ALiBi decoder": Case(published.ALiBiDecoder, ids_and_next, attentions=1),
    "ALiBi decoder, padded left": Case(published.ALiBiDecoder, ids_and_next, attentions=1, side="left"),
    "PinnerFormer": Case(
        published.PinnerFormer, lambda s: (s.ids,), attentions=1,
        fires=(FUSE,), dense=TOKEN_WISE, misses=((f"aten.sum.default {EVERY_PLACE}", "log_probabilities * is_action"),),
    ),
    "mixture of experts": Case(published.MixtureOfExperts, lambda s: (s.ids, s.mask, s.next), attentions=1),
    "CL4SRec": Case(published.CL4SRec, two_views, attentions=3, side="left"),
    "SSE-PT": Case(published.SSEPT, lambda s: (s.some(below=20), s.ids, s.next, s.other), attentions=1),
    "STOSA": Case(
        published.STOSA, ids_and_next, fires=(PACK,),
        dense=frozenset({"embedding", "linear", "matmul", "softmax"}),
        misses=(("a score over two products of queries and keys", "weights @ mean_v"),),
    ),
    "FMLP-Rec": Case(
        published.FMLPRec, lambda s: (s.ids, s.some()), fires=(PACK,), side="left",
        dense=frozenset({"embedding", "fft_irfft"}),
        misses=((f"aten.fft_rfft.default {EVERY_PLACE}", "torch.fft.rfft("),),
    ),
    "S3-Rec": Case(published.S3Rec, ids_attributes_and_next, attentions=1),
    "TIGER": Case(published.TIGER, lambda s: (s.ids, s.mask.long(), s.some(3)), attentions=3),
    "LinRec": Case(
        published.LinRec, ids_and_next, attentions=1,  # its key-value products: the projection's rows are queries
        dense=frozenset({"embedding", "linear", "matmul"}), misses=((f"aten.matmul.default {EVERY_PLACE}", "context = torch.matmul("),),
    ),
    "causal linear attention": Case(
        published.CausalLinearAttention, ids_and_next, fires=(PACK,), dense=frozenset({"cumsum"})
    ),
}  # fmt: skip

HISTORY_MODELS: dict[str, Case] = {
    "STAMP": Case(
        published.STAMP, ids_lengths_and_target, fires=(PACK,),
        dense=frozenset({"embedding"}), misses=((f"aten.sum.dim_IntList {EVERY_PLACE}", "session_mean = x.sum(1)"),),
    ),
    "CORE": Case(published.CORE, lambda s: (s.ids, s.some()), attentions=1, dense=ONE_NUMBER_A_PLACE, empty=False),
    "mean of two embeddings": Case(published.MeanOfTwoEmbeddings, lambda s: (s.ids, s.other, s.some()), fires=(PACK,)),
    "two towers": Case(
        published.TwoTower, lambda s: (s.ids, s.mask, s.some(), s.chance().log()), fires=(PACK,),
        dense=ONE_NUMBER_A_PLACE, empty=False,
    ),
    "ComiRec-SA": Case(
        published.ComiRecSA, lambda s: (s.ids, s.mask.double(), s.some()), attentions=1,
    ),
    "MIND": Case(
        published.MIND, ids_lengths_and_target, fires=(), dense=TOKEN_WISE,
        misses=((f"aten.bmm.default {EVERY_PLACE}", "torch.bmm(capsules, fixed"),),
    ),
    "DIN": Case(published.DIN, history_and_candidate, fires=(PACK,)),
    "DIN, softmax": Case(published.SoftmaxDIN, history_and_candidate, fires=(PACK,), dense=ONE_NUMBER_A_PLACE),
    "candidate queries history": Case(published.CandidateQueriesHistory, history_and_candidate, attentions=1),
    "DCN per token": Case(
        published.DCNPerToken, lambda s: (s.ids, s.other, s.chance(s.n, 3), s.clicks()), fires=(PACK,)
    ),
    "BST": Case(published.BST, history_and_candidate, attentions=1, longest=(9, 9)),
    "SIM": Case(
        published.SIM, history_and_candidate, fires=(),
        dense=frozenset({"embedding", "linear", "relu", "einsum"}), misses=((EVERY_PLACE, ""),),
    ),
    "TransAct": Case(
        published.TransAct, lambda s: (s.ids, s.places(below=5), s.some(), s.clicks()), attentions=2, empty=False
    ),
}  # fmt: skip

CASES = SEQUENCE_MODELS | HISTORY_MODELS


@pytest.mark.parametrize("name", CASES)
def test_a_published_model(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    model = case.make().double().train()
    for weight in model.parameters():
        weight.data.mul_(1.5)  # scores of a size that tells masks apart
    bench = PassBench(model, case.batches(), may_fail=bool(case.breaks)).assert_parity()
    assert_as_expected(bench, case)


LOWERED = [x if x in ("HSTU", "SASRec, BCE", "mixture of experts") else pytest.param(x, marks=pytest.mark.slow) for x in CASES]


@pytest.mark.parametrize("name", LOWERED)
def test_inductor_takes_what_the_passes_make(name: str) -> None:
    """A graph that the target refuses is compiled without its passes: right, slow, and easily overlooked."""
    torch.manual_seed(0)
    model = CASES[name].make().double().train()
    batch = next(iter(CASES[name].batches()))
    fast = gr_compile.optimize(model)
    with torch.no_grad():
        fast(*batch)
    assert not [report.passes_failed for report in gr_compile.report(fast) if report.passes_failed]


def assert_as_expected(bench: PassBench, case: Case) -> None:
    if case.breaks:
        breaks = [miss for report in bench.reports for miss in report.graph_breaks]
        assert any(miss.where is not None and case.breaks in miss.where.code for miss in breaks), list(map(str, breaks))
        return
    if case.fires:
        bench.assert_fires(*case.fires)
    for stage in {PACK, FUSE} - set(case.fires):
        assert not bench.matches(stage), [match.what for match in bench.matches(stage)]
    for reason, line in case.misses:
        assert any(told(miss, reason, line) for miss in bench.misses()), [str(miss) for miss in bench.misses()]
    assert bench.operators_after("final")["jagged_attention"] == case.attentions
    assert dense_operators(bench) <= case.dense, [str(miss) for miss in bench.misses()]


def told(miss: Miss, reason: str, line: str) -> bool:
    return reason in miss.reason and miss.where is not None and line in miss.where.code


def dense_operators(bench: PassBench) -> set[str]:
    """Token-wise operators whose result has values for the padded places too."""
    graph = bench.graph().graph
    inputs = [node.meta["val"] for node in graph.find_nodes(op="placeholder") if isinstance(node.meta["val"], Tensor)]
    ids = next(value for value in inputs if value.dim() == 2 and value.dtype == torch.int64)
    padded = {str(size) for size in ids.shape}
    return {
        short_name(node) for node in graph.nodes
        if node.op == "call_function" and isinstance(value := node.meta.get("val"), Tensor)
        and value.dtype.is_floating_point and padded <= {str(size) for size in value.shape}
        and short_name(node) in TOKEN_WISE
    }  # fmt: skip
