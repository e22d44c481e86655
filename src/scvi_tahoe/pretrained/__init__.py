"""Other people's weights: where they come from, what is in them, and how they get into a network of ours."""

from __future__ import annotations

from ._arc_reader import read_arc_folder
from ._limits import UnsafeFileError
from ._pretrained_model import Labels, LossSettings, PerturbationTable, PretrainedModel, Provenance
from ._report import LabelMatch, LoadingReport, TensorRecord

__all__ = [
    "LabelMatch",
    "Labels",
    "LoadingReport",
    "LossSettings",
    "PerturbationTable",
    "PretrainedModel",
    "Provenance",
    "TensorRecord",
    "UnsafeFileError",
    "read_arc_folder",
]
