"""Presets ``"quick"`` (means only, about a second), ``"minimal"`` and ``"full"`` (profiles of cell-eval)."""

from __future__ import annotations

from scvi_tahoe.evaluate._preset_vcc2025 import overall_of_contexts
from scvi_tahoe.evaluate._presets import PRESETS, Preset

PRESETS.register("quick", Preset())
PRESETS.register("minimal", Preset(cell_eval_profile="minimal", aggregate=overall_of_contexts))
PRESETS.register("full", Preset(cell_eval_profile="full", scores_cells=True, aggregate=overall_of_contexts))
