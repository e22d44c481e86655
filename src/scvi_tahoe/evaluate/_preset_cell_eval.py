"""Presets ``"minimal"`` and ``"full"``: the metrics of cell-eval's profiles of these names."""

from __future__ import annotations

from scvi_tahoe.evaluate._preset_vcc2025 import overall_of_contexts
from scvi_tahoe.evaluate._presets import PRESETS, Preset

PRESETS.register("minimal", Preset(cell_eval_profile="minimal", aggregate=overall_of_contexts))
PRESETS.register("full", Preset(cell_eval_profile="full", scores_cells=True, aggregate=overall_of_contexts))
