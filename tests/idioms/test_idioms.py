"""Idioms by name: the ways of writing parts of a padded recommender that are right, and packed where they can be."""

from __future__ import annotations

import pytest
from bench import Trial
from idiom import Idiom
from layer_idioms import LAYERS
from loss_idioms import LOSSES
from mask_idioms import MASKS
from position_idioms import POSITIONS
from readout_idioms import READ
from stays_right import STAYS_RIGHT

PACKED: dict[str, Idiom] = {**MASKS, **POSITIONS, **READ, **LOSSES, **LAYERS}
IDIOMS: dict[str, Idiom] = {**PACKED, **STAYS_RIGHT}


@pytest.mark.parametrize("name", PACKED)
def test_an_idiom_is_right_packed_and_blind_to_padding(name: str) -> None:
    trial = Trial(PACKED[name])
    trial.assert_parity()
    trial.assert_as_expected()
    trial.assert_no_leak()


@pytest.mark.parametrize("name", [name for name, idiom in STAYS_RIGHT.items() if not idiom.breaks])
def test_what_reads_padded_places_stays_right_and_says_so(name: str) -> None:
    trial = Trial(STAYS_RIGHT[name])
    trial.assert_parity()
    trial.assert_as_expected()
    if STAYS_RIGHT[name].misses or STAYS_RIGHT[name].reads == "both":
        trial.assert_parity(junk=1e3)
        trial.assert_spreads()
    else:
        trial.assert_no_leak()


@pytest.mark.parametrize("name", [name for name, idiom in STAYS_RIGHT.items() if idiom.breaks])
def test_control_flow_over_data_is_right_and_named_with_its_line(name: str) -> None:
    trial = Trial(STAYS_RIGHT[name], dynamo=True)
    trial.assert_parity()
    lines = [miss.where.code for report in trial.reports for miss in report.graph_breaks if miss.where is not None]
    assert any(STAYS_RIGHT[name].breaks in line for line in lines), lines


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, idiom in IDIOMS.items() if not idiom.breaks])
def test_an_idiom_through_dynamo_with_sizes_of_any_value(name: str) -> None:
    trial = Trial(IDIOMS[name], dynamo=True, dynamic=True)
    trial.assert_parity()
    trial.assert_as_expected()
