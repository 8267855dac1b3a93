"""Verification: a graph whose values are not what its operators give is refused, and the node is named."""

from __future__ import annotations

import pytest
import torch
from models import WIDTH, Layer
from test_editor import graph_of, only, silu_of_product
from torch import fx

from gr_compile.editor import GraphEditor
from gr_compile.verify import VerificationError, describe, same_shape, verify_shapes

aten = torch.ops.aten


@pytest.fixture
def graph_module() -> fx.GraphModule:
    return graph_of(silu_of_product, torch.randn(5, 4), torch.randn(5, 4))


def break_shape(graph_module, editor):
    product, silu = only(graph_module, aten.mul.Tensor), only(graph_module, aten.silu.default)
    with editor.at(after=product, like=product):
        editor.replace(
            product, editor.call(aten.sum.dim_IntList, product, [0]), only=lambda user: user is silu
        )


def break_dtype(graph_module, editor):
    product, silu = only(graph_module, aten.mul.Tensor), only(graph_module, aten.silu.default)
    with editor.at(after=product, like=product):
        editor.replace(
            product, editor.call(aten.to.dtype, product, torch.float64), only=lambda user: user is silu
        )


def break_order(graph_module, editor):
    only(graph_module, aten.mul.Tensor).prepend(only(graph_module, aten.silu.default))


def break_operands(graph_module, editor):
    silu = only(graph_module, aten.silu.default)
    silu.args = ("no tensor",)
    editor.touched.add(silu)


def bypass_the_editor(graph_module, editor):
    silu = only(graph_module, aten.silu.default)
    with graph_module.graph.inserting_after(silu):
        made = graph_module.graph.call_function(aten.neg.default, (silu,))
    silu.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


BROKEN = {
    break_shape: "silu.* now gives float32.*; it gave float32",
    break_dtype: "silu.* now gives float64.*; it gave float32",
    break_order: "before it has been defined",
    break_operands: "silu.* rejects its operands",
    bypass_the_editor: "neg.* has no value: it was not made by the GraphEditor",
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("defect", BROKEN)
def test_a_defect_names_its_node(graph_module, defect, whole):
    editor = GraphEditor(graph_module)
    verify_shapes(graph_module, editor, None if whole else editor.touched)
    defect(graph_module, editor)
    with pytest.raises(VerificationError, match=BROKEN[defect]):
        verify_shapes(graph_module, editor, None if whole else editor.touched)


def test_only_what_was_touched_and_changed_below_is_computed_again(monkeypatch):
    graph_module = graph_of(Layer(), torch.randn(2, 5, WIDTH), torch.ones(2, 5, 5, dtype=torch.bool))
    editor, computed = GraphEditor(graph_module), []
    evaluate = editor.evaluate
    monkeypatch.setattr(
        editor, "evaluate", lambda target, *a, **k: computed.append(target) or evaluate(target, *a, **k)
    )
    verify_shapes(graph_module, editor, {only(graph_module, aten.layer_norm.default)})
    assert computed == [aten.layer_norm.default]
    computed.clear()
    verify_shapes(graph_module, editor, None)
    assert len(computed) > 8


def test_sizes_from_data_are_not_invented_again():
    graph_module = graph_of(lambda x: (x[x > 0] * 2).sum(), torch.randn(5))
    editor = GraphEditor(graph_module)
    verify_shapes(graph_module, editor, None)
    assert not editor.fake_mode.shape_env.pending_fresh_unbacked_symbols


@pytest.mark.parametrize("value, recorded, same", [
    (torch.ones(2, 3), torch.zeros(2, 3), True),
    (torch.ones(2, 3), torch.zeros(3, 2), False),
    (torch.ones(2), torch.ones(2, dtype=torch.int64), False),
    (torch.ones(2), torch.ones(2, 1), False),
    (torch.ones(2), 3, False),
    (3, torch.ones(2), False),
    ((torch.ones(2), 3), (torch.ones(2), 4), True),
    ((torch.ones(2), 3), (torch.ones(3), 4), False),
    ([torch.ones(2)], [], False),
    ((torch.ones(2),), torch.ones(2), False),
])  # fmt: skip
def test_same_shape_looks_at_sizes_and_dtypes_through_lists(value, recorded, same):
    assert same_shape(value, recorded) == same


def test_values_are_described_in_words():
    assert (
        describe((torch.ones(2, 3), [torch.ones((), dtype=torch.int64)], 4))
        == "(float32[2, 3], (int64[]), 4)"
    )
