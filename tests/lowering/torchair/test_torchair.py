"""The zoo's models through torchair's own converter: operators, attributes and edges of the GE graphs, and the numbers.

Skipped, with the reason, where torch_npu's wheel cannot be had.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from cases import DEFAULT, MASKED, NEGATIVES, REPLAYED, SHARED, SHIPPED, SLOW, Case
from pbtxt import GeNode, read
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from gr_compile.lower import LowerError
from gr_compile.lowering.ascendc.attention.call import dtype_name
from gr_compile.lowering.ascendc.attention.printed import AttentionCall, print_programs
from gr_compile.lowering.ascendc.lowered import write_operators
from gr_compile.lowering.ascendc.machine import machine
from gr_compile.lowering.ascendc.operators import OPERATORS
from gr_compile.lowering.torchair import convert, files, library
from gr_compile.lowering.torchair.request import Request
from gr_compile.lowering.torchair.target import AscendLowering, Work, _types, refuse_failures
from gr_compile.ops.score_program import ScoreProgram

gr = torch.ops.gr


LITERAL, OFFSETS = torch.tensor([[0.5, 2.0, 3.0]]), torch.tensor([0, 1])


def small(name, function, *inputs, training=False):
    """A graph of a few operators."""
    graph = make_fx(function, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True)(*inputs)
    return Request(name, graph, inputs, training, False, False)


def refused():
    place, mask = torch.tensor([1]), torch.tensor([[True, False]])
    wide = torch.zeros(1, 2, 3, dtype=torch.float64)
    return [
        small("float64", lambda x, i: [gr.pack(x, i)], wide, place),
        small("unknown", lambda x: [torch.lgamma(x), torch.lgamma(x + 1), torch.digamma(x)], torch.ones(3)),
        small("fill", lambda x, i: [gr.unpack(x, i, 1, 2, 1 << 40)], torch.tensor([7]), place),
        small("literal", lambda x, i: [gr.segment_sum(gr.pack(x, i) * LITERAL, OFFSETS)], wide.float(), place),
        small("stored", lambda q, i: [gr.sampled_logits(q, q, i, None, None, -1, q.half())], wide[0].float(), mask.long().T),
        small("suffix", lambda m: [gr.suffix_any(m)], mask),
    ]


class Outcome:
    """Everything that is lowered in these tests, in one process: importing torchair is what takes the time."""

    def __init__(self, cases: tuple[Case, ...], folder) -> None:
        try:
            found = files.fetch()
        except files.TorchairMissing as error:
            pytest.skip(str(error))
        scratch, self.folder = folder / "scratch", folder / "out"
        self.folder.mkdir()
        scratch.mkdir()
        with convert.converter(found, scratch) as child:
            self.work = {str(case): Work(case.capture(), case.mode, case.kernels) for case in cases}
            requests = [*(item.request for item in self.work.values()), *refused()]
            self.converted = {one.name: one for one in child.convert(requests)}
        self.described = {}
        for name, item in self.work.items():
            refuse_failures([self.converted[name]])
            self.described[name] = item.finish(self.converted[name], scratch, self.folder)
        self.scratch = scratch

    def attention(self, case: Case, part: str = "forward") -> list[AttentionCall]:
        """The calls that kernels are printed for."""
        (found,) = [one for one in self.converted[str(case)].parts if one.name == part]
        return [AttentionCall.read(call) for call in found.attention]

    def graph(self, case: Case, part: str = "forward") -> dict[str, GeNode]:
        return read(self.folder / str(case) / f"{part}.pbtxt")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, request):
    slow = "slow" in request.config.getoption("markexpr") and "not slow" not in request.config.getoption("markexpr")
    cases = (*DEFAULT, *SLOW) if slow else DEFAULT
    return Outcome((*cases, *MASKED, *NEGATIVES, SHARED, REPLAYED, SHIPPED), tmp_path_factory.mktemp("lowered"))


CASES = [
    *(pytest.param(case, id=str(case)) for case in DEFAULT),
    *(pytest.param(case, id=str(case), marks=pytest.mark.slow) for case in SLOW),
]


def of_type(nodes: dict[str, GeNode], kind: str) -> list[GeNode]:
    return [node for node in nodes.values() if node.type == kind]


@pytest.mark.parametrize("case", CASES)
def test_the_graphs_are_whole(outcome, case):
    """Every edge comes from a node that is there, and one node is the end."""
    for part in ("forward", "backward") if case.training else ("forward",):
        nodes = outcome.graph(case, part)
        for node in nodes.values():
            assert all(edge == "" or edge.rpartition(":")[0] in nodes for edge in node.inputs), node
        assert len(of_type(nodes, "NetOutput")) == 1 and of_type(nodes, "NetOutput")[0].inputs
        counts = Counter(node.type for node in nodes.values())
        (described,) = [p for p in outcome.described[str(case)]["parts"] if p["name"] == part]
        assert described["operators"] == dict(counts)
    assert len(outcome.described[str(case)]["parts"]) == 1 + case.training


@pytest.mark.parametrize("case", CASES)
def test_our_operators_are_as_the_table_says(outcome, case):
    for part in ("forward", "backward") if case.training else ("forward",):
        nodes = outcome.graph(case, part)
        for row in OPERATORS.values():
            for node in of_type(nodes, row.ge_type):
                order = [port.name for port in row.inputs]
                fed = [port_of(row, name) for name in node.strings("_input_name_key")]
                assert fed == sorted(fed, key=order.index)
                assert {port.name for port in row.inputs if port.role != "dynamic"} <= set(fed)
                assert {attribute.name for attribute in row.attributes} <= node.attributes.keys()


def port_of(row, name):
    """The input of the table that a GE input is: elements of a dynamic one have a number behind its name."""
    names = {port.name: port.role for port in row.inputs}
    whole = [n for n, role in names.items() if role == "dynamic" and name.startswith(n) and name[len(n) :].isdigit()]
    return name if name in names else whole[0]


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0].passes != "none"])
def test_attention_is_one_node_a_map_with_the_models_program(outcome, case):
    nodes = outcome.graph(case)
    attention = of_type(nodes, "GrJaggedAttention")
    assert len(attention) == case.attentions
    item = outcome.work[str(case)]
    called = item.request.graph.graph.find_nodes(op="call_function", target=gr.jagged_attention.default)
    programs = [node.args[-1] for node in called]
    assert [node.strings("program")[0] for node in attention] == programs
    for node, program in zip(attention, programs):
        parsed = ScoreProgram.parse(program)
        types = [kind for kind in node.strings("leaves_types")[0].split(",") if kind]
        assert len(types) == len(parsed.leaves)
        fed = (port_of(OPERATORS["gr::jagged_attention"], name) for name in node.strings("_input_name_key"))
        assert Counter(name for name in fed if "leaves" in name) == Counter(f"leaves_{kind}" for kind in types)
        assert bool(node.named_inputs()["seed"]) == parsed.has_dropout


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0].passes != "none"])
def test_kernels_of_attention_are_printed_for_what_the_nodes_hold(outcome, case):
    for part in ("forward", "backward") if case.training else ("forward",):
        nodes = [node for node in outcome.graph(case, part).values() if node.type.startswith("GrJaggedAttention")]
        calls = outcome.attention(case, part)
        assert len(calls) == case.layers
        for node, call in zip(nodes, calls, strict=True):
            assert node.strings("program") == [call.call.program.text()] and node.numbers("heads") == [call.call.heads]
            assert node.strings("leaves_types") == [",".join(map(dtype_name, call.call.leaf_dtypes))]
            assert call.needs == (None if part == "forward" else tuple(node.flags("needs_grad")))
            assert not case.dynamic or all((at, 0) in call.call.open for at, x in enumerate(call.call.extents) if len(x) > 1)
    dropped = case.dropout and "dropout" in outcome.attention(case)[0].call.program.text()
    calls = outcome.attention(case)
    assert bool(print_programs(calls, machine("910b1")).refused) == bool(dropped)


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0].passes != "none"])
def test_packed_tokens_come_from_a_count_that_is_an_input(outcome, case):
    nodes = outcome.graph(case)
    (places,) = of_type(nodes, "GrTruePlaces")
    count = nodes[places.named_inputs()["count"].rpartition(":")[0]]
    assert count.type == ("Data" if case.dynamic else "Const")
    assert not of_type(nodes, "GrCountTrue")
    reached = {edge.rpartition(":")[0] for node in of_type(nodes, "GrPack") for edge in node.inputs[1:]}
    assert reached and all(_comes_from(nodes, name, places.name) for name in reached)
    assert len(outcome.described[str(case)]["counts"]) == 1


def _comes_from(nodes, name, wanted):
    while name != wanted and nodes[name].inputs:
        name = nodes[name].inputs[0].rpartition(":")[0]
    return name == wanted


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0].training])
def test_the_backward_takes_the_same_programs_and_sums_tables_in_order(outcome, case):
    forward, backward = outcome.graph(case), outcome.graph(case, "backward")
    programs = {node.strings("program")[0] for node in of_type(forward, "GrJaggedAttention")}
    gradients = of_type(backward, "GrJaggedAttentionBackward")
    assert len(gradients) == case.attentions and {node.strings("program")[0] for node in gradients} == programs
    for node in gradients:
        needed = sum(node.flags("needs_grad")[3:])
        made = [key for key in node.attributes if key.startswith("[o]")]
        assert len(made) == 3 + needed
    assert of_type(backward, "GrLookupGradient")
    assert not of_type(backward, "EmbeddingDenseGrad")


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0].model in ("hstu", "stu") and c.values[0].passes != "none"])
def test_token_operators_are_nodes_of_both_graphs(outcome, case):
    """norm and gate, SiLU and split, a layer each; their gradients are operators, too."""
    for part in ("forward", "backward") if case.training else ("forward",):
        nodes = outcome.graph(case, part)
        behind = "" if part == "forward" else "Backward"
        gates, splits = (of_type(nodes, kind + behind) for kind in ("GrNormGate", "GrSiluSplit"))
        assert len(gates) == len(splits) == case.layers
        assert all({"eps", "centered"} <= node.attributes.keys() for node in gates)
        affine = case.model == "stu"
        assert all(bool(node.named_inputs()["weight"]) == affine for node in gates)
        read = {edge for node in nodes.values() for edge in node.inputs}
        outputs = {f"{node.name}:{k}" for node in splits for k in range(4 if part == "forward" else 1)}
        assert outputs <= read


@pytest.mark.parametrize("case", CASES)
def test_sizes_are_symbols_or_numbers(outcome, case):
    data = [node for node in outcome.graph(case).values() if node.type == "Data"]
    unknown = sum(-1 in node.sizes() for node in data)
    assert (unknown > 0) == case.dynamic
    assert outcome.described[str(case)]["fixed"] == {}


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_the_models(outcome, case):
    described = outcome.described[str(case)]
    if case.dropout:
        assert described["largest_difference"] is None and "random" in " ".join(described["notes"])
        return
    assert described["largest_difference"] < 1e-5


@pytest.mark.parametrize("case", [c for c in CASES if not c.values[0].dropout])
def test_what_ran_is_eager_torch(outcome, case):
    """Not only the captured graph's numbers: the model's own, called as a user calls it."""
    model, batch = case.build()
    outputs, gradients = torch.load(outcome.scratch / str(case) / "ran.pt")
    with torch.set_grad_enabled(case.training):
        expected = model(**batch)
    tensors = [expected] if isinstance(expected, Tensor) else [*expected]
    assert all(any(torch.allclose(o, e, 1e-4, 1e-5) for o in outputs if o.shape == e.shape) for e in tensors)
    assert bool([g for g in gradients if g is not None]) == case.training


@pytest.mark.parametrize("case", MASKED, ids=str)
def test_reads_by_masks_take_counts_as_inputs(outcome, case):
    """Whatever idiom says the places: x[mask], masked_select, nonzero as a tuple; one_hot is written out."""
    described, graph = outcome.described[str(case)], outcome.graph(case)
    assert described["largest_difference"] < 1e-5 and not described["fixed"]
    assert set(described["counts"].values()) == {4, 6} and of_type(graph, "GrTruePlaces")
    assert not of_type(graph, "NonZero") and not of_type(graph, "MaskedSelect")
    (note,) = [text for text in described["notes"] if text.startswith("assertions of the model that are left out")]
    assert int(note.rpartition(" ")[2]) >= 1
    outputs, _ = torch.load(outcome.scratch / str(case) / "ran.pt")
    model, batch = case.build()
    torch.testing.assert_close(outputs[0], model(**batch))


# -------------------------------------------------------------------------------------------------- losses
@pytest.mark.parametrize("case", NEGATIVES, ids=str)
def test_logits_of_negatives_are_one_node_of_each_graph(outcome, case):
    """A cosine and a dot product, positive and negatives together; the numbers are eager torch's, gradients too."""
    described = outcome.described[str(case)]
    assert described["largest_difference"] < 1e-5 and not described["fixed"]
    (forward,), (backward,) = (
        of_type(outcome.graph(case, part), kind)
        for part, kind in (("forward", "GrSampledLogits"), ("backward", "GrSampledLogitsBackward"))
    )
    eps = 1e-6 if case.model == "hstu" else -1.0
    for node in (forward, backward):
        fed = node.named_inputs()
        assert fed["query"] and fed["table"] and fed["ids"] and not fed["group"]
        (number,) = re.findall(r"\bf: ([-\d.e]+)", node.attributes["eps"])
        assert float(number) == pytest.approx(eps)
    flags = [backward.flags(name) or [False] for name in ("need_query", "need_table")]
    assert flags == [[True], [True]]
    read = {edge for node in outcome.graph(case, "backward").values() for edge in node.inputs}
    assert {f"{backward.name}:0", f"{backward.name}:1"} <= read
    model, batch = case.build()
    outputs, _ = torch.load(outcome.scratch / str(case) / "ran.pt")
    torch.testing.assert_close(outputs[0], model(**batch), rtol=1e-4, atol=1e-5)


def test_the_project_holds_the_kernels_of_sampled_logits(outcome, tmp_path):
    case = NEGATIVES[0]
    one, item = outcome.converted[str(case)], outcome.work[str(case)]
    calls = [call for part in one.parts for call in outcome.attention(case, part.name)]
    found = write_operators([(item.request.graph, item.known)], _types([one]), tmp_path, machine("910b1"), calls)
    (tokens,) = item.counts
    (entry,) = [entry for entry in found["kernels"] if entry["operator"] == "gr::sampled_logits"]
    assert (entry["tiling"]["tokens"], entry["tiling"]["samples"], entry["tiling"]["cosine"]) == (tokens, 6, 1)
    assert not found["without_kernel"]
    written = {path.name for path in (tmp_path / "operators" / "op_kernel").iterdir()}
    assert {"gr_sampled_logits", "gr_sampled_logits_backward"} <= written


def test_shared_logits_are_lowered_by_a_sort_and_not_compared_with_the_model(outcome):
    nodes, described = outcome.graph(SHARED), outcome.described[str(SHARED)]
    assert len(of_type(nodes, "GrSampledLogits")) == len(of_type(nodes, "Sort")) == 1
    assert described["largest_difference"] is None
    assert "numbers were not compared: share-logits changed what the model computes" in described["notes"]


# ------------------------------------------------------------------------------------------------- options
def test_a_graph_to_replay_has_sizes_of_its_inputs_alone(outcome):
    described, item = outcome.described[str(REPLAYED)], outcome.work[str(REPLAYED)]
    (part,) = described["parts"]
    assert part["file"].endswith("forward.txt") and part["operators"]["gr.jagged_attention.default"] == 1
    assert (outcome.folder / part["file"]).read_text().startswith("graph():")
    assert described["fixed"] == {} and described["largest_difference"] < 1e-5
    (count,) = item.counts
    calls = outcome.attention(REPLAYED)
    (node,) = item.request.graph.graph.find_nodes(op="call_function", target=gr.jagged_attention.default)
    assert [call.call.program.text() for call in calls] == [node.args[-1]]
    assert count == 12  # 7 valid tokens of 12 places, rounded up to the multiple, at most all of them


@pytest.mark.parametrize("case", [*DEFAULT[:1], REPLAYED])
def test_the_project_holds_every_gr_operator_of_the_graphs(outcome, case, tmp_path):
    """Of GE graphs and of graphs to replay."""
    one = outcome.converted[str(case)]
    calls = [call for part in one.parts for call in outcome.attention(case, part.name)]
    item = outcome.work[str(case)]
    found = write_operators([(item.request.graph, item.known)], _types([one]), tmp_path, machine("910b1"), calls)
    held = {name for part in one.parts for name in part.operators}
    wanted = {name for name, row in OPERATORS.items() if {row.ge_type, str(row.overload)} & held}
    assert {entry["operator"] for entry in found["kernels"]} == wanted and "gr::pack" in wanted
    (tokens,) = item.counts
    packs = [entry["tiling"] for entry in found["kernels"] if entry["operator"] == "gr::pack"]
    assert packs and all(tiling["tokens"] == tokens for tiling in packs)
    attention = [entry["tiling"] for entry in found["kernels"] if entry["operator"] == "gr::jagged_attention"]
    assert attention and all(tiling["q_rows"] == tiling["k_rows"] == tokens for tiling in attention)
    assert found["folder"] == "operators" and not found["without_kernel"]
    written = (tmp_path / "operators" / "op_kernel").iterdir()
    assert {path.name for path in written if path.is_dir()} == {name.replace("::", "_") for name in wanted}


def test_a_program_that_fits_is_huaweis_operator(outcome):
    nodes = outcome.graph(SHIPPED)
    assert outcome.attention(SHIPPED) == []  # no kernel is printed for what the library computes
    (node,) = of_type(nodes, "HstuJaggedForward")
    assert not of_type(nodes, "GrJaggedAttention")
    fed = node.named_inputs()
    assert [name for name, edge in fed.items() if edge] == ["q", "k", "v", "seq_offset_q"]
    assert list(fed) == [name for name, _ in library.INPUTS]
    attributes = {name: node.attributes[name] for name in library.ATTRIBUTES}
    assert node.numbers("mask_type") in ([0], [])  # a default of protobuf is not written
    assert "i: 4" in attributes["max_seqlen_q"] and "f: 0.25" in attributes["silu_scale"]
    assert "f: 0.25" in attributes["alpha"]
    choices = {one["operator"]: one for one in outcome.described[str(SHIPPED)]["kernels"]}
    assert choices["gr::jagged_attention"]["chosen"] == "HstuJaggedForward"
    assert choices["gr::pack"]["chosen"] == "generated" and "any" in choices["gr::pack"]["why"]


# ------------------------------------------------------------------------------------------------ refusals
def test_a_dtype_that_ascend_has_not(outcome):
    assert "gr::pack: dense is float64" in outcome.converted["float64"].error


def test_a_call_that_reads_rows_from_a_copy_has_no_kernel(outcome):
    """insert-fp16 makes none for this target: it has no gr::stored_rows."""
    assert "gr::sampled_logits: no kernel takes stored" in outcome.converted["stored"].error
    assert not AscendLowering().supports("gr::stored_rows")


def test_operators_without_a_converter_are_all_named(outcome):
    found = outcome.converted["unknown"]
    assert found.missing == {"aten.lgamma.default": 2, "aten.digamma.default": 1} and not found.parts
    with pytest.raises(LowerError, match=r"aten.digamma.default \(1x\), aten.lgamma.default \(2x\)"):
        refuse_failures([found])


def test_a_fill_keeps_its_value_in_the_dtype_of_the_rows(outcome):
    nodes = read(outcome.scratch / "fill" / "forward.pbtxt")
    (node,) = of_type(nodes, "GrUnpack")
    fill = nodes[node.named_inputs()["fill"].rpartition(":")[0]]
    text = "".join(fill.attributes.values())
    assert fill.type == "Const" and "DT_INT64" in text and str(1 << 40) in text


def test_a_literal_keeps_its_dtype(outcome):
    nodes = read(outcome.scratch / "literal" / "forward.pbtxt")
    (node,) = of_type(nodes, "GrSegmentSum")
    offsets = node.named_inputs()["offsets"]
    assert "DT_INT64" in node.attributes["[i]offsets"] and offsets.rpartition(":")[0] in nodes
    assert "DT_FLOAT" in node.attributes["[i]values"]


def test_one_graph_that_fails_stops_no_other(outcome):
    assert outcome.converted["suffix"].error == "" and outcome.converted["suffix"].parts
