"""Where the simulated screen keeps its parts, and its conditions."""

from __future__ import annotations

import pytest

from scvi_tahoe.data import ScreenKeys, read_screen


@pytest.fixture(scope="session")
def keys():
    return ScreenKeys(perturbation_key="perturbation", control="control", context_key="context", batch_key="batch")


@pytest.fixture
def index(screen, keys):
    return read_screen(screen, keys).index
