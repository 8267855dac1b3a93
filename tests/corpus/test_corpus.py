"""Published models as they are: eager's numbers, what is packed and fused, what stays dense and why.

Subjects run in processes of their own, a family in each, with the corpus' wheels behind this project's packages. By default at the
sizes that their packages have by default, without TorchInductor; `pytest -m slow tests/corpus` tries N = 512 and more
with it, times them against torch.compile and writes docs/models.md.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from corpus_table import Row, write_row
from trial import family_of
from wheels import Unreachable, folder

HERE = Path(__file__).parent
BATCH, FILL = 7, 0.25
LONG_BATCH, LONG_N = 16, 512
TRANSFORMERS = [
    f"{name}, {attention}, padded {side}"
    for name in ("Llama", "GPT-2") for attention in ("sdpa", "eager") for side in ("right", "left")
]  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """Attentions that are fused; what stays dense, by parts of the reasons that Misses give."""

    attentions: int = 2
    misses: tuple[str, ...] = ()
    n: int = 50
    declared: bool = False
    is_packed: bool = True


EVERY_PLACE = "may read every place"
SUBJECTS: dict[str, Expected] = {
    "RecTools HSTU": Expected(n=100),
    "RecTools HSTU, scores": Expected(n=100),
    "RecTools SASRec": Expected(n=100),  # its padded keys are attended, as one key
    "RecTools SASRec, key mask": Expected(n=100),
    "RecTools SASRec, BCE": Expected(n=100),
    "RecTools SASRec, gBCE": Expected(n=100),
    "RecTools SASRec, sampled softmax": Expected(n=100),
    "RecTools BERT4Rec": Expected(n=100),
    "RecTools SASRec, LiGR layers": Expected(n=100),
    "RecBole SASRec": Expected(),
    "RecBole SASRec, BPR": Expected(),
    "RecBole BERT4Rec": Expected(),
    "RecBole SASRecF": Expected(),
    "RecBole DIN": Expected(attentions=0, misses=(f"aten.split_with_sizes.default {EVERY_PLACE}",), is_packed=False),
    **{name: Expected() for name in TRANSFORMERS},
    "Llama, sdpa, logits": Expected(misses=("an output holds what the model computes",), is_packed=False),
    "Llama, sdpa, logits, declared": Expected(declared=True),
    "TransformerEncoder": Expected(),
    "TransformerEncoder, causal": Expected(),
    "TransformerEncoder, causal, padded left": Expected(),
    "MultiheadAttention": Expected(attentions=1),
    "SDPA, boolean mask": Expected(attentions=1),
    "SDPA, additive mask": Expected(attentions=1),
    "GRU, packed": Expected(attentions=0, misses=("pack_padded_sequence",), is_packed=False),
    "HSTU, jagged outside attention": Expected(),
    "KeyedJaggedTensor": Expected(attentions=1),
    "Nested tensor, jagged": Expected(attentions=0, misses=("a tensor subclass (NestedTensor)",), is_packed=False),
}  # fmt: skip


@pytest.fixture(scope="session")
def wheels() -> Path:
    try:
        return folder()
    except Unreachable as reason:
        pytest.skip(str(reason))


def ask(wheels: Path, names: Sequence[str], **request: Any) -> dict[str, Any]:
    """What a child process says of subjects of one family."""
    asked = {"fill": FILL, **request, "names": [name.removesuffix(", declared") for name in names]}
    done = subprocess.run(
        [sys.executable, str(HERE / "trial.py"), str(wheels), json.dumps(asked)], cwd=HERE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return dict(zip(names, json.loads(done.stdout.splitlines()[-1]).values()))


class Answers:
    """Answers by name; a child process tries all subjects that have family, N and declaration in common."""

    def __init__(self, wheels: Path) -> None:
        self.wheels = wheels
        self.known: dict[str, dict[str, Any]] = {}

    def of(self, name: str) -> dict[str, Any]:
        if name not in self.known:
            group = [other for other in SUBJECTS if _group(other) == _group(name)]
            _, n, declared = _group(name)
            self.known |= ask(self.wheels, group, batch=BATCH, n=n, declared=declared, target="eager")
        found = self.known[name]
        assert "error" not in found, found["error"]
        return found


def _group(name: str) -> tuple[str, int, bool]:
    return family_of(name), SUBJECTS[name].n, SUBJECTS[name].declared


@pytest.fixture(scope="session")
def answers(wheels: Path) -> Answers:
    return Answers(wheels)


def matches(found: dict[str, Any], pass_name: str) -> int:
    records = [record for graph in found["graphs"] for record in graph["passes"]]
    return sum(len(record["matches"]) for record in records if record["name"] == pass_name)


def reasons(found: dict[str, Any]) -> list[str]:
    misses: list[dict[str, Any]] = []
    for graph in found["graphs"]:
        misses += [*graph["graph_breaks"], *(miss for record in graph["passes"] for miss in record["misses"])]
        misses += [graph["not_captured"]] if graph["not_captured"] else []
    return list(dict.fromkeys(miss["reason"] for miss in misses))


def assert_eager(found: dict[str, Any]) -> None:
    """Within 1e-4 of eager; gradients that are not, of eager in float64: layer norms sum many rows, and eager rounds."""
    assert not [what for what in ("outputs", "gradients", "buffers") if not found[what] < 1e-4], found
    assert not found["missing"] and not found["failed"]


def assert_no_more_graphs(found: dict[str, Any]) -> None:
    assert found["count"] <= found["count_of_torch_compile"], found["graphs"]


def assert_as_expected(found: dict[str, Any], expected: Expected) -> None:
    assert_eager(found)
    assert_no_more_graphs(found)
    assert matches(found, "fuse-jagged-attention") == expected.attentions, reasons(found)
    for reason in expected.misses:
        assert any(reason in said for said in reasons(found)), reasons(found)
    if expected.is_packed:
        assert not found["dense"] and found["computed"] <= found["valid"] + BATCH, (found["dense"], reasons(found))


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_published_model(answers: Answers, name: str) -> None:
    assert_as_expected(answers.of(name), SUBJECTS[name])


DROPOUT = [
    "RecTools SASRec", "TransformerEncoder, causal",
    *(pytest.param(name, marks=pytest.mark.slow)
      for name in ("RecTools SASRec, key mask", "RecBole SASRec", "GPT-2, sdpa, padded left")),
]  # fmt: skip


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_is_drawn_from_the_same_distribution(wheels: Path, name: str) -> None:
    """Losses and gradient norms of 60 steps with other masks each: equal means and spreads, as far as 60 tell."""
    found = ask(wheels, [name], batch=BATCH, n=20, fill=0.5, target="eager", dropout=0.3, draws=60)[name]
    assert "error" not in found and not found["failed"], found
    for eager, optimised in zip(zip(*found["eager"]), zip(*found["optimised"])):
        spreads = [statistics.stdev(x) for x in (eager, optimised)]
        error = math.hypot(*spreads) / math.sqrt(60)
        assert spreads[0] > 0 and 0.6 < spreads[1] / spreads[0] < 1.6, spreads
        assert abs(statistics.mean(eager) - statistics.mean(optimised)) < 4 * error, (eager, optimised)


# ------------------------------------------------------------------------------------------------ long, with TorchInductor
@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_long_published_model(wheels: Path, name: str) -> None:
    size = {"batch": LONG_BATCH, "n": LONG_N, "threads": 2, "declared": SUBJECTS[name].declared, "target": "inductor"}
    found = ask(wheels, [name], **size, times=(FILL, 1.0), repeats=5)[name]
    assert "error" not in found, found["error"]
    assert_eager(found)
    modes = [medians for by_mode in found["times"].values() for medians in by_mode.values()]
    speeds = [medians["torch_compile"] / medians["gr_compile"] for medians in modes]
    row = Row(
        name, matches(found, "eliminate-padding"), matches(found, "fuse-jagged-attention"), found["dense"], reasons(found),
        found["places"], found["computed"], found["valid"], speeds,
    )  # fmt: skip
    write_row(row, list(SUBJECTS), LONG_BATCH, LONG_N, FILL)
