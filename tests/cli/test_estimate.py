"""`gr-compile estimate`: what it says of a small model, its JSON, and what it refuses."""

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from gr_compile.cli.__main__ import make_app
from gr_compile.cli.estimate import Settings, _summaries, changes, estimate_model, turbogr_flops
from gr_compile.lowering.ascendc.machine import machine
from gr_compile.model_zoo import HSTUConfig, turbogr_config

SMALL = HSTUConfig(50, 16, embedding_dim=8, num_layers=1, num_heads=2, attention_dim=4, linear_dim=4, dropout=0.0)


def invoke(*arguments):
    return CliRunner().invoke(make_app(), ["estimate", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--machine", "910z"], "unknown machine '910z'; known: 910_93, 910b1, 910b3"),
        (["--model", "hstu-huge"], "there are hstu-large, hstu-long, fuxi-large, fuxi-long and all"),
        (["--fill", "0"], "a share of the places within 0..1"),
    ],
)
def test_what_it_refuses(arguments, message):
    done = invoke(*arguments)
    assert done.exit_code == 1 and message in str(done.exception)


def test_useful_work_is_that_of_the_valid_tokens():
    """Two sequences of 8 of 16 places: the formula by hand, for products, causal pairs and 1 + 3 candidates."""
    found = estimate_model("small", SMALL, machine("910b1"), Settings(2, 0.5, negatives=3, items=640), ["fill", "items"])
    tokens, pairs = 16, 2 * 8 * 9 // 2
    forward = 2 * (tokens * (8 * 32 + 8 * 8) + pairs * 2 * (4 + 4) + tokens * 8 * 4)
    assert found["mfu"] * found["step_ms"] / 1e3 * machine("910b1").cube_flops == pytest.approx(3 * forward)
    assert found["mfu_turbogr"] is None and found["changes"] == ["fill", "items"]
    assert found["tokens"] == tokens and found["published"] is None
    attention = [row for row in found["rows"] if row["kind"] == "attention"]
    assert [row["flops"] for row in sorted(attention, key=lambda row: row["part"])] == [2 * pairs * 2 * 20, 2 * pairs * 2 * 8]
    assert next(row for row in found["rows"] if "item tables" in row["label"])["bytes"] == 28 * (640 // 32) * 8
    assert found["memory"]["item table, 1/32 of it"] == 12 * 20 * 8


def test_their_formula_counts_the_whole_square():
    config = turbogr_config("hstu-large", 10)
    assert turbogr_flops(config) == 6 * (2048 * 16 * 5 * 1024**2 + 2048**2 * 16 * 2048)


LONG = turbogr_config("fuxi-long", 10)


@pytest.mark.parametrize(
    ("machine_name", "settings", "config", "expected"),
    [
        ("910b1", {}, LONG, []),
        ("910b1", {"batch_size": 8}, LONG, []),  # what it is without the option
        ("910b3", {}, LONG, ["machine"]),
        ("910b1", {"negatives": 64}, LONG, ["negatives"]),
        ("910b1", {"items": 1000, "devices": 8}, LONG, ["items", "devices"]),
        ("910b1", {"fill": 0.5, "batch_size": 4}, LONG, ["fill", "batch-size"]),
        ("910b1", {}, dataclasses.replace(LONG, num_layers=2, max_seq_len=64), ["num-layers", "max-seq-len"]),
    ],
)
def test_what_is_not_as_published(machine_name, settings, config, expected):
    assert changes(machine_name, Settings(**settings), config, LONG) == expected


def row(**given):
    usual = {"model": "m", "parameters": 1e6, "step_ms": 2.0, "sample_ms": 1.0, "mfu": 0.5, "mfu_turbogr": 0.25}
    theirs = {"sample_ms": 1.5, "residual": -0.3, "mfu": 0.2, "mfu_recomputed": 0.2}
    return {**usual, "published": theirs, **given}


def test_figures_that_no_row_has_are_no_column():
    columns, rows = _summaries([row(), row(published=None, mfu_turbogr=None)])
    assert columns[4:6] == ["published", "residual"] and rows[1][4:] == ["–", "–", "50.00%", "–", "–", "–"]
    columns, rows = _summaries([row(published=None, mfu_turbogr=None)])
    assert columns == ["estimate", "params M", "step ms", "sample ms", "MFU"] and rows == [["m", "1.00", "2", "1.00", "50.00%"]]
    columns, _ = _summaries([row(published=None)])
    assert columns[-1] == "MFU, TurboGR's"


@pytest.mark.slow
def test_the_command(tmp_path):
    target = tmp_path / "estimate.json"
    done = invoke("--model", "fuxi-large", "--num-layers", 1, "--max-seq-len", 64, "--batch-size", 2, "--json", target)
    assert done.exit_code == 0 and "This is an estimate" in done.output and "fuxi-large" in done.output
    (found,) = json.loads(target.read_text())["models"]
    assert found["changes"] == ["num-layers", "max-seq-len", "batch-size"] and found["mfu_turbogr"] is None
    assert "residual" not in done.output and "other --num-layers, --max-seq-len, --batch-size" in done.output
    assert found["changed"] and found["published"] is None and {row["part"] for row in found["rows"]} == {
        "forward", "backward", "update",
    }  # fmt: skip
