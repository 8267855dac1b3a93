"""calibrate: what it finds at each site, what insert-fp16 makes of it, and that it leaves the model alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loss_models import Recommender, batch, sampled_softmax
from pass_bench import PassBench
from torch import Tensor, nn

import gr_compile
from gr_compile.passes.insert_fp16 import Calibration, calibrate
from gr_compile.passes.insert_fp16.calibration import CalibrationError
from gr_compile.pipeline import PipelineError

HALF = "insert-fp16"
BATCHES = [batch([7, 3, 0, 1], 7, 5), batch([2, 6], 6, 5, seed=2)]
ALL = "negatives+embeddings+activations"


def found(model: Recommender, sites: str = "negatives") -> Calibration:
    return calibrate(model, BATCHES, sites)


def test_every_site_has_its_name_its_line_its_range_and_its_errors() -> None:
    made = found(Recommender(sampled_softmax), ALL)
    names = [(site.kind, site.name) for site in made.sites]
    assert names == [
        ("embeddings", "items.weight"), *(("activations", f"{x}.linear") for x in "qkv"),
        ("activations", "jagged_attention"), ("activations", "o.linear"), ("negatives", "items.weight"),
    ]  # fmt: skip
    assert made.batches == 2
    for site in made.sites:
        assert "loss_models.py:" in site.where and site.values == sum(site.exponents.values())
        assert set(site.stored) == {f"{d}/{s}" for d in ("float16", "bfloat16") for s in ("none", "per-token", "per-table")}
        for way, one in site.stored.items():
            assert 2e-5 < one.error < (3e-4 if way.startswith("float16") else 2.5e-3) and not one.overflows


def test_ranges_and_bytes_are_those_of_the_valid_tokens() -> None:
    model = Recommender(sampled_softmax)
    (site,) = found(model).sites
    ids = [torch.cat([t.unsqueeze(-1), n], -1)[i != 0] for i, t, n, _ in BATCHES]
    rows = [model.items.weight[torch.unique(x)].detach() for x in ids]
    assert site.values == sum(x.numel() for x in rows)
    assert site.largest == max(float(x.abs().max()) for x in rows)
    assert site.smallest == min(float(x[x != 0].abs().min()) for x in rows)
    lookups = 2 * 8 * sum(x.numel() for x in ids)  # forward and backward, 8 features
    assert site.bytes_before == 4 * lookups
    assert site.bytes_after == 2 * lookups + 4 * site.values
    exact, stored = torch.cat(rows).double(), torch.cat(rows).half().double()
    error = float((exact - stored).norm() / exact.norm())
    assert site.stored["float16/none"].error == pytest.approx(error)


def test_the_model_and_torchs_generator_are_as_before() -> None:
    model = Recommender(sampled_softmax)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found(model, ALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_what_a_forward_writes_to_buffers_is_taken_back() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)).train()
    before = copy.deepcopy(model.state_dict())
    made = calibrate(model, [(torch.randn(8, 4),)] * 2, "activations")
    assert [site.name for site in made.sites] == ["0.linear"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_is_kept_in_a_file_and_drawn(tmp_path: Path) -> None:
    made = found(Recommender(sampled_softmax), ALL)
    made.save(tmp_path / "found.json")
    assert Calibration.load(tmp_path / "found.json") == made
    made.picture(tmp_path / "found.png")
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    Calibration((), 1).picture(tmp_path / "nothing.svg")


def scaled(by: Tensor) -> Recommender:
    model = Recommender(sampled_softmax)
    with torch.no_grad():
        model.items.weight.mul_(by)
    return model


@pytest.mark.parametrize(
    ("by", "of", "reason"),
    [
        (torch.tensor(1e6), {"scale": "none"}, "values are too large for float16: up to"),
        (torch.tensor(1e-7), {"scale": "none"}, "and tolerance is 4.0e-03"),
        (torch.logspace(0, -12, 61).unsqueeze(-1), {"scale": "per-table", "tolerance": 1e-4}, "and tolerance is 1.0e-04"),
        (torch.tensor(1.0), {"sites": "embeddings"}, "the calibration has no embeddings of items.weight"),
    ],
)  # fmt: skip
def test_sites_are_refused_by_what_was_found(by: Tensor, of: dict[str, Any], reason: str, tmp_path: Path) -> None:
    model = scaled(by)
    found(model).save(tmp_path / "found.json")
    text = ",".join(f"{name}={value}" for name, value in of.items())
    made = PassBench(model, BATCHES[:1], passes=f"default,{HALF}{{{text},calibration={tmp_path / 'found.json'}}}")
    misses = made.misses(HALF)
    assert len(misses) == 1 and reason in misses[0].reason and misses[0].hint, [str(miss) for miss in misses]
    assert not made.matches(HALF)


@pytest.mark.parametrize("by", [1e6, 1e-7])
def test_a_scale_holds_what_float16_alone_does_not(by: float, tmp_path: Path) -> None:
    model = scaled(torch.tensor(by))
    found(model).save(tmp_path / "found.json")
    made = PassBench(model, BATCHES[:1], passes=f"default,{HALF}{{calibration={tmp_path / 'found.json'}}}")
    made.assert_fires(HALF)


def test_values_that_are_not_finite_are_counted_and_count_for_nothing_else() -> None:
    model = scaled(torch.tensor(1.0))
    row = int(BATCHES[0][2][0, 0, 0])
    with torch.no_grad():
        model.items.weight[row, 0], model.items.weight[row, 1] = torch.nan, -torch.inf
    (site,) = calibrate(model, BATCHES[:1]).sites
    assert site.not_finite == 2 and site.largest < 10
    assert all(one.error < 2.5e-3 and not one.overflows for one in site.stored.values())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 0}', '{"version": 1, "batches": 1, "sites": [{}]}', '{"version": 1, "batches": "x", "sites": []}'])
def test_files_that_hold_no_calibration(content: str, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text(content)
    with pytest.raises(CalibrationError, match=r"calibration|calibrate anew"):
        Calibration.load(path)
    with pytest.raises(PipelineError, match=str(path)):
        PassBench(Recommender(sampled_softmax), BATCHES, passes=f"{HALF}{{calibration={path}}}")


def test_a_file_that_is_no_text_and_one_that_lacks_a_way(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_bytes(b"\x80\x02\xff")
    with pytest.raises(CalibrationError, match="this is no calibration"):
        Calibration.load(path)
    made = found(Recommender(sampled_softmax))
    (site,) = made.sites
    replace(made, sites=(replace(site, stored={}),)).save(path)
    bench = PassBench(Recommender(sampled_softmax), BATCHES[:1], passes=f"default,{HALF}{{calibration={path}}}")
    assert "did not try float16 with scale=per-token" in bench.misses(HALF)[0].reason


def test_no_batches() -> None:
    with pytest.raises(ValueError, match="there are no batches"):
        calibrate(Recommender(sampled_softmax), [])


@pytest.mark.parametrize(
    ("batches", "reason"),
    [
        ([BATCHES[0][0]], "batch 0 must be a tuple of arguments or a mapping of named ones, not Tensor"),
        (BATCHES[0], "batch 0 must be a tuple"),
        (BATCHES[0][0], "batches must be a list of batches, not one Tensor"),
        ({"ids": BATCHES[0][0]}, "batches must be a list of batches, not one dict"),
    ],
)
def test_batches_that_are_none(batches: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        calibrate(Recommender(sampled_softmax), batches)


def test_a_class_is_no_model_and_stays_as_it_is() -> None:
    with pytest.raises(ValueError, match="Recommender is a class"):
        calibrate(Recommender, BATCHES)  # type: ignore[arg-type]
    gr_compile.optimize(Recommender(sampled_softmax), target="eager")


class Wrapper(nn.Module):
    """Its `original` is a part of it, not what it was made of."""

    def __init__(self) -> None:
        super().__init__()
        self.original, self.head = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.head(self.original(x)))


@pytest.mark.parametrize("optimised", [False, True])
def test_a_model_with_a_part_called_original_is_calibrated_whole(optimised: bool) -> None:
    model = gr_compile.optimize(Wrapper(), target="eager") if optimised else Wrapper()
    made = calibrate(model, [(torch.randn(4, 8),)], "activations")
    assert [site.name for site in made.sites] == ["original.0.linear", "head.linear"]


class Masked(nn.Module):
    """Attention whose mask is added to the scores in one operator."""

    def __init__(self, least: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("mask", torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), least))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.mask, self.q(x), self.k(x).t()).softmax(-1)


@pytest.mark.parametrize(("least", "stored"), [(torch.finfo(torch.float32).min, False), (-8.0, True)])
@pytest.mark.parametrize("calibrated", [False, True])
def test_scores_do_not_vanish_beside_a_mask(least: float, stored: bool, calibrated: bool, tmp_path: Path) -> None:
    model, x = Masked(least), torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    options = "sites=activations"
    if calibrated:
        calibrate(model, [(x,)], "activations").save(tmp_path / "found.json")
        options += f",calibration={tmp_path / 'found.json'}"
    made = PassBench(model, [(x,)], passes=f"{HALF}{{{options}}}")
    torch.testing.assert_close(made.fast(x), model(x), rtol=5e-3, atol=1e-3)
    reasons = [miss.reason for miss in made.misses(HALF)]
    if calibrated and stored:
        assert not reasons and len(made.matches(HALF)) == 3
    else:
        want = "values became 0 in float16, beside others" if calibrated else "may be a mask"
        assert len(reasons) == 1 and want in reasons[0], reasons


def test_a_row_of_large_values_does_not_hide_that_others_became_0(tmp_path: Path) -> None:
    by = torch.full((61, 1), 1e-12)
    by[int(BATCHES[0][2][0, 0, 0])] = 1.0
    model = scaled(by)
    found(model).save(tmp_path / "found.json")
    text = f"default,{HALF}{{scale=per-table,calibration={tmp_path / 'found.json'}}}"
    (miss,) = PassBench(model, BATCHES[:1], passes=text).misses(HALF)
    assert "values became 0" in miss.reason and "per-token" in miss.hint
