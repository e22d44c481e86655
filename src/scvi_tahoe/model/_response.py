"""The response model that predictions start from: what it learned, and the effects that it expects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from scvi_tahoe._arguments import checked
from scvi_tahoe.effects import condition_embedding, effects_adata
from scvi_tahoe.model._predict import PredictMixin
from scvi_tahoe.prediction import resolve_conditions
from scvi_tahoe.response import effects_of, planned, report_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    import pandas as pd
    from anndata import AnnData

    from scvi_tahoe._compat import AnnOrMuData


class ResponseMixin(PredictMixin):
    """``response_report``, ``predict_effects``, ``get_condition_embedding`` and ``plan_next``."""

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

    @checked()
    def predict_effects(
        self,
        adata: AnnOrMuData | None = None,
        *,
        perturbations: Sequence[str] | Literal["all"] | None = None,
        contexts: Sequence[str] | None = None,
        max_missing_genes: float = 0.1,
        use_measured: bool = True,
        as_adata: bool = False,
        min_change: float | None = None,
    ) -> pd.DataFrame | AnnData:
        """Predict the change of every gene by the response model, without making cells.

        Parameters
        ----------
        adata, perturbations, contexts, max_missing_genes
            As in :meth:`predict`.
        use_measured
            Whether conditions that were trained on are combined with their own measurement, each of the two weighted by
            its variance. Otherwise, all are predicted from other conditions, as predictions of cells are.
        as_adata
            Whether to return AnnData ``[conditions, genes]`` with the change in ``X`` and the rest in ``layers`` and
            ``obs``, which the functions of :mod:`scvi_tahoe.effects` take.
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
        self._verify_response()
        if min_change is not None and not min_change >= 0:
            raise ValueError(f"min_change={min_change!r} is not allowed; give a size of 0 or more, or None.")
        data = self._prediction_data(adata, perturbations=perturbations, max_missing_genes=max_missing_genes)
        conditions = resolve_conditions(data, perturbations=perturbations, contexts=contexts)
        effects = effects_of(
            self._response(), data.spec, data.screen, conditions, use_measured=use_measured, min_change=min_change
        )
        if not as_adata:
            return effects
        keys = data.spec.keys
        return effects_adata(
            effects, perturbation_key=keys.perturbation_key, context_key=keys.context_key, dose_key=keys.dose_key,
            combination_separator=keys.combination_separator,
        )  # fmt: skip

    @checked()
    def get_condition_embedding(
        self,
        adata: AnnOrMuData | None = None,
        *,
        perturbations: Sequence[str] | None = None,
        contexts: Sequence[str] | None = None,
        n_components: int = 30,
        center_contexts: bool = True,
        use_measured: bool = True,
    ) -> AnnData:
        """Embed conditions by their predicted effects: conditions with similar effects are close to one another.

        Parameters
        ----------
        adata, perturbations, contexts, use_measured
            As in :meth:`predict_effects`.
        n_components, center_contexts
            See :func:`scvi_tahoe.effects.condition_embedding`.

        Returns
        -------
        AnnData ``[conditions, components]``, ready for scanpy: ``X`` and ``obsm["X_pca"]``, principal components of the
        predicted changes; ``obs`` with the labels, ``condition``, ``support`` and ``effect_size``.

        Raises
        ------
        ValueError
            As in :meth:`predict_effects`, or if there are fewer than three conditions.

        Examples
        --------
        >>> import scanpy as sc
        >>> conditions = model.get_condition_embedding()
        >>> sc.pp.neighbors(conditions, n_neighbors=5)
        """
        effects: Any = self.predict_effects(
            adata, perturbations=perturbations, contexts=contexts, use_measured=use_measured, as_adata=True
        )
        return condition_embedding(effects, n_components=n_components, center_contexts=center_contexts)

    @checked()
    def plan_next(
        self,
        n: int = 20,
        *,
        perturbations: Sequence[str] | None = None,
        contexts: Sequence[str] | None = None,
        to_predict: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Choose the conditions whose measurement would tell the most about all others that are not measured.

        One condition is chosen after the other: the one that, given what is measured and chosen already, lowers the
        expected squared error of the others most. Errors of strong responses are expected to be larger, so neighbours
        of conditions with strong responses come first.

        Parameters
        ----------
        n
            Number of conditions.
        perturbations
            What can be measured. If None, all perturbations with an embedding.
        contexts
            Where. If None, all contexts of the model's data that have control cells.
        to_predict
            Perturbations that matter: only their errors in ``contexts`` count. If None, those of ``perturbations``.

        Returns
        -------
        One row for each choice, the best first: its labels; ``gain``, the share of the expected squared error of all
        conditions to predict that it takes away from the others; ``left``, the share that then remains for the others.

        Raises
        ------
        ValueError
            If the model has another prior than ``'response'``, a perturbation or context is unknown, all of
            ``to_predict`` was measured, there are fewer than ``n`` candidates, or there are more than 3,000 conditions
            that can be measured or are to be predicted.

        Examples
        --------
        >>> model.plan_next(n=10)
        """
        self._verify_response()
        named = [*(perturbations or ()), *(to_predict or ())]
        data = self._prediction_data(None, perturbations=list(dict.fromkeys(named)) or None)
        every: Any = "all"
        conditions = resolve_conditions(
            data, perturbations=every if perturbations is None else perturbations, contexts=contexts
        )
        counted = None
        if to_predict is not None:
            counted = resolve_conditions(data, perturbations=to_predict, contexts=contexts)
        return planned(self._response(), data.spec, data.screen, conditions, n, counted)

    def _verify_response(self) -> None:
        if self.prior != "response":
            raise ValueError(
                f"this model starts from prior={self.prior!r}; TahoeST(adata, prior='response') has a response model."
            )

    def _response(self) -> dict[str, Any]:
        self._verify_response()
        return self._learned_prior()  # type: ignore[return-value]
