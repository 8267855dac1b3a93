"""GraphEditor: every node it makes has a value, a source and a place; what it touched is on record."""

from __future__ import annotations

import pytest
import torch
from models import WIDTH, Layer
from torch import fx

from gr_compile.capture import capture
from gr_compile.editor import GraphEditor, copy_provenance
from gr_compile.verify import verify_shapes

aten = torch.ops.aten


def graph_of(function, *args, dynamic: bool | None = True) -> fx.GraphModule:
    """The captured graph of a function, with symbolic sizes."""
    found: list[fx.GraphModule] = []

    def backend(graph_module, inputs):
        found.append(capture(graph_module))
        return graph_module.forward

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        torch.compile(function, backend=backend, dynamic=dynamic, isolate_recompiles=True)(*args)
    return found[0]


def only(graph_module: fx.GraphModule, target) -> fx.Node:
    (node,) = graph_module.graph.find_nodes(op="call_function", target=target)
    return node


def silu_of_product(x, y):
    return torch.nn.functional.silu(x * y).sum(-1)


@pytest.fixture
def graph_module() -> fx.GraphModule:
    return graph_of(silu_of_product, torch.randn(5, 4), torch.randn(5, 4))


@pytest.fixture
def editor(graph_module) -> GraphEditor:
    return GraphEditor(graph_module)


def test_a_call_has_a_symbolic_value_provenance_and_the_passes_stamp(graph_module, editor):
    editor.stamp("my-pass")
    silu = only(graph_module, aten.silu.default)
    with editor.at(before=silu, like=silu):
        made = editor.call(aten.sigmoid.default, silu.args[0])
    value = made.meta["val"]
    assert isinstance(value, torch._subclasses.FakeTensor)
    assert value.shape == silu.meta["val"].shape and isinstance(value.shape[0], torch.SymInt)
    assert made.meta["stack_trace"] == silu.meta["stack_trace"]
    assert made.meta["gr_made_by"] == "my-pass"
    assert made.next is silu
    assert editor.touched == {made}


def test_places_nest_and_end(graph_module, editor):
    product, silu = only(graph_module, aten.mul.Tensor), only(graph_module, aten.silu.default)
    with editor.at(before=silu):
        first = editor.call(aten.neg.default, product)
        with editor.at(after=product):
            second = editor.call(aten.abs.default, product)
        third = editor.call(aten.relu.default, first)
    order = list(graph_module.graph.nodes)
    start = order.index(product)
    assert order[start : start + 5] == [product, second, first, third, silu]


def test_calls_after_a_node_stand_in_the_order_in_which_they_were_made(graph_module, editor):
    product = only(graph_module, aten.mul.Tensor)
    with editor.at(after=product):
        first = editor.call(aten.neg.default, product)
        second = editor.call(aten.abs.default, first)
    assert product.next is first and first.next is second
    graph_module.graph.lint()


def test_replace_moves_all_users_or_those_chosen(graph_module, editor):
    product, silu = only(graph_module, aten.mul.Tensor), only(graph_module, aten.silu.default)
    with editor.at(after=product, like=product):
        made = editor.call(aten.relu.default, product)
    editor.replace(product, made)
    assert silu.args[0] is made and made.args[0] is product, "the replacement may read what it replaces"
    editor.replace(made, product, only=lambda user: user is not silu)
    assert silu.args[0] is made
    editor.set_argument(silu, made, product)
    assert silu.args[0] is product
    editor.erase(made)
    assert made not in editor.touched and made not in list(graph_module.graph.nodes)


def test_erasing_what_is_used_is_refused(graph_module, editor):
    with pytest.raises(RuntimeError, match="users"):
        editor.erase(only(graph_module, aten.mul.Tensor))


def test_wrong_operands_are_refused_when_the_call_is_made(graph_module, editor):
    product = only(graph_module, aten.mul.Tensor)
    with editor.at(after=product), pytest.raises(Exception):  # noqa: B017
        editor.call(aten.mm.default, product, product)


def test_sizes_are_constants_or_nodes_and_never_raw_symbols(graph_module, editor):
    product = only(graph_module, aten.mul.Tensor)
    with editor.at(after=product, like=product):
        rows, columns = editor.size(product, 0), editor.size(product, 1)
        made = editor.call(aten.new_zeros.default, product, [product.meta["val"].shape[0], 3])
    assert isinstance(rows, fx.Node) and isinstance(columns, (int, fx.Node))
    assert isinstance(made.args[1][0], fx.Node) and made.args[1][1] == 3
    assert made.meta["val"].shape[0] == product.meta["val"].shape[0]


@pytest.mark.parametrize(
    "spell", [lambda n: n + 1, lambda n: 2 * n, lambda n: n * n + 3, lambda n: n // 2, lambda n: n % 3]
)
def test_arithmetic_on_sizes_becomes_nodes(graph_module, editor, spell):
    product = only(graph_module, aten.mul.Tensor)
    extent = spell(product.meta["val"].shape[0])
    with editor.at(after=product, like=product):
        made = editor.call(aten.new_zeros.default, product, [extent])
    assert str(made.meta["val"].shape[0]) == str(extent)
    graph_module.graph.lint()
    editor.replace(only(graph_module, aten.silu.default), product)


def test_a_size_that_nothing_before_the_place_has_is_refused():
    graph_module = graph_of(lambda x: x[x > 0] * 2, torch.randn(5))
    editor = GraphEditor(graph_module)
    product = only(graph_module, aten.mul.Tensor)
    first = next(node for node in graph_module.graph.nodes if node.op == "call_function")
    with editor.at(before=first), pytest.raises(ValueError, match="no value in front of the insertion point"):
        editor.symbol(product.meta["val"].shape[0])


def test_a_new_size_from_data_is_bound_to_its_node(graph_module, editor):
    product = only(graph_module, aten.mul.Tensor)
    with editor.at(after=product, like=product):
        found = editor.call(aten.nonzero.default, product)
    assert found.meta["unbacked_bindings"]
    assert editor.fake_mode is not None and not editor.fake_mode.shape_env.pending_fresh_unbacked_symbols


def test_sort_brings_operands_before_their_users_and_keeps_the_rest(graph_module, editor):
    product, silu = only(graph_module, aten.mul.Tensor), only(graph_module, aten.silu.default)
    before = list(graph_module.graph.nodes)
    editor.sort()
    assert list(graph_module.graph.nodes) == before
    silu.prepend(silu.next)
    product.prepend(silu)
    editor.sort()
    graph_module.graph.lint()


def test_sort_names_a_cycle(graph_module, editor):
    product, silu = only(graph_module, aten.mul.Tensor), only(graph_module, aten.silu.default)
    product.args = (silu, product.args[1])
    with pytest.raises(ValueError, match=r"cycle among .*mul.*silu"):
        editor.sort()


def test_dead_code_goes_and_what_has_an_effect_stays(graph_module, editor):
    product = only(graph_module, aten.mul.Tensor)
    with editor.at(after=product):
        dead = editor.call(aten.neg.default, product)
        effect = editor.call(aten._assert_async.msg, editor.call(aten.any.default, product), "some")
    assert editor.eliminate_dead_code()
    alive = list(graph_module.graph.nodes)
    assert dead not in alive and effect in alive and dead not in editor.touched
    assert not editor.eliminate_dead_code()


def test_a_stamp_begins_a_new_record(graph_module, editor):
    product = only(graph_module, aten.mul.Tensor)
    with editor.at(after=product):
        editor.call(aten.neg.default, product)
    editor.stamp("next")
    assert not editor.touched and editor.edits == 0


def test_recompute_tags_follow(graph_module):
    product, silu = only(graph_module, aten.mul.Tensor), only(graph_module, aten.silu.default)
    product.meta["recompute"], product.meta["ac_graph_id"] = "tag", 3
    copy_provenance(product, silu)
    assert (silu.meta["recompute"], silu.meta["ac_graph_id"]) == ("tag", 3)


def test_an_edited_layer_still_runs_and_verifies_at_any_size():
    layer = Layer()
    mask = torch.ones(2, 5, 5, dtype=torch.bool)
    graph_module = graph_of(layer, torch.randn(2, 5, WIDTH), mask)
    editor = GraphEditor(graph_module)
    for node in graph_module.graph.find_nodes(op="call_function", target=aten.silu.default):
        with editor.at(before=node, like=node):
            gate = editor.call(aten.sigmoid.default, node.args[0])
            editor.replace(node, editor.call(aten.mul.Tensor, node.args[0], gate))
    assert editor.eliminate_dead_code()
    verify_shapes(graph_module, editor, editor.touched)
    verify_shapes(graph_module, editor, None)


def test_only_users_whose_operand_became_of_another_kind_need_verification(graph_module, editor):
    product, silu = only(graph_module, aten.mul.Tensor), only(graph_module, aten.silu.default)
    with editor.at(after=product, like=product):
        same, other = editor.call(aten.neg.default, product), editor.call(aten.to.dtype, product, torch.float64)
    editor.set_argument(silu, product, same)
    assert editor.touched == {same, other, silu} and not editor.rewired
    editor.set_argument(silu, same, other)
    assert editor.rewired == {silu}


# ------------------------------------------------------------------------------------- calls of one kind
def test_calls_of_one_kind_share_their_value(editor, graph_module):
    x = graph_module.graph.find_nodes(op="placeholder")[-1].meta["val"]
    first = editor.evaluate(aten.mul.Scalar, x, 2.0)
    assert editor.evaluate(aten.mul.Scalar, x, 2.0) is first
    y = editor.evaluate(aten.relu.default, x)
    assert editor.evaluate(aten.mul.Scalar, y, 2.0) is first  # of one kind with x
    wide = editor.evaluate(aten.to.dtype, x, torch.float64)
    turned = editor.evaluate(aten.t.default, x)
    for other in ((wide, 2.0), (turned, 2.0), (x, 2), (x, -2.0)):
        assert editor.evaluate(aten.mul.Scalar, *other) is not first


def test_sizes_that_the_data_tells_are_of_one_tensor(editor, graph_module):
    x = graph_module.graph.find_nodes(op="placeholder")[-1]
    with editor.at(after=x, like=x):
        y = editor.call(aten.clone.default, x)
        first, again, second = (editor.call(aten.nonzero.default, value) for value in (x, x, y))
    sizes = [node.meta["val"].shape[0].node.expr for node in (first, again, second)]
    assert sizes[0] == sizes[1] != sizes[2]
