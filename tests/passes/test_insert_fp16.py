"""insert-fp16: rows of negatives from a copy in 16 bits; what it gives, what it leaves alone, and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loss_models import ITEMS, SAMPLED, Recommender, batch, sampled_softmax
from pass_bench import PassBench, assert_close, run
from rounded_losses import rounded
from torch import Tensor

import gr_compile
from gr_compile.model_zoo import SASRec, SASRecConfig
from gr_compile.model_zoo.fuxi import FuXi, FuXiConfig
from gr_compile.model_zoo.hstu import HSTU, HSTUConfig
from gr_compile.model_zoo.stu import STU, STUConfig
from gr_compile.passes.insert_fp16 import InsertFP16, calibrate
from gr_compile.pipeline import PRESETS, Pipeline, PipelineError

HALF = "insert-fp16"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
LENGTHS, PLACES, R = [7, 3, 0, 1], 7, 5


def bench(loss: Any, batches: Any = None, start: str = "default", **options: Any) -> PassBench:
    text = ",".join(f"{name}={value}" for name, value in options.pop("of", {}).items())
    given = [batch(LENGTHS, PLACES, R)] if batches is None else batches
    return PassBench(Recommender(loss), given, passes=f"{start},{HALF}{{{text}}}", **options)


def assert_rounded(made: PassBench, name: str, dtype: str) -> None:
    """Losses and gradients are those of the eager model whose sampled rows are rounded."""
    model = Recommender(rounded(name, DTYPES[dtype]))
    for inputs in made.batches:
        want, got = run(model, inputs), run(made.fast, inputs)
        assert_close("loss", got.outputs[0], want.outputs[0], 2e-6)
        assert got.gradients.keys() == want.gradients.keys()
        least = 1e-2 * sum(float(gradient.norm()) ** 2 for gradient in want.gradients.values()) ** 0.5
        for parameter, gradient in want.gradients.items():
            assert_close(f"gradient of {parameter}", got.gradients[parameter], gradient, 2e-5, least)


@pytest.mark.parametrize(
    ("name", "dtype", "scale"),
    [
        *((name, "float16", "per-token") for name in SAMPLED),
        *(("cosine", dtype, scale) for dtype in DTYPES for scale in ("per-table", "none")),
        ("by sequence", "bfloat16", "none"), ("log-Q and accidental hits", "bfloat16", "per-token"),
    ],
)  # fmt: skip
def test_losses_and_gradients_are_those_of_rounded_rows(name: str, dtype: str, scale: str, tmp_path: Any) -> None:
    batches = [batch(LENGTHS, PLACES, R), batch([9, 2], 9, R + 1, seed=3), batch([4, 4, 4], 6, 2, seed=4)]
    of = {"dtype": dtype, "scale": scale}
    if (dtype, scale) == ("float16", "none"):
        calibrate(Recommender(SAMPLED[name]), batches).save(tmp_path / "found.json")
        of["calibration"] = str(tmp_path / "found.json")
    made = bench(SAMPLED[name], batches, of=of).assert_fires("eliminate-padding", HALF)
    assert_rounded(made, name, dtype)
    assert len(made.compilations) == 1, "a batch compiled anew"
    assert f"{dtype}" in made.matches(HALF)[0].detail


@pytest.mark.parametrize("name", ["sampled softmax", "by sequence", "of valid tokens"])
def test_it_adds_one_copy_for_each_call_and_nothing_else(name: str) -> None:
    made = bench(SAMPLED[name]).assert_fires(HALF)
    before, after = made.operators_before(HALF), made.operators_after(HALF)
    added = {operator: after[operator] - before[operator] for operator in before | after if after[operator] != before[operator]}
    calls = before["sampled_logits"]
    assert calls and added == {"stored_rows": calls, "getitem": 2 * calls, "detach": calls}
    again = made.run_again(f"canonicalize,{HALF}")[-1]
    assert again.name == HALF and not again.changed and not again.misses


@settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(SAMPLED)), st.lists(st.integers(0, 8), min_size=2, max_size=4).filter(any), st.integers(2, 6),
    st.integers(2, 5), st.sampled_from(sorted(DTYPES)), st.integers(0, 99),
)  # fmt: skip
def test_any_batch(name: str, lengths: list[int], places: int, negatives: int, dtype: str, seed: int) -> None:
    made = bench(SAMPLED[name], [batch(lengths, places, negatives, seed)], of={"dtype": dtype})
    assert_rounded(made.assert_fires(HALF), name, dtype)


def by_sequence(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, negatives: Tensor, _: Tensor) -> Tensor:
    """[B]: the loss of each sequence."""
    logits = torch.einsum("bnd,bnrd->bnr", x, m.items(torch.cat([t[..., None], negatives], -1)))
    return (-F.log_softmax(logits, -1)[..., 0] * mask).sum(1)


@pytest.mark.parametrize("sites", ["negatives", "negatives+embeddings+activations"])
def test_nothing_leaks_from_padding_or_from_other_sequences(sites: str) -> None:
    inputs = tuple(x.clamp(max=57) for x in batch([4, 2, 6], 6, R))
    made = bench(by_sequence, [inputs], of={"sites": sites}, dynamic=False).assert_fires(HALF)
    want = run(made.fast, inputs)
    padded = inputs[0] == 0
    for place, value in ((1, torch.where(padded, 7, inputs[1])), (2, torch.where(padded[..., None], 9, inputs[2]))):
        junk = run(made.fast, (*inputs[:place], value, *inputs[place + 1 :]))
        assert torch.equal(junk.outputs[0], want.outputs[0])
        assert all(torch.equal(junk.gradients[name], gradient) for name, gradient in want.gradients.items())
    edited = [x.clone() for x in inputs]
    edited[0][2], edited[1][2], edited[2][2] = 60, 59, 58
    with torch.no_grad():
        made.model.items.weight[58:] *= 1e4
    assert torch.equal(made.fast(*edited)[:2].detach(), want.outputs[0][:2])


def test_a_table_that_moves_is_copied_anew_in_every_step() -> None:
    made = bench(sampled_softmax)
    with torch.no_grad():
        made.model.items.weight.data.mul_(0.3)  # no version of the parameter changes
    twin = Recommender(rounded("sampled softmax", torch.float16))
    twin.load_state_dict(made.model.state_dict())
    assert_close("loss", made.fast(*made.batches[0]).detach(), twin(*made.batches[0]).detach(), 2e-6)


# ------------------------------------------------------------------------- loss scaling, autocast, overflow
def test_a_loss_scale_changes_no_gradient() -> None:
    made = bench(sampled_softmax, of={"sites": "negatives+embeddings+activations"}, target="inductor")
    inputs = made.batches[0]
    want = run(made.fast, inputs).gradients
    least = 1e-2 * sum(float(gradient.norm()) ** 2 for gradient in want.values()) ** 0.5
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    optimizer = torch.optim.SGD(made.model.parameters(), lr=0.0)
    scaler.scale(made.fast(*inputs)).backward()
    scaler.unscale_(optimizer)
    for name, parameter in made.model.named_parameters():
        if parameter.grad is not None:
            weight = 1.3  # of the one output, in `run`
            assert_close(name, parameter.grad * weight, want[name], 1e-6, least)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**40, "a step was skipped"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype: torch.dtype) -> None:
    inputs = batch(LENGTHS, PLACES, R)
    model = Recommender(sampled_softmax)
    with torch.autocast("cpu", dtype=dtype):
        want = model(*inputs)
        fast = gr_compile.optimize(model, passes=f"default,{HALF}", target="inductor")
        got = fast(*inputs)
    (record,) = [r for report in gr_compile.report(fast) for r in report.passes if r.name == HALF]
    assert record.matches
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)
    got.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("target", ["eager", "inductor"])
def test_an_overflow_in_a_later_step_is_an_error_and_loses_nothing(target: str, tmp_path: Any) -> None:
    inputs = batch(LENGTHS, PLACES, R)
    calibrate(Recommender(sampled_softmax), [inputs]).save(tmp_path / "found.json")
    made = bench(
        sampled_softmax, [inputs], of={"scale": "none", "calibration": tmp_path / "found.json"}, target=target
    ).assert_fires(HALF)
    row = int(inputs[2][0, 0, 0])
    with torch.no_grad():
        made.model.items.weight[row, 2] = 1e6
    with pytest.raises(OverflowError, match=rf"table\[{row}, 2\] is 1e\+06.*scale=per-table or per-token"):
        made.fast(*inputs)
    assert all(parameter.grad is None for parameter in made.model.parameters())
    with torch.no_grad():
        made.model.items.weight[row, 2] = 1.0
    assert made.fast(*inputs).isfinite()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_in_a_row_are_those_of_eager(bad: float) -> None:
    inputs = batch(LENGTHS, PLACES, R)
    made = bench(sampled_softmax, [inputs], of={"scale": "per-table"})
    with torch.no_grad():
        made.model.items.weight[int(inputs[2][0, 0, 0])] = bad
    got, want = made.fast(*inputs), made.model(*inputs)
    assert got.isnan() == want.isnan() and got.isfinite() == want.isfinite()


# ---------------------------------------------------------------------------------------------- whole models
ZOO = {
    "hstu": lambda: (HSTU(HSTUConfig(50, 12, embedding_dim=16, num_heads=2, attention_dim=8, linear_dim=8, dropout=0.0)), 2),
    "fuxi": lambda: (FuXi(FuXiConfig(50, 12, embedding_dim=16, num_heads=2, attention_dim=8, linear_dim=8, dropout=0.0)), 2),
    "stu": lambda: (STU(STUConfig(50, 12, embedding_dim=16, num_heads=2, attention_dim=8, hidden_dim=8, dropout=0.0)), 3),
    "sasrec": lambda: (SASRec(SASRecConfig(50, 12, embedding_dim=16, num_heads=2, dropout=0.0)), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_models_of_the_zoo_learn_with_every_site_in_16_bits(name: str) -> None:
    torch.manual_seed(0)
    model, arguments = ZOO[name]()
    lengths = torch.tensor([12, 5, 9])
    mask = torch.arange(12) < lengths[:, None]
    ids = torch.randint(1, 50, (3, 12)) * mask
    inputs = (ids, torch.arange(36).view(3, 12) * 1000, lengths)[:arguments]
    sampled = {"targets": torch.randint(1, 50, (3, 12)) * mask, "negatives": torch.randint(1, 50, (3, 12, 6))}
    exact = model(*inputs, **sampled)
    wanted = torch.autograd.grad(exact, [*model.parameters()], allow_unused=True)
    fast = gr_compile.optimize(
        model, passes=f"default,{HALF}{{sites=negatives+embeddings+activations}}", target="inductor"
    )
    got = fast(*inputs, **sampled)
    found = torch.autograd.grad(got, [*model.parameters()], allow_unused=True)
    (record,) = [r for report in gr_compile.report(fast) for r in report.passes if r.name == HALF]
    kinds = {match.what.split(" of ")[0] for match in record.matches}
    assert kinds == {"negatives", "embeddings", "activations"} and not record.misses
    assert_close("loss", got.detach(), exact.detach(), 1e-3)
    least = 1e-2 * sum(float(w.norm()) ** 2 for w in wanted if w is not None) ** 0.5
    for one, other in zip(found, wanted):
        assert other is None or assert_close("gradient", one, other, 1e-2, least) is None


def test_what_a_backward_keeps_is_in_16_bits() -> None:
    def kept(passes: str) -> dict[torch.dtype, int]:
        sizes: dict[torch.dtype, int] = {}

        def keep(x: Tensor) -> Tensor:
            sizes[x.dtype] = sizes.get(x.dtype, 0) + x.numel() * x.element_size()
            return x

        torch._dynamo.reset()
        fast = gr_compile.optimize(model, passes=passes)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            fast(x, torch.ones(64)).backward()
        return sizes

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(6))

        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            for layer in self.layers:
                x = F.gelu(layer(x)) * weights
            return x.sum()

    torch.manual_seed(0)
    model, x = Tower(), torch.randn(512, 64)
    plain, stored = kept("none"), kept(f"none,{HALF}{{sites=activations}}")
    assert torch.float16 not in plain
    activations = 512 * 64
    assert stored[torch.float16] >= 6 * activations * 2
    assert plain[torch.float32] - stored[torch.float32] >= 5 * activations * 4


# ------------------------------------------------------------------------------------------------------ misses
@pytest.mark.parametrize(
    ("of", "start", "reason", "line"),
    [
        ({"scale": "none"}, "default", "nothing is known of the range, and float16 ends at 65504", "einsum"),
        ({"dtype": "bfloat16", "tolerance": 1e-3}, "default", "bfloat16 rounds by up to 3.9e-03, and tolerance is 1.0e-03", "einsum"),
        ({}, "canonicalize,fuse-sampled-logits", "padded places would be read and stored, too", "einsum"),
        ({}, "default,-fuse-sampled-logits", "rows of negatives are looked up and kept", "einsum"),
        ({"sites": "activations"}, "canonicalize", "padded places would be read and stored, too", "self.q(x)"),
    ],
)  # fmt: skip
def test_what_stays_in_32_bits_and_why(of: dict[str, Any], start: str, reason: str, line: str) -> None:
    made = bench(sampled_softmax, of=of, start=start).assert_parity()
    made.assert_misses(HALF, reason, line)
    assert not made.matches(HALF)


def test_float64_tables_and_values_stay() -> None:
    made = PassBench(
        Recommender(sampled_softmax).double(), [batch(LENGTHS, PLACES, R)],
        passes=f"default,{HALF}{{sites=negatives+activations}}",
    ).assert_parity()  # fmt: skip
    reasons = {miss.reason for miss in made.misses(HALF)}
    assert reasons == {"the table is float64, not float32", "the value is float64, not float32"}


def test_what_a_checkpoint_computes_again_is_not_stored() -> None:
    def loss(m: Recommender, x: Tensor, mask: Tensor, *_: Tensor) -> Tensor:
        again = torch.utils.checkpoint.checkpoint(lambda y: F.relu(m.o(y)), x, use_reentrant=False)
        return (again * mask.unsqueeze(-1)).sum()

    made = bench(loss, of={"sites": "activations"})
    made.assert_misses(HALF, "a checkpoint computes it again in the backward", "m.o(y)")
    names = ("q.linear", "k.linear", "v.linear", "jagged_attention", "o.linear")
    assert {match.what for match in made.matches(HALF)} == {f"activations of {name}" for name in names}


@pytest.mark.parametrize(("scale", "fires"), [("per-token", False), ("per-table", True)])
def test_rows_that_their_scales_would_make_wider_stay(scale: str, fires: bool) -> None:
    def loss(m: Recommender, x: Tensor, mask: Tensor, *_: Tensor) -> Tensor:
        return (torch.sigmoid(F.linear(x, m.o.weight[:2])) * mask.unsqueeze(-1)).sum()

    made = bench(loss, of={"sites": "activations", "scale": scale})
    assert len(made.matches(HALF)) == (6 if fires else 5)
    if not fires:
        made.assert_misses(HALF, "a row of 2 takes as much in 16 bits as in 32", "m.o.weight[:2]")


def test_without_gradients_no_activation_is_kept() -> None:
    model = Recommender(sampled_softmax)
    fast = gr_compile.optimize(model, passes=f"default,{HALF}{{sites=embeddings+activations}}", target="eager")
    with torch.no_grad():
        fast(*batch(LENGTHS, PLACES, R))
    (record,) = [r for report in gr_compile.report(fast) for r in report.passes if r.name == HALF]
    assert not record.matches and not record.misses


# ---------------------------------------------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sites=negative", "sites=negative: one or more of negatives, embeddings, activations, communication"),
        ("sites=", "sites=: one or more of"),
        ("scale=per-row", "scale=per-row: one of none, per-token, per-table"),
        ("dtype=float8", "dtype=float8: one of float16, bfloat16"),
        ("tolerance=0", "tolerance=0.0: a share above 0"),
        ("calibration=nowhere.json", "nowhere.json: no calibration can be read"),
        ("segments=2", "has no option 'segments'"),
    ],
)
def test_options_that_cannot_be_meant(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Pipeline.parse(f"{HALF}{{{text}}}")


def test_it_is_in_the_preset_of_what_approximates_alone() -> None:
    assert [name for name in PRESETS if HALF in Pipeline.parse(name).text()] == ["all"]
    assert InsertFP16(sites="negatives+activations+negatives").kinds == ("negatives", "activations")


def test_ids_that_are_no_rows_are_named() -> None:
    made = bench(sampled_softmax)
    inputs = [x.clone() for x in made.batches[0]]
    inputs[2][0, 0, 1] = ITEMS
    with pytest.raises(IndexError, match=f"is {ITEMS}, which is no row of a table of {ITEMS}"):
        made.fast(*inputs)
