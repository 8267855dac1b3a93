"""The pass pipeline: its text, its presets, its contracts, and what happens when a pass is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from models import Mlp, Sequences, assert_same_run, batch, graphs, optimize, vectors
from torch import Tensor, nn
from toy_passes import DropOnes, ExpandSilu, Wrong

import gr_compile
from gr_compile import ConfigError, Pass, PassError, PassResult, PipelineError
from gr_compile.graph_pass import NUMERICS
from gr_compile.numerics import NumericsError
from gr_compile.passes.canonicalize import Canonicalize
from gr_compile.pipeline import PRESETS, Pipeline, list_passes

OURS = ["canonicalize", "recognize-softmax", "eliminate-padding", "fuse-jagged-attention", "fuse-sampled-logits"]
PACKED = [OURS[0], OURS[2]]


def names(passes) -> list[str]:
    return [item.name for item in Pipeline.parse(passes).passes]


# ---------------------------------------------------------------------------------------------- the text
@pytest.mark.parametrize("passes, expected", [
    ("default", OURS),
    ("none", []),
    (None, []),
    ("", []),
    ([], []),
    ("bitwise", ["canonicalize"]),
    ("canonicalize", ["canonicalize"]),
    (" canonicalize , eliminate-padding ", PACKED),
    ("fuse-sampled-logits,fuse-jagged-attention,recognize-softmax,eliminate-padding,canonicalize", OURS),
    ("default,-fuse-jagged-attention", [*OURS[:3], OURS[4]]),
    ("none,-canonicalize", []),
    ("bitwise,-fuse-jagged-attention", ["canonicalize"]),
    ("-canonicalize,bitwise", ["canonicalize"]),
    (["canonicalize", "eliminate-padding{mode=bucket}"], PACKED),
    ([Canonicalize(), "eliminate-padding"], PACKED),
    (ExpandSilu(), ["expand-silu"]),
    ([ExpandSilu(), "default"], ["expand-silu", *OURS]),
])  # fmt: skip
def test_which_passes_a_text_means_and_in_which_order(passes, expected):
    assert sorted(names(passes)) == sorted(expected)
    ours = [name for name in names(passes) if name in OURS]
    assert ours == [name for name in OURS if name in ours], "order follows from requires and provides"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_reaches_up_to_its_numerics(preset):
    limit = PRESETS[preset]
    allowed = NUMERICS[: NUMERICS.index(limit) + 1] if limit else ()
    assert all(item.numerics in allowed for item in Pipeline.parse(preset).passes)
    assert "changes-objective" not in allowed


@pytest.mark.parametrize("text", [
    "none", "canonicalize", "default", "canonicalize,eliminate-padding{mode=bucket,multiple=256}",
])  # fmt: skip
def test_text_and_passes_map_one_to_one(text):
    pipeline = Pipeline.parse(text)
    assert Pipeline.parse(pipeline.text()) == pipeline
    assert Pipeline.parse(pipeline.text()).text() == pipeline.text()


def test_options_are_converted_to_the_types_of_the_fields():
    (pad,) = (
        p
        for p in Pipeline.parse("default,eliminate-padding{mode=bucket, multiple=64}").passes
        if p.name == OURS[2]
    )
    assert (pad.mode, pad.multiple) == ("bucket", 64)
    assert ExpandSilu(factor=2.0).text() == "expand-silu{factor=2.0}"
    assert ExpandSilu().options == {"factor": 1.0, "keep": False, "label": "x"}


@pytest.mark.parametrize("passes, said", [
    ("canonicalise", "no pass is called 'canonicalise'; closest: canonicalize"),
    ("defualt", "closest: default"),
    ("default,-eliminate-paddding", "closest: eliminate-padding"),
    ("quux", "Known: canonicalize, recognize-softmax, eliminate-padding, fuse-jagged-attention, dedupe-lookups, fuse-sampled-logits, fuse-token-operators, share-logits, offload-negatives, insert-fp16; presets: none, bitwise"),
    ("eliminate-padding{mod=bucket}", "no option 'mod'.*did you mean 'mode'"),
    ("canonicalize{x=1}", "no option 'x' .it has: none."),
    ("eliminate-padding{multiple=many}", "multiple=many}: expected int"),
    ("eliminate-padding{mode=sometimes}", "mode='sometimes'"),
    ("eliminate-padding{multiple=0}", "multiple"),
    ("eliminate-padding{mode=}", "mode"),
    ("default{x=1}", "the preset default takes no options"),
    ("-default", "-default: a preset cannot be taken away"),
    ("-canonicalize{x=1}", "-canonicalize takes no options"),
    ("canonicalize;default", "cannot read the pipeline at"),
    ("canonicalize,,default", "cannot read the pipeline at"),
    ("eliminate-padding{mode=bucket", "cannot read the pipeline at"),
    (3, "got int"),
    (["canonicalize", 3], "got int"),
    (Canonicalize, "got the class Canonicalize; write Canonicalize()"),
])  # fmt: skip
def test_a_pipeline_that_cannot_be_meant_says_what_would_be(passes, said):
    with pytest.raises(PipelineError, match=said):
        gr_compile.optimize(Mlp(), passes=passes)


# --------------------------------------------------------------------------------------------- contracts
def make(name: str, **contract) -> Pass:
    """A pass that does nothing, with the given contract."""

    @dataclass(frozen=True)
    class Made(Pass):
        def run(self, graph_module, context):
            return PassResult(False)

    Made.name = name
    for key, value in contract.items():
        setattr(Made, key, frozenset(value))
    return Made()


def test_order_follows_from_requires_provides_and_after():
    late, early = make("late", requires={"x"}), make("early", provides={"x"})
    soft = make("soft", after={"late", "absent"})
    assert names([soft, late, early]) == ["early", "late", "soft"]
    assert names([make("b"), make("a")]) == ["b", "a"], "ties stay as given"


@pytest.mark.parametrize("passes, said", [
    ([make("a", requires={"x"})], "a requires x, which no pass before it provides"),
    ([make("a", requires={"canonical"})], "a requires canonical.*; add canonicalize"),
    ([make("a", requires={"y"}, provides={"x"}), make("b", requires={"x"}, provides={"y"})], "cycle: (a -> b|b -> a)"),
    ([make("a", conflicts={"b"}), make("b")], "a conflicts with b"),
    ([make("a"), make("b", conflicts={"a"})], "b conflicts with a"),
    ([make("a", provides={"x"}), make("b", conflicts={"x"})], "b conflicts with x"),
    ([make("a", conflicts={"x"}), make("b", provides={"x"})], "a conflicts with x"),
])  # fmt: skip
def test_contradictory_contracts_are_refused_before_anything_runs(passes, said):
    with pytest.raises(PipelineError, match=said):
        gr_compile.optimize(Mlp(), passes=passes)


def test_the_installed_passes_are_listed_in_the_order_in_which_they_run():
    by_name = ["dedupe-lookups", "fuse-token-operators", "share-logits", "offload-negatives"]  # no preset has them here
    assert [item.name for item in list_passes()] == [*OURS[:4], by_name[0], OURS[4], *by_name[1:], "insert-fp16"]
    assert all(issubclass(item, Pass) for item in gr_compile.list_passes())


# --------------------------------------------------------------------------------------------- the loop
def test_a_third_partys_pass_runs_and_is_recorded():
    fast, model = optimize(Mlp().eval(), passes=[ExpandSilu()]), Mlp().eval()
    fast.load_state_dict(model.state_dict())
    torch.testing.assert_close(fast(vectors()), model(vectors()))
    (record,) = gr_compile.report(fast)[0].passes
    assert record.name == "expand-silu" and record.changed and record.nodes_after == record.nodes_before + 1
    assert "F.silu" in record.matches[0].where.code
    assert record.operators_after["aten.sigmoid.default"] == 1


@pytest.mark.parametrize("how, said", [
    ("raises", "raised KeyError: 'no such table'"),
    ("returns nothing", "returned NoneType, not a PassResult"),
    ("returns nonsense", "returned str, not a PassResult"),
    ("says changed", "says changed=True, but it did not change the graph"),
    ("says unchanged", "says changed=False, but it changed the graph"),
    ("breaks shapes", "broke the graph: .*dropout.* now gives"),
    ("breaks dtypes", "broke the graph: .*dropout.* now gives"),
    ("bypasses the editor", "broke the graph: .*not made by the GraphEditor"),
    ("breaks the order", "broke the graph"),
])  # fmt: skip
def test_a_third_partys_wrong_pass_is_named_with_those_before_it(how, said):
    fast = optimize(Mlp(), passes=[DropOnes(), Wrong(how=how)])
    with pytest.raises(PassError, match=said) as raised:
        fast(vectors())
    assert str(raised.value).startswith("pass 'wrong' (after drop-ones; leave it out of passes=)")
    assert raised.value.culprit == Wrong(how=how)
    if how == "raises":
        assert isinstance(raised.value.__cause__, KeyError), "the traceback of the pass is not lost"


@pytest.mark.parametrize("verify", ["off", "shapes", "full"])
def test_verification_is_as_strong_as_asked_for(verify):
    fast = optimize(Mlp(), passes=[Wrong(how="bypasses the editor")], verify=verify)
    if verify == "off":
        fast(vectors())
    else:
        with pytest.raises(PassError):
            fast(vectors())


def test_what_to_leave_out_is_said_as_a_pipeline_that_parses():
    fast = optimize(Mlp(), passes=["canonicalize", Wrong()])
    with pytest.raises(PassError, match="passes='canonicalize'"):
        fast(vectors())


def test_strict_makes_a_miss_an_error_that_lists_it():
    fast = optimize(Mlp(), passes=[ExpandSilu(keep=True)], strict=True)
    with pytest.raises(
        PassError, match=r"strict=True and expand-silu missed:\s+kept \[.*F.silu.*-> set keep=false"
    ):
        fast(vectors())
    lenient = optimize(Mlp(), passes=[ExpandSilu(keep=True)])
    lenient(vectors())
    assert gr_compile.report(lenient)[0].misses[0].hint == "set keep=false"


def test_strict_makes_an_uncaptured_graph_an_error():
    fast = optimize(lambda x: x.add_(1), strict=True)
    with pytest.raises(PassError, match=r"strict=True and a graph was not captured: .*changed in place"):
        fast(vectors())


@pytest.mark.parametrize("where", ["run", "target"])
def test_a_defect_of_our_own_pass_leaves_it_out_and_says_so(where, monkeypatch, said):
    from gr_compile.lowering.eager import EagerTarget

    def fails(*args, **kwargs):
        raise RuntimeError("a bug of ours")

    def rejects(self, graph_module, inputs):
        if not list(graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.nonzero.default)):
            return graph_module.forward
        raise RuntimeError("a bug of ours")

    if where == "run":
        monkeypatch.setattr("gr_compile.passes.eliminate_padding.rewrite.EliminatePadding.run", fails)
    else:
        monkeypatch.setattr(EagerTarget, "compile", rejects)
    model = Sequences()
    fast = optimize(model, dynamic=True)
    assert_same_run(fast, model, *batch([5, 3, 0], 5))
    failed, used = gr_compile.report(fast)
    assert "a bug of ours" in failed.passes_failed
    assert "eliminate-padding" not in used.pipeline
    assert any("a bug of ours" in message for message in said)
    strict = optimize(Sequences(), dynamic=True, strict=True)
    with pytest.raises(PassError, match="a bug of ours"):
        strict(*batch([5, 3, 0], 5))


# -------------------------------------------------------------------------------------------- numerics
def test_verify_numerics_names_the_pass_that_changes_the_numbers():
    fast = optimize(Mlp(), passes=[DropOnes(), ExpandSilu(factor=1.01)], verify="numerics")
    with pytest.raises(NumericsError, match="expand-silu changed output 0"):
        fast(vectors())
    optimize(Mlp(), passes=[DropOnes(), ExpandSilu()], verify="numerics")(vectors())


@dataclass(frozen=True)
class DetachSilu(Pass):
    """The outputs stay; the gradients go."""

    name: ClassVar[str] = "detach-silu"

    def run(self, graph_module, context):
        for node in graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.silu.default):
            with context.editor.at(after=node, like=node):
                detached = context.editor.call(torch.ops.aten.detach.default, node)
            context.editor.replace(node, detached)
        return PassResult(True)


def test_verify_numerics_compares_gradients():
    fast = optimize(Mlp(), passes=[DetachSilu()], verify="numerics")
    with pytest.raises(NumericsError, match=r"detach-silu.*gradient of"):
        fast(vectors())


def test_verify_numerics_lets_our_own_passes_and_dropout_through():
    model = Sequences(rate=0.3).train()
    fast = optimize(model, verify="numerics", dynamic=True)
    fast(*batch([6, 3, 0], 6)).sum().backward()
    assert graphs(fast) == 1


class AttentionDropout(nn.Module):
    """Dropout of attention weights, which the fused operator draws itself."""

    def __init__(self, sdpa: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 8)
        self.sdpa = sdpa

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        valid = torch.arange(ids.shape[1]) < lengths[:, None]
        x, mask = self.embedding(ids), valid[:, None, :]
        if self.sdpa:
            x = F.scaled_dot_product_attention(x, x, x, attn_mask=mask, dropout_p=0.5)
        else:
            scores = F.silu(x @ x.mT) * mask
            x = F.dropout(scores, 0.5) @ x
        return (x * valid[..., None]).sum(1)


@pytest.mark.parametrize("sdpa", [True, False])
def test_verify_numerics_knows_dropout_inside_attention(sdpa):
    torch.manual_seed(0)
    fast = optimize(AttentionDropout(sdpa), verify="numerics", dynamic=True)
    fast(*batch([6, 3, 1], 6)).sum().backward()
    (report,) = gr_compile.report(fast)
    assert next(record for record in report.passes if record.name == "fuse-jagged-attention").matches


@pytest.mark.parametrize("options, said", [
    ({"verify": "maybe"}, "verify='maybe'"),
    ({"padded_outputs": "nan"}, "padded_outputs='nan'"),
    ({"dynamic": "yes"}, "dynamic='yes'"),
    ({"strict": "yes"}, "strict='yes'"),
    ({"expected_fill": 0}, "expected_fill=0"),
    ({"expected_fill": 1.5}, "expected_fill=1.5"),
    ({"expected_fill": "half"}, "expected_fill='half'"),
    ({"target": "tpu"}, "target='tpu': no such target; there are ascend, eager, inductor"),
    ({"dump": 3}, "dump=3"),
])  # fmt: skip
def test_other_arguments_that_cannot_be_meant_are_named(options, said):
    with pytest.raises(ConfigError, match=said):
        optimize(Mlp(), **options)
