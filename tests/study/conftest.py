from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest

# tests are imported by their path, so a file beside them is not found by itself
sys.path.insert(0, str(Path(__file__).parent))

from study_samples import RUN

from scvi_tahoe.study import TahoeRun, finetune


@pytest.fixture
def values():
    """Plain values of a run that trains in a second; the test's own to change."""
    return copy.deepcopy(RUN)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Folder of a finished run. Not to be written into."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    finetune(TahoeRun.from_dict(copy.deepcopy(RUN)), folder, progress=False)
    return folder
