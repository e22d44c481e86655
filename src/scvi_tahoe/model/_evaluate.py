"""Scores of a model's prediction, in the space of the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe.data import spelled_labels, with_condition_labels
from scvi_tahoe.evaluate import (
    PRESETS,
    EvaluationReference,
    check_conditions,
    checks_table,
    evaluate,
    raise_or_warn,
    verify_reference,
)
from scvi_tahoe.model._predict import PredictMixin
from scvi_tahoe.prediction import arguments_for_observed

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

    from scvi_tahoe._compat import AnnOrMuData
    from scvi_tahoe.data import ScreenKeys
    from scvi_tahoe.evaluate import Check, EvaluationResult


class EvaluateMixin(PredictMixin):
    """``evaluate``."""

    @checked(seed=(0, None))
    def evaluate(
        self,
        reference: AnnOrMuData | EvaluationReference,
        prediction: AnnData | None = None,
        *,
        preset: str = "vcc2025",
        counts_layer: str | None = None,
        seed: int = 0,
        progress: bool = True,
        **kwargs: Any,
    ) -> EvaluationResult:
        """Score a prediction against observed cells, in the space of the reference.

        Parameters
        ----------
        reference
            Observed cells of the held-out conditions, with the control cells of their contexts, and the columns of
            the training data; or an :class:`~scvi_tahoe.evaluate.EvaluationReference` of them, which stores what
            several models share.
        prediction
            Prediction to score. If None, every condition of the reference is predicted, as many cells as were observed,
            from its control cells.
        preset
            Scores to compute, see :func:`scvi_tahoe.evaluate.evaluate`.
        counts_layer
            With ``preset="vcc2026"``: layer with raw counts of the reference and of the training data.
        seed
            Random seed for the prediction and the evaluation.
        progress
            Whether to show progress bars.
        **kwargs
            Further arguments of :func:`scvi_tahoe.evaluate.evaluate`.

        Returns
        -------
        Scores with baselines, ceiling and verdict. What can be checked without a prediction is checked before one is
        made.

        Raises
        ------
        ValueError
            If scores need counts and no layer with them is named, the reference no longer knows its cells, or it is a
            ready one that knows no doses and the model has doses.
        """
        keys, from_counts = self.keys, PRESETS.find(preset).from_counts
        if from_counts:
            counts_layer = reference.layer if isinstance(reference, EvaluationReference) else counts_layer
        layer = counts_layer if from_counts else None

        def predict(observed: AnnOrMuData) -> AnnData:
            return self.predict(
                observed, **arguments_for_observed(observed, keys),
                output="expression" if layer is None else "counts", counts_layer=layer, seed=seed, progress=progress,
            )  # fmt: skip

        options = {"preset": preset, "counts_layer": counts_layer, "seed": seed, "progress": progress, **kwargs}
        return self._evaluate(reference, predict if prediction is None else prediction, **options)

    def _evaluate(
        self,
        reference: AnnOrMuData | EvaluationReference,
        prediction: AnnData | Callable[[AnnOrMuData], AnnData],
        *,
        preset: str = "vcc2025",
        counts_layer: str | None = None,
        seed: int,
        progress: bool,
        **kwargs: Any,
    ) -> EvaluationResult:
        """Score a prediction, or what a function predicts of the observed cells once they are checked."""
        keys, from_counts = self.keys, PRESETS.find(preset).from_counts
        observed = reference.adata if isinstance(reference, EvaluationReference) else reference
        seen: list[Check] = []
        if isinstance(reference, EvaluationReference):
            _verify_labels(reference, keys)
            # a reference without training data does not know what this model has seen
            if reference.train is None and "train" not in kwargs and not kwargs.get("allow_train", False):
                seen = [check_conditions(self._conditions(self.adata), self._conditions(observed))]
                raise_or_warn(seen, kwargs.get("representation_check", "error"))
        else:
            if from_counts and counts_layer is None:
                raise ValueError(
                    f"preset={preset!r} scores raw counts: name the layer that holds them, counts_layer=..."
                )
            train = kwargs.pop("train", self.adata)
            reference = EvaluationReference.from_adata(
                with_condition_labels(reference, keys),
                perturbation_key=keys.perturbation_key,
                control=keys.control,
                context_key=keys.context_key,
                baseline_from=None if train is None else with_condition_labels(train, keys),
                perturbation_embedding=self._embedding_tables() if train is not None else None,
                combination_separator=keys.combination_separator,
                layer=counts_layer if from_counts else keys.layer,
                progress=progress,
            )
        # before the prediction, which costs more than all checks
        verify_reference(
            reference,
            preset=preset,
            allow_train=kwargs.get("allow_train", False),
            representation_check=kwargs.get("representation_check", "error"),
            baseline=kwargs.get("baseline", "auto"),
        )
        if callable(prediction):
            if observed is None:
                raise ValueError(
                    "this reference does not know the AnnData it was made of; pass prediction=model.predict(...)."
                )
            prediction = prediction(observed)
        labelled = with_condition_labels(prediction, keys)
        result = evaluate(labelled, reference, preset=preset, seed=seed, progress=progress, **kwargs)
        return replace(result, checks=checks_table(seen, beside=result.checks)) if seen else result

    def _embedding_tables(self) -> dict[str, Any] | None:
        """Tables of perturbations that were registered, which ridge and nearest neighbours are computed from."""
        key = self.keys.perturbation_embedding_key
        names = [] if key is None else [key] if isinstance(key, str) else list(key)
        found = {name: self.adata.uns[name] for name in names if self.adata is not None and name in self.adata.uns}
        return found or None

    def _conditions(self, data: AnnOrMuData | None) -> list[tuple[str, str]]:
        """Return contexts and perturbations of data; none if they lack the columns of the training data."""
        if data is None or self.keys.perturbation_key not in data.obs:
            return []
        key = self.keys.context_key
        contexts = "" if key is None else data.obs[key].astype(str).to_numpy()
        cells = pd.DataFrame({"context": contexts, "perturbation": spelled_labels(data, self.keys)})
        pairs = cells.drop_duplicates().itertuples(index=False, name=None)
        return [(context, perturbation) for context, perturbation in pairs if perturbation != self.keys.control]


def _verify_labels(reference: EvaluationReference, keys: ScreenKeys) -> None:
    """Reject a ready reference that took all doses of a perturbation for one condition."""
    labels = sorted({label for _, label in reference.cells.rows} - {keys.control})
    for label in labels if keys.dose_key is not None else ():
        try:
            keys.parser.components(label)
        except ValueError:
            raise ValueError(
                f"this reference was made of labels without doses ({label!r}), and the model predicts each dose: pass "
                f"the observed cells themselves, with their column {keys.dose_key!r}."
            ) from None
