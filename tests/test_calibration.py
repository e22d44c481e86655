"""Calibration of effects: what is fitted, how cells are moved, that it is kept and taken away, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe import FewShotContext, HeldOutPerturbations, TahoeST
from scvi_tahoe.evaluate import EffectCalibration

SETUP = {"perturbation_embedding_key": "perturbation_embedding"}
SPLIT = HeldOutPerturbations(validation=["perturbation_1", "perturbation_2", "perturbation_3"])
