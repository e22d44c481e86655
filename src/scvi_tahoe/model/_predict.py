"""Predicted cells of perturbations in contexts."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe._devices import autocast_dtype, prediction_devices
from scvi_tahoe.data import (
    OUTPUTS,
    align_genes,
    cell_set_dataset,
    read_table,
    verify_screen,
)
from scvi_tahoe.model._fitted import FittedModel
from scvi_tahoe.prediction import (
    ControlCounts,
    Forward,
    PredictionJob,
    cells_of_plan,
    covered_by_asking,
    default_batch_size,
    plan_prediction,
    prediction_path,
    resolve_conditions,
    warn_about_scale,
    with_residual_input,
)
from scvi_tahoe.response import learn_prior, prior_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

    from scvi_tahoe._compat import AnnOrMuData
    from scvi_tahoe._devices import Devices
    from scvi_tahoe.data import Condition, DataSpec, GeneAlignment, Output, Screen, StoreKind

__all__ = ["PredictMixin"]

logger = logging.getLogger(__name__)


class PredictMixin(FittedModel):
    """``predict`` and ``prior_report``."""

    def predict(  # noqa: PLR0913
        self,
        adata: AnnOrMuData | None = None,
        *,
        perturbations: Sequence[str] | None = None,
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
            by name. None takes the model's own.
        perturbations
            Labels, not the control's; None takes all that the model knows. A dose or combination that was not measured
            is predicted where the model knows its parts: ``"Trametinib@3"``, ``"KLF1+MAP2K6"``.
        contexts
            Labels of contexts with control cells; None takes all.
        n_cells
            Cells for each condition; None takes one for each control cell of the context.
        output
            One of:

            * ``'expression'`` - log1p expression (default)
            * ``'delta'`` - its difference to the control cell that each prediction started from
            * ``'counts'`` - whole counts (CSR, int32) with the library sizes of the control cells, the predicted means
              and the spread of real cells
            * ``'embedding'`` - the predicted cell embedding, of models with ``representation='embedding'``
            * ``'prior'`` - log1p expression as the model's prior has it, without the network: a baseline, also before
              training
        counts_layer
            With ``output='counts'``: layer of the data with raw counts, for the library sizes of its control cells.
            None works them out from log1p expression, a cell's smallest non-zero value standing for one count.
        control_layer
            Keep the control cells themselves in ``layers["control"]``.
        seed
            Which control cells meet. A prediction depends on the seed and its own condition, not on what else is asked.
        batch_size
            Cell sets a forward pass; None takes 16, or fewer of many genes on a CPU.
        store
            Where expression lives, as in :meth:`train`.
        precision
            ``'bf16'``, ``'16'`` or ``'32'``; ``'auto'`` as in :meth:`train`.
        max_missing_genes
            Largest fraction of the model's genes that ``adata`` may lack; they enter as zeros.
        devices
            Devices of this machine that minibatches are dealt out to; the cells do not depend on it. One of:

            * None or 1 - the model's own (default)
            * a number, or a list of numbers - so many, or these CUDA devices
            * ``'auto'`` - all CUDA devices if the model is on one

            A process of a run on several devices predicts on its own.
        path
            Write the prediction here in chunks, and keep no more than a few of them in memory: a file that ends in
            ``.h5ad``, or a folder that ends in ``.zarr``. It appears when it is complete. None predicts into memory.
        overwrite
            Replace a prediction that is at ``path``.
        progress
            Whether to show a progress bar.

        Returns
        -------
        AnnData of predicted cells: ``X`` float32; ``obs`` perturbation, context and batch under the names of the
        training data, and ``origin``. With a path, ``X`` and layers stay in the file (``.to_memory()`` reads them):
        as CSR where that is smaller.

        Raises
        ------
        FileExistsError
            If something is at ``path`` and may not be replaced.
        ValueError
            If a label is unknown or the control's, the data lack control cells or too many genes, the path has another
            ending, or there are not so many devices.
        """
        self._verify_output(output, counts_layer, control_layer=control_layer)
        return self._predicted(
            adata, perturbations=perturbations, contexts=contexts, n_cells=n_cells, output=output,
            counts_layer=counts_layer, control_layer=control_layer, seed=seed, batch_size=batch_size, store=store,
            precision=precision, max_missing_genes=max_missing_genes, devices=devices, path=path, overwrite=overwrite,
            progress=progress, learned=self._learned_prior() if output == "prior" else self._trained_prior(),
        )  # fmt: skip

    def _predicted(  # noqa: PLR0913
        self,
        adata: AnnOrMuData | None = None,
        *,
        perturbations: Sequence[str] | None,
        contexts: Sequence[str] | None,
        n_cells: int | Mapping[Condition, int] | None,
        output: Output,
        learned: Mapping[str, Any] | None,
        counts_layer: str | None = None,
        control_layer: bool = False,
        seed: int = 0,
        batch_size: int | None = None,
        store: StoreKind = "auto",
        precision: str | int = "auto",
        max_missing_genes: float = 0.1,
        devices: Devices = None,
        path: str | Path | None = None,
        overwrite: bool = False,
        progress: bool = True,
    ) -> AnnData:
        target = None if path is None else prediction_path(path, overwrite=overwrite)
        chosen = prediction_devices(devices, self.device)
        data, screen, spec, alignment = self._prediction_data(adata, perturbations, max_missing_genes)
        index = screen.index
        plan = plan_prediction(
            index, spec.table, perturbations=perturbations, contexts=contexts, n_cells=n_cells, seed=seed
        )
        if self.representation != "embedding":
            warn_about_scale(learned, self.adata, spec, screen, alignment, plan.start_rows, own_data=data is self.adata)
        counts = None
        if output == "counts":  # before the costly part: it reads the library sizes and may refuse them
            counts = ControlCounts.read(
                data, self.keys, screen, plan.start_rows, layer=counts_layer, alignment=alignment
            )
        self.module.eval()
        products = autocast_dtype(precision, chosen[0])
        if batch_size is None:
            batch_size = default_batch_size(chosen[0], set_size=self.set_size, width=len(self.genes))
        forward = Forward(
            set_size=self.set_size, batch_size=batch_size, output=output, products=products, progress=progress
        )
        dataset = cell_set_dataset(
            spec,
            screen,
            chosen[0],
            store=store,
            alignment=alignment,
            full_precision=products is None,
            rows=plan.rows_read,
        )
        dataset, plan, base, starts_from = with_residual_input(
            dataset, plan, learned, spec, screen, index, seed=seed, device=chosen[0]
        )
        record = self._prediction_record(output, seed) | {"starts_from": dict(Counter(starts_from))}
        if output != "prior" and (left := plan.left_as_prior):
            record["predicted_as_prior"] = left
            logger.info(
                f"{len(left)} combinations ({', '.join(left[:3])}{', ...' if left[3:] else ''}) are predicted as the "
                "prior has them, from their parts: training saw too few combinations whose parts were measured alone "
                "to learn what to change about that."
            )
        job = PredictionJob(
            module=self.module, dataset=dataset, plan=plan, base=base, forward=forward, devices=chosen,
            genes=self.genes, obs=cells_of_plan(plan, screen, self.keys), record=record,
            observed_cosine=self.observed_cosine_, parser=self.keys.parser,
            counts=counts, control_layer=control_layer,
        )  # fmt: skip
        return job.in_memory() if target is None else job.to_file(target)

    def _verify_output(self, output: Output, counts_layer: str | None, *, control_layer: bool) -> None:
        """Refuse what this model cannot give, and options of another output."""
        if output not in OUTPUTS:
            raise ValueError(f"output={output!r} is unknown; allowed are {', '.join(map(repr, OUTPUTS))}.")
        if output == "embedding" and self.representation != "embedding":
            raise ValueError(
                f"output='embedding' needs representation='embedding'; this model has {self.representation!r}."
            )
        if output == "delta" and self.representation == "embedding":
            raise ValueError("output='delta' needs expression at the input; this model takes cell embeddings.")
        if output != "counts" and counts_layer is not None:
            raise ValueError(f"counts_layer={counts_layer!r} is for output='counts'; the output is {output!r}.")
        if output == "counts" and control_layer:
            raise ValueError("control_layer keeps log1p expression; with output='counts' take the cells from the data.")
        if output == "prior":
            if self.prior == "none":
                raise ValueError("output='prior' needs a model with a prior, e.g. TahoeST(adata, prior='cells').")
        else:
            self._check_if_trained(
                message="the model is not trained; its predictions mean nothing yet. Call model.train()."
            )

    def _trained_prior(self) -> dict[str, Any] | None:
        """The prior that training learned; None without a prior."""
        if self.prior != "none" and self.prior_ is None:
            raise ValueError(f"the model has prior={self.prior!r}, which is learned in train(); train it first.")
        return self.prior_ if self.prior != "none" else None

    def _learned_prior(self) -> dict[str, Any] | None:
        """The model's prior, learned from all of its cells if no training did; None without a prior."""
        if self.prior == "none" or self.prior_ is not None:
            return self.prior_ if self.prior != "none" else None
        screen = self._training_screen()
        index = screen.index
        return learn_prior(self.prior, self._spec(), screen, index, np.flatnonzero(~index.is_control), seed=0)

    def _prediction_record(self, output: Output, seed: int) -> dict[str, Any]:
        """Where the numbers come from; the evaluation refuses genes of a decoder that was not trained."""
        decodes = self.module.config.gene_decoder is not None
        weight = self.module.objective.decoder_weight if decodes else 0.0
        return {
            "space": "expression" if output == "prior" else output,
            "genes_from": "decoder" if decodes else "network",
            "decoder_trained": bool(decodes and weight > 0 and self.is_trained_),
            "decoder_weight": weight,
            "seed": seed,
        }

    def prior_report(
        self,
        adata: AnnOrMuData | None = None,
        *,
        perturbations: Sequence[str] | None = None,
        contexts: Sequence[str] | None = None,
        max_missing_genes: float = 0.1,
    ) -> pd.DataFrame:
        """Say what predictions start from: where the prior of each condition comes from. No cells are made for it.

        As ``predict(output="prior")``, it can be asked before training, and learns the prior of all cells then. After
        training the prior knows the training and the validation conditions. What a condition's prior is made from are
        always other conditions, also where it was measured itself.

        Parameters
        ----------
        adata, perturbations, contexts, max_missing_genes
            As in :meth:`predict`.

        Returns
        -------
        One row a condition: perturbation (and dose) and context under the names of the training data, and

        * ``starts_from`` - in words, one of: the same perturbation in other contexts; the nearest doses of the same
          perturbation; its parts, or some of its parts, where the others of a combination were not measured alone; the
          nearest perturbations by embedding; perturbations that share parts with it; the mean of other perturbations;
          with ``prior="none"``, control cells
        * ``made_from`` - training conditions and their weights, the five heaviest first, the parts of a combination
          after each other; weights add up to 1, of each part
        * ``n_cells`` - training cells of all of these conditions, of which ``prior="cells"`` keeps up to 512 each;
          without a prior, control cells of the context
        * ``kept`` - share of the difference to the anchors that is kept as exceeding its noise: its length over that of
          the whole difference, over genes (and parts); 1 with ``prior="mean"``, NaN without a prior
        * ``corrected`` - whether :meth:`predict` lets the network change it

        Raises
        ------
        ValueError
            If a label is unknown, the data lack control cells or too many genes, or the prior is not learned yet and
            the model has no data.

        Examples
        --------
        >>> model.prior_report(perturbations=["STAT1"])
        """
        _, screen, spec, _ = self._prediction_data(adata, perturbations, max_missing_genes)
        index = screen.index
        conditions = resolve_conditions(index, spec.table, perturbations=perturbations, contexts=contexts)
        return prior_table(self._learned_prior(), spec, screen, index, conditions)

    def _prediction_data(
        self, adata: AnnOrMuData | None, perturbations: Sequence[str] | None, max_missing_genes: float
    ) -> tuple[AnnOrMuData, Screen, DataSpec, GeneAlignment]:
        """The data to start from; the spec, with the table rows that they and the question bring; and their genes."""
        table = self.perturbation_table
        data = self.adata if adata is None else adata
        if data is None:
            raise ValueError("this model has no data of its own; pass the control cells, e.g. predict(adata, ...).")
        new = read_table(data, self.keys, required=False, like=table)
        table = table if new is None else table.extended(new)
        screen = self._own_screen() if data is self.adata else verify_screen(data, self.keys, for_training=False)
        if perturbations is not None and not isinstance(perturbations, str):
            table = covered_by_asking(screen, table, [str(p) for p in perturbations])
        alignment = align_genes(self.genes, screen.genes, max_missing=max_missing_genes)
        if not alignment.is_identity:
            logger.info(str(alignment))
        return data, screen, self._spec(table=table), alignment
