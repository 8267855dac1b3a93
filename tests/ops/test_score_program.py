"""ScoreProgram: exact text round trip, deterministic text, and errors that name what is wrong."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from program_generator import generate

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import Expr, const, index, load, make, size
from gr_compile.ops import ScoreProgram

S, SM = make("s", (), "f32"), make("sm", (), "f32")
b, h, i, j = (index(name) for name in "bhij")
EXAMPLE: dict[str, Any] = dict(  # noqa: C408
    score=E.where(
        E.ge0(E.sub(i, j)),
        E.binary("add", S, load("bias", [E.add(E.sub(j, i), size("N"))], "f32"), "f32"),
        const(float("-inf"), "f32"),
        "f32",
    ),
    post=make("dropout", (SM, const(0.1, "f32")), "f32"),
    k_head=E.binary("floordiv", h, const(2), "i"),
    fully_masked="zero",
    leaves=("bias",),
    sizes=("N",),
    key_low=const(0),
    key_high=E.add(i, const(1)),
)


def example(**changes: Any) -> ScoreProgram:
    return ScoreProgram(**{**EXAMPLE, **changes})


def test_text_round_trip_is_exact() -> None:
    for program in [example(), ScoreProgram(score=S), *(generate(seed).program for seed in range(60))]:
        again = ScoreProgram.parse(program.text())
        assert again == program and again.text() == program.text()
        assert ScoreProgram.parse(program.text()) is again
        assert all(again.expressions()[name] is x for name, x in program.expressions().items())


def test_text_is_the_same_in_every_process() -> None:
    code = "from test_score_program import example; print(example().text(), end='')"
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == example().text()


def test_contents() -> None:
    program = example()
    assert program.product is S and program.softmax is SM and program.has_dropout
    assert program.leaf_types == {"bias": (1, "f32")}
    assert [node.args[0] for node in program.loads()] == ["bias"]
    plain = ScoreProgram(score=const(1.0, "f32"))
    assert plain.product is None and plain.softmax is None and not plain.has_dropout
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.score = S  # type: ignore[misc]


def loaded(name: str, *places: Expr, dtype: str = "f32") -> Expr:
    return E.binary("add", S, load(name, places, dtype), dtype)


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"score": loaded("other", i)}, "loads 'other', which is not in leaves"),
    ({"leaves": ("bias", "bias")}, "leaves has a name twice"),
    ({"sizes": ()}, "reads size 'N', which is not in sizes"),
    ({"score": E.cast(index("d"), "f32")}, "score depends on the index d; it may depend on b, h, i, j"),
    ({"q_head": i}, "q_head depends on the index i; it may depend on h"),
    ({"key_low": j}, "key_low depends on the index j"),
    ({"score": i}, "score must be floating point"),
    ({"k_head": E.cast(h, "f32")}, "k_head must be an integer"),
    ({"post": const(1.0, "f32")}, "post must read sm"),
    ({"score": E.binary("add", S, SM, "f32")}, "sm stands in score"),
    ({"post": make("sm", (), "f64")}, "sm is 'f64' but score is 'f32'"),
    ({"score": make("dot", (S, S), "f32")}, "score holds dot"),
    ({"score": loaded("bias", E.cast(i, "f32"))}, "at an index that is not an integer"),
    (
        {"score": E.binary("add", loaded("bias", i), load("bias", [i, j], "f32"), "f32")},
        "two ranks or dtypes",
    ),
    ({"score": E.binary("add", S, E.cast(make("s", (), "f64"), "f32"), "f32")}, "s occurs with two dtypes"),
    ({"score": make("dropout", (S, const(0.5, "f32")), "f32")}, "at most one dropout"),
    ({"fully_masked": "nan"}, "fully_masked must be"),
    ({"out_dtype": "i"}, "out_dtype must be one of"),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_errors(number: int) -> None:
    changes, words = ERRORS[number]
    with pytest.raises(ValueError, match=words.replace("(", "\\(")):
        example(**changes)


def test_parse_refuses_other_text() -> None:
    text = example().text()
    for broken in (
        "",
        "gr_score 2\n" + text,
        text.replace("out_dtype", "dtype"),
        text.replace("score =", "f ="),
    ):
        with pytest.raises(ValueError):
            ScoreProgram.parse(broken)
