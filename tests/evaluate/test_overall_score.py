"""The overall score of 2025 from the published terms of the case study."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe.evaluate import Vcc2025Terms, vcc2025_overall

BASELINE = Vcc2025Terms(DES=0.1057, PDS=0.5155, MAE=0.027)


@pytest.mark.parametrize(
    ("des", "pds", "mae", "overall"),
    [
        pytest.param(0.1108, 0.5016, 0.1909, 0.19, id="round 1"),
        pytest.param(0.0005, 0.5164, 0.0303, 0.06, id="round 2"),
        # published as 5.7, which no baseline gives together with the other three rows
        pytest.param(0.1280, 0.5888, 0.0453, 5.87, id="round 3"),
        pytest.param(0.1216, 0.6300, 0.0397, 8.47, id="round 4"),
    ],
)
def test_published_terms_give_the_published_score(des, pds, mae, overall):
    score = vcc2025_overall(Vcc2025Terms(DES=des, PDS=pds, MAE=mae), BASELINE)
    assert round(score["overall"], 2) == overall
    assert score["year"] == 2025
    assert score["scaled"]["MAE"] == 0


def test_perfection_is_100_and_the_baseline_is_0():
    assert vcc2025_overall(Vcc2025Terms(DES=1, PDS=1, MAE=0), BASELINE)["overall"] == 100
    assert vcc2025_overall(BASELINE, BASELINE)["overall"] == 0


def test_a_missing_term_counts_nothing():
    score = vcc2025_overall(Vcc2025Terms(DES=np.nan, PDS=1, MAE=0), BASELINE)
    assert score["overall"] == pytest.approx(200 / 3)


def test_a_baseline_without_room_counts_nothing():
    assert vcc2025_overall(Vcc2025Terms(DES=1, PDS=1, MAE=0), Vcc2025Terms(DES=1, PDS=1, MAE=0))["overall"] == 0
