"""The table of operators: complete, true to the torch schemas, and usable for GE."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gr_compile.lowering.ascendc.operators import OPERATORS, as_markdown
from gr_compile.lowering.torchair.composed import COMPOSED

NAMES = sorted(OPERATORS)
WRITTEN = {
    "gr::pack": ("dense: T, index: int64", "", "y: T"),
    "gr::unpack": ("values: T, index: int64, batch: int64, length: int64, fill: T", "", "y: T"),
    "gr::segment_sum": ("values: T, offsets: int64", "", "y: S"),
    "gr::count_true": ("mask: B", "", "y: int64"),
    "gr::lookup_gradient": ("grad: T, ids: I, rows: int64", "padding: int", "y: T"),
    "gr::sampled_logits": ("query: Q, table: T, ids: I, group: G", "eps: float, padding: int", "y: Q"),
}


def ports(found):
    return ", ".join(f"{port.name}: {port.variable or '/'.join(port.types)}" for port in found)


NO_ROW = {
    "gr::dropout_share",  # no kernel of attention drops weights there
    "gr::occurring", "gr::numbered", "gr::quantize", "gr::dequantize", "gr::stored_rows",
    "gr::segmented_logits", "gr::segmented_logits_backward",
    *COMPOSED,
}  # fmt: skip
"""Operators without a node: passes leave alone what needs them, but for those that GE's own compute."""


def test_every_operator_has_a_row():
    schemas = torch._C._jit_get_all_schemas()
    assert {schema.name for schema in schemas if schema.name.startswith("gr::")} - NO_ROW == set(OPERATORS)


@pytest.mark.parametrize("name", WRITTEN)
def test_rows_follow_from_schemas(name):
    row = OPERATORS[name]
    attributes = ", ".join(f"{a.name}: {a.type}" for a in row.attributes)
    assert (ports(row.inputs), attributes, ports(row.outputs)) == WRITTEN[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_an_input_or_an_attribute_and_nothing_else_is(name):
    row = OPERATORS[name]
    arguments = [argument.name for argument in row.arguments]
    places = [port.argument for port in row.inputs] + [a.argument for a in row.attributes]
    assert sorted(set(places), key=arguments.index) == arguments
    names = [*(port.name for port in row.inputs), *(a.name for a in row.attributes)]
    assert len(set(names)) == len(names)
    assert row.variables.keys() <= {*arguments, *(port.name for port in row.outputs)}
    assert row.constants <= set(arguments)


@pytest.mark.parametrize("name", NAMES)
def test_dtypes_are_torchs_and_every_variable_is_typed(name):
    row = OPERATORS[name]
    for port in (*row.inputs, *row.outputs):
        assert port.types and all(isinstance(getattr(torch, dtype), torch.dtype) for dtype in port.types)
    assert set(row.variables.values()) == set(row.types)


def test_an_argument_that_no_kernel_takes_is_no_port():
    row = replace(OPERATORS["gr::norm_gate"], without=frozenset({"bias"}))
    assert ports(row.inputs) == "x: T, u: T, weight: T"
    assert row.unserved({"weight": 1, "bias": None}) == ""
    assert row.unserved({"bias": 1}) == "gr::norm_gate: no kernel takes bias"


def test_lists_become_one_dynamic_input_a_dtype():
    row = OPERATORS["gr::jagged_attention"]
    dynamic = {port.name: port.types for port in row.inputs if port.role == "dynamic"}
    assert dynamic["leaves_float32"] == ("float32",) and dynamic["leaves_int64"] == ("int64",)
    assert {port.argument for port in row.inputs if port.role == "optional"} == {"q", "k", "seed"}
    assert "leaves_types" in {a.name for a in row.attributes}
    backward = [port.name for port in OPERATORS["gr::jagged_attention_backward"].outputs]
    assert backward[:4] == ["grad_q", "grad_k", "grad_v", "grad_leaves_float32"]


def test_ge_types_are_distinct():
    types = {row.ge_type for row in OPERATORS.values()}
    assert len(types) == len(OPERATORS) and "GrJaggedAttentionBackward" in types


def test_kernels_are_one_for_each_choice_of_dtypes():
    assert len(list(OPERATORS["gr::pack"].signatures())) == 6
    assert {"T": "bfloat16", "I": "int32"} in list(OPERATORS["gr::lookup_gradient"].signatures())


def test_the_document_has_the_table():
    table = as_markdown()
    assert all(f"`{name}`" in table and f"`{row.ge_type}`" in table for name, row in OPERATORS.items())
    assert table in (Path(__file__).parents[3] / "docs" / "torchair.md").read_text()
