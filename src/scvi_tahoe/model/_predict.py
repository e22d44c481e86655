"""Predicted cells of perturbations in contexts."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scvi_tahoe._arguments import checked
from scvi_tahoe._constants import REGISTRY
from scvi_tahoe._devices import prediction_devices
from scvi_tahoe._threads import fitting_threads
from scvi_tahoe.model._fitted import FittedModel
from scvi_tahoe.nn import step_operations
from scvi_tahoe.prediction import PredictionData, PredictionRequest, predict_cells, resolve_conditions
from scvi_tahoe.pretrained import Provenance, licence_text
from scvi_tahoe.response import learn_prior, prior_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

    from scvi_tahoe._compat import AnnOrMuData
    from scvi_tahoe._devices import Devices
    from scvi_tahoe.data import Condition, Output, Screen, StoreKind


#: sets in a minibatch of a prediction, by which threads are chosen
_N_SETS = 16


class PredictMixin(FittedModel):
    """``predict`` and ``prior_report``."""

    #: screen of a model that was not trained, and the prior that was learned from all of its cells; never saved
    _learned_before: tuple[Screen, dict[str, Any]] | None = None

    @checked(seed=(0, None), batch_size=(1, None), max_missing_genes=(0, 1))
    def predict(  # noqa: PLR0913
        self,
        adata: AnnOrMuData | None = None,
        *,
        perturbations: Sequence[str] | Literal["all"] | None = None,
        contexts: Sequence[str] | None = None,
        n_cells: int | Mapping[Condition, int] | None = None,
        output: Output = "expression",
        counts_layer: str | None = None,
        control_layer: bool = False,
        seed: int = 0,
        batch_size: int | None = None,
        store: StoreKind = "auto",
        precision: str | int = "auto",
        max_missing_genes: float = 0.1,
        check_scale: bool = True,
        new_batches: Literal["error", "mean", "nearest"] = "error",
        devices: Devices = None,
        path: str | Path | None = None,
        overwrite: bool = False,
        progress: bool = True,
    ) -> AnnData:
        """Predict the cells of perturbations in contexts.

        Parameters
        ----------
        adata
            Data whose control cells predictions start from, with the columns of the training data; genes are matched
            by name. If None, the model's own.
        perturbations
            Labels of perturbations, not of the control. If None, those of the training data and of ``adata`` that the
            model knows; ``'all'`` takes every row of the perturbation-embedding table. An unmeasured dose or
            combination can be predicted if the model knows its components: ``"Trametinib@3"``, ``"KLF1+MAP2K6"``.
        contexts
            Labels of contexts with control cells. If None, all.
        n_cells
            Cells per condition, one number or a mapping from ``(context, perturbation)``. If None, one for each
            control cell of the context.
        output
            One of:

            * ``'expression'`` - log1p expression (default)
            * ``'delta'`` - its difference from the control cell that each prediction started from
            * ``'counts'`` - integer counts (CSR, int32) with the library sizes of the control cells, the predicted
              means and the spread of real cells
            * ``'embedding'`` - the predicted cell embedding, for models with ``representation='embedding'``
            * ``'prior'`` - log1p expression predicted by the model's prior without the network: a baseline, also
              available before training
        counts_layer
            With ``output='counts'``: layer of the data with raw counts, for the library sizes of its control cells.
            If None, they are inferred from log1p expression, taking a cell's smallest non-zero value as one count.
        control_layer
            Whether to keep the control cells themselves in ``layers["control"]``.
        seed
            Random seed for drawing control cells. A prediction depends on the seed and its own condition, not on what
            else is requested.
        batch_size
            Cell sets per forward pass. If None, 16, or fewer for many genes on a CPU.
        store
            Where expression is stored, as in :meth:`train`.
        precision
            ``'bf16'``, ``'16'`` or ``'32'``; ``'auto'`` as in :meth:`train`.
        max_missing_genes
            Largest fraction of the model's genes that ``adata`` may lack; they are set to zero.
        check_scale
            Raise an error for control cells on a different scale from those of the training data.
        new_batches
            How to represent technical batches that a network with a batch encoder has not seen: ``'mean'``, the mean
            vector of its batches, or ``'nearest'``, the batch of the training data with the most similar mean of
            control cells. By default they are an error. ``uns["scvi_tahoe_prediction"]["new_batches"]`` says what
            stood for each.
        devices
            Devices of this machine on which to predict; the predicted cells do not depend on them. One of:

            * None or 1 - the model's own (default)
            * a number, or a list of numbers - that many, or these CUDA devices
            * ``'auto'`` - all CUDA devices if the model is on one

            In a run on several devices, each process predicts on its own device.
        path
            Write the prediction here in chunks, with only a few of them in memory: a file that ends in ``.h5ad``, or a
            folder that ends in ``.zarr``. Written atomically. If None, the prediction is returned in
            memory.
        overwrite
            Whether to replace a prediction at ``path``.
        progress
            Whether to show a progress bar, and before it the number of conditions and cells.

        Returns
        -------
        AnnData of predicted cells: ``X`` as float32; in ``obs`` perturbation, context and batch under the names of the
        training data, and ``origin``, the control cell that each started from. With a path, ``X`` and layers stay in
        the file (``.to_memory()`` reads them), as CSR if that is smaller.

        Raises
        ------
        FileExistsError
            If ``path`` exists and ``overwrite`` is False.
        ValueError
            If a label is unknown or that of the control, the data lack control cells or too many genes or are on
            another scale, the path has another ending, an option is out of range or belongs to another output, or there
            are too few devices.
        """
        request = PredictionRequest(
            perturbations=perturbations, contexts=contexts, n_cells=n_cells, output=output, counts_layer=counts_layer,
            control_layer=control_layer, seed=seed, batch_size=batch_size, store=store, precision=precision,
            max_missing_genes=max_missing_genes, check_scale=check_scale, new_batches=new_batches, devices=devices,
            path=path, overwrite=overwrite, progress=progress,
        )  # fmt: skip
        self._verify_output(output)
        if output != "prior" and self.prior != "none" and self.prior_ is None:
            raise ValueError(f"the model has prior={self.prior!r}, which is learned in train(); train it first.")
        return self._predicted(request, self._learned_prior(), adata)

    def _predicted(
        self, request: PredictionRequest, prior: Mapping[str, Any] | None, adata: AnnOrMuData | None = None
    ) -> AnnData:
        """Predict with a learned prior, which need not be the model's own."""
        devices = prediction_devices(request.devices, self.device)
        data = self._prediction_data(
            adata, perturbations=request.perturbations, max_missing_genes=request.max_missing_genes
        )
        cosines, noise = self.observed_cosine_, self.observed_noise_
        network, n_cells = self.module.network, _N_SETS * self.set_size
        operations = step_operations(network, n_sets=_N_SETS, set_size=self.set_size) / 3  # forward alone
        with fitting_threads(devices[0], operations=operations, n_cells=n_cells, hidden=network.config.hidden):
            return predict_cells(
                request, data, self.module, prior, devices=devices, is_trained=self.is_trained_,
                decoder_error=(self.training_config_ or {}).get("decoder_error"), made_by=self._made_by(),
                observed_likeness={c: {"cosine": cosine, **noise.get(c, {})} for c, cosine in cosines.items()},
            )  # fmt: skip

    def _made_by(self) -> dict[str, str]:
        """Return release, origin and licence of the weights, for what a model leaves."""
        found = {"scvi_tahoe_version": version("scvi-tahoe"), "weights": "trained from scratch"}
        if self.provenance_ is not None and self.provenance_.get("format") != "scratch":
            origin = Provenance(**self.provenance_)
            found["weights"] = origin.source if origin.revision is None else f"{origin.source}@{origin.revision}"
            found["licence"] = licence_text(origin)
        return found

    def _verify_output(self, output: Output) -> None:
        """Reject what this model cannot predict."""
        if output == "embedding" and self.representation != "embedding":
            raise ValueError(
                f"output='embedding' needs representation='embedding'; this model has {self.representation!r}."
            )
        if output == "delta" and self.representation == "embedding":
            raise ValueError("output='delta' needs expression at the input; this model takes cell embeddings.")
        if output == "prior" and self.prior == "none":
            raise ValueError("output='prior' needs a model with a prior, e.g. TahoeST(adata, prior='response').")
        if output != "prior":
            self._check_if_trained(
                message="the model is not trained; its predictions mean nothing yet. Call model.train()."
            )

    def _learned_prior(self) -> dict[str, Any] | None:
        """Return the model's prior, learned from all of its cells if no training did; None without a prior."""
        if self.prior == "none" or self.prior_ is not None:
            return None if self.prior == "none" else self.prior_
        screen = self._training_screen()
        if self._learned_before is not None and self._learned_before[0] is screen:
            return self._learned_before[1]
        rows = np.flatnonzero(~screen.index.is_control)
        spec = self._spec().with_composed(screen)
        found = learn_prior(self.prior, spec, screen, rows, seed=0, device=self.device, criterion=self.criterion)
        self._learned_before = screen, found.to_dict()
        return self._learned_before[1]

    def _prediction_data(
        self, adata: AnnOrMuData | None, *, perturbations: Sequence[str] | None, max_missing_genes: float = 0.1
    ) -> PredictionData:
        is_own = adata is None or adata is self.adata
        if is_own and self.adata is None:
            raise ValueError("this model has no data of its own; pass the control cells, e.g. predict(adata, ...).")
        return PredictionData.read(
            self.adata if is_own else adata,
            self._spec(),
            own=self.adata,
            own_screen=self._own_screen() if is_own else None,
            trained=self.state_registry(REGISTRY.PERTURBATION)["names"],
            perturbations=perturbations,
            max_missing_genes=max_missing_genes,
        )

    @checked()
    def prior_report(
        self,
        adata: AnnOrMuData | None = None,
        *,
        perturbations: Sequence[str] | Literal["all"] | None = None,
        contexts: Sequence[str] | None = None,
        max_missing_genes: float = 0.1,
    ) -> pd.DataFrame:
        """Report where the prior of each condition comes from and how sure it is, without computing cells.

        Like ``predict(output="prior")``, it can be called before training, and then learns the prior from all cells.
        After training, the prior includes the training and the validation conditions. The prior of a condition is
        always made from other conditions, even if the condition itself was measured.

        Parameters
        ----------
        adata, perturbations, contexts, max_missing_genes
            As in :meth:`predict`.

        Returns
        -------
        One row per condition: perturbation (and dose) and context under the names of the training data, and

        * ``starts_from`` - one of: the same perturbation in other contexts; the nearest doses of the same
          perturbation; its parts, or some of its parts, if the other components were not measured alone; the nearest
          perturbations by embedding; perturbations that share parts with it; the mean of other perturbations; with
          ``prior="none"``, control cells
        * ``support`` (with ``prior="response"``) - share of the variance among perturbations that is explained by what
          is known of this one: 0 if nothing but its context is known
        * ``expected_error`` (with ``prior="response"``) - expected absolute error of the change of log1p expression,
          mean over genes
        * ``made_from`` (with other priors, as the next two) - the five training conditions with the largest weights,
          component by component for a combination; the weights of each component sum to 1
        * ``n_cells`` - number of training cells in all of these conditions, of which ``prior="cells"`` keeps up to 512
          each; without a prior, number of control cells of the context
        * ``kept`` - norm of the shrunken effect over the norm of the whole difference from the reference
          perturbations, over genes (and components); 1 with ``prior="mean"``, NaN without a prior
        * ``corrected`` - whether the network corrects the prior in :meth:`predict`

        Raises
        ------
        ValueError
            If a label is unknown, the data lack control cells or too many genes, or the prior has not been learned and
            the model has no data.

        Examples
        --------
        >>> model.prior_report(perturbations=["STAT1"])
        """
        data = self._prediction_data(adata, perturbations=perturbations, max_missing_genes=max_missing_genes)
        conditions = resolve_conditions(data, perturbations=perturbations, contexts=contexts)
        return prior_table(self._learned_prior(), data.spec, data.screen, conditions)
