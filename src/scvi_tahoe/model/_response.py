"""The response model that predictions start from: what it learned, and the effects that it expects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi_tahoe.model._predict import PredictMixin
from scvi_tahoe.prediction import resolve_conditions
from scvi_tahoe.response import effects_of, report_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    import pandas as pd

    from scvi_tahoe._compat import AnnOrMuData


class ResponseMixin(PredictMixin):
    """``response_report`` and ``predict_effects``."""

    def response_report(self) -> pd.DataFrame:
        """Report what the response model learned, and how well it predicts conditions without themselves.

        It can be called before training, and then fits the response model to all cells.

        Returns
        -------
        One row for each kernel, each embedding table and, for each kind of question, each member that predictions are
        put together from: ``weight``, and for members and the whole the scores of left-out conditions (``pearson``,
        ``pds``, ``mae`` and ``rmse`` of the change of log1p expression) over ``n_conditions``. ``attrs["text"]`` has
        the same as a short text.

        Raises
        ------
        ValueError
            If the model has another prior than ``'response'``, or it was not learned and the model has no data.

        Examples
        --------
        >>> print(model.response_report().attrs["text"])
        """
        return report_of(self._response())

    def predict_effects(
        self,
        adata: AnnOrMuData | None = None,
        *,
        perturbations: Sequence[str] | None = None,
        contexts: Sequence[str] | None = None,
        max_missing_genes: float = 0.1,
        min_change: float | None = None,
    ) -> pd.DataFrame:
        """Predict the change of every gene by the response model, without making cells.

        Parameters
        ----------
        adata, perturbations, contexts, max_missing_genes
            As in :meth:`predict`.
        min_change
            Size from which a change of mean log1p expression counts as an effect. If None, the median over genes of the
            standard deviation of changes over the training conditions.

        Returns
        -------
        One row for each condition and gene: its labels, ``gene``, ``change`` (of mean log1p expression against the
        controls of the context), ``sd`` (of the true change around it), ``p_effect`` (probability that the true change
        is larger than ``min_change``, up or down: that the gene is differentially expressed), ``p_direction``
        (probability that the true change has the sign of the predicted one), ``direction`` (1 or -1) and ``support`` of
        the condition, from 0 (nothing but the context is known) to 1. ``attrs["min_change"]`` has the size used.

        Raises
        ------
        ValueError
            As in :meth:`predict`, if the model has another prior than ``'response'``, or ``min_change`` is negative.

        Examples
        --------
        >>> effects = model.predict_effects(perturbations=["STAT1"])
        >>> effects.sort_values("p_direction", ascending=False).head()
        """
        learned = self._response()
        if min_change is not None and not min_change >= 0:
            raise ValueError(f"min_change={min_change!r} is not allowed; give a size of 0 or more, or None.")
        data = self._prediction_data(adata, perturbations=perturbations, max_missing_genes=max_missing_genes)
        conditions = resolve_conditions(data, perturbations=perturbations, contexts=contexts)
        return effects_of(learned, data.spec, data.screen, conditions, min_change)

    def _response(self) -> dict[str, Any]:
        if self.prior != "response":
            raise ValueError(
                f"this model starts from prior={self.prior!r}; TahoeST(adata, prior='response') has a response model."
            )
        return self._learned_prior()  # type: ignore[return-value]
