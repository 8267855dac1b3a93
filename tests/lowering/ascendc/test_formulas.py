"""Formulas of tilings: what they may hold, and what each part is in Python and in C++."""

import pytest

from gr_compile.lowering.ascendc.formulas import Formula, as_cpp, calls, evaluate

MACHINE = {"vector_cores": 48, "cube_cores": 24, "unified_buffer": 1000}


class Sizes:
    """A call of which `size(x, k)` is 10 + k, and every other fact unknown."""

    def fact(self, name, words):
        assert name == "size" and words[0] == "x"
        return 10 + words[1]


@pytest.mark.parametrize(
    ("text", "value", "cpp"),
    [
        ("7", 7, "7"),
        ("vector_cores - 1", 47, "(vector_cores - 1)"),
        ("unified_buffer // 3 * 2", 666, "((unified_buffer / 3) * 2)"),
        ("size(x, 2) + size(x, -1)", 21, "(call.size(x, 2) + call.size(x, -1))"),
        ("ceil_div(7, 2)", 4, "ceil_div(7, 2)"),
        ("round_up(33, 32)", 64, "round_up(33, 32)"),
        ("min(max(3, 5), 4)", 4, "min(max(3, 5), 4)"),
        ("1 if size(x, 0) > 9 else 2", 1, "((call.size(x, 0) > 9) ? 1 : 2)"),
        ("1 if size(x, 0) == 9 else 2", 2, "((call.size(x, 0) == 9) ? 1 : 2)"),
    ],
)
def test_a_formula_in_python_and_in_cpp(text, value, cpp):
    formula = Formula("f", text)
    assert evaluate([formula], Sizes(), MACHINE) == {"f": value}
    spelled = as_cpp([formula], lambda name, words: f"call.{name}({', '.join(map(str, words))})")
    assert spelled == [f"int64_t f = {cpp};"]


def test_later_formulas_read_earlier_ones():
    found = evaluate([Formula("a", "size(x, 0)"), Formula("b", "a * 2", field=False)], Sizes(), MACHINE)
    assert found == {"a": 10, "b": 20}
    with pytest.raises(ValueError, match="b: not a part of a formula"):
        evaluate([Formula("a", "b"), Formula("b", "1")], Sizes(), MACHINE)


@pytest.mark.parametrize("text", ["a +", "1.5", "[1]", "1 / 2", "2 ** 3", "size(1 + 1, 0)", "'x'"])
def test_what_is_no_formula(text):
    with pytest.raises(ValueError):
        evaluate([Formula("f", text)], Sizes(), MACHINE)


def test_what_a_formula_asks_for():
    assert calls(Formula("f", "min(size(x, -1), 3) + number(n)")) == [("number", ["n"]), ("size", ["x", -1])]
