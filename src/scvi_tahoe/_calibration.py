"""TahoeST.calibrate: predict the validation conditions, compare their effects with the observed ones, fit a factor."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from scvi import settings

from scvi_tahoe._condition_means import means_by_code
from scvi_tahoe._prediction import asked_in_order, condition_of_cell
from scvi_tahoe._sources import minibatch_sources
from scvi_tahoe.data import ConditionIndex, read_screen, split_from_dict
from scvi_tahoe.evaluate import (
    EffectCalibration,
    EvaluationWarning,
    fit_effect_calibration,
    verify_calibration_options,
)

if TYPE_CHECKING:
    from scvi_tahoe._model import TahoeST

__all__ = ["calibration_from_validation"]

_CHUNK = 1024  # cells made dense at once
#: six random conditions of the shipped few-shot task are mostly weak: they ask for half of every effect, at which the
#: error of the held-out targets grows (``benchmarks/calibration_and_ensembles.py --default-split``)
_FEW_CONDITIONS = 10


def calibration_from_validation(
    model: TahoeST, *, n_cells: int, seed: int, progress: bool, **options: Any
) -> EffectCalibration:
    """Fit the calibration of a trained model on the validation part of its split; the model is left as it was.

    Parameters
    ----------
    model
        Trained, with its data.
    n_cells
        Most cells to predict of a condition.
    seed
        Of the prediction.
    progress
        Whether to show a progress bar.
    **options
        Of :func:`~scvi_tahoe.evaluate.fit_effect_calibration`.

    Raises
    ------
    ValueError
        If an option is unknown, the model was not trained, has no data, its genes come from a decoder that was not
        trained, or nothing validates, or too little.
    """
    if n_cells < 1:
        raise ValueError(f"n_cells={n_cells!r} must be 1 or more.")
    verify_calibration_options(**{k: v for k, v in options.items() if k != "allow_worse_mae"})
    if model.split_ is None or model.training_config_ is None:
        raise ValueError("calibrate() needs the validation part of a training; call model.train() first.")
    if model.adata is None:
        raise ValueError("this model was loaded without data; load it with TahoeST.load(path, adata) to calibrate it.")
    record = model._prediction_record("expression", seed)
    if record["genes_from"] == "decoder" and not record["decoder_trained"]:
        raise ValueError(
            "the model's genes come from a decoder that was not trained, so they have no effects to calibrate; train "
            "it with objective={'decoder_weight': ...} above 0."
        )
    screen = read_screen(model.adata, model.keys)
    index = ConditionIndex.from_screen(screen)
    rows = split_from_dict(model.split_).assign(index, seed=model.training_config_["plan"]["seed"]).validation
    if not len(rows):
        raise ValueError(
            "no cell validates with the split of the training; train with a split that has validation=..., best of "
            "conditions that training does not see."
        )
    position = index.condition_of_cell[rows]
    conditions = [index.conditions[i] for i in np.unique(position)]
    verify_calibration_options(mode=options.get("mode", "global"), n_conditions=len(conditions))
    if len(conditions) < _FEW_CONDITIONS:
        warnings.warn(
            f"{len(conditions)} conditions validate ({', '.join(map(str, conditions[:4]))}"
            f"{', ...' if len(conditions) > 4 else ''}): what they ask for may not suit others, above all stronger "
            f"ones. Train with a split that holds out {_FEW_CONDITIONS} or more conditions, best of the contexts that "
            "you will predict, and compare evaluate() with and without (model.calibration_ = None).",
            EvaluationWarning,
            stacklevel=settings.warnings_stacklevel + 1,  # who called calibrate
        )
    sources = minibatch_sources(model, screen, model.device, exact=True)
    store = sources.cells if sources.genes is None else sources.genes

    def mean_of(cells: np.ndarray) -> np.ndarray:
        parts = np.split(cells, range(_CHUNK, len(cells), _CHUNK))
        sums = [store.dense(store.fetch(p), model.device).sum(0).cpu().numpy().astype(np.float64) for p in parts]
        return np.sum(sums, axis=0) / len(cells)

    controls = {context: index.controls(context) for context in {c.context for c in conditions}}
    control_mean = {context: mean_of(cells) for context, cells in controls.items()}
    observed = [mean_of(rows[position == i]) - control_mean[index.conditions[i].context] for i in np.unique(position)]
    kept, model.calibration_ = model.calibration_, None  # what is fitted is the factor on what the network says
    try:
        predicted = model.predict(
            **asked_in_order({c: min(n_cells, len(controls[c.context])) for c in conditions}),
            control_layer=True,
            seed=seed,
            progress=progress,
        )
    finally:
        model.calibration_ = kept
    codes, _ = condition_of_cell(predicted.obs, model.keys)
    mean, start = (means_by_code(x, codes) for x in (predicted.X, predicted.layers["control"]))
    if model.prior == "cells":  # see scale_effects
        start = np.stack([control_mean[c.context] for c in conditions])
    return fit_effect_calibration(mean, start, np.stack(observed), conditions, model.genes, **options)
