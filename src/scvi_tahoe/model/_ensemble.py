"""Several models as one: their mean effect, and their disagreement as uncertainty."""

from __future__ import annotations

import json
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe._names import beside_labels
from scvi_tahoe.data import cell_set_dataset, condition_of_cell
from scvi_tahoe.evaluate import PRESETS, EvaluationReference, EvaluationWarning
from scvi_tahoe.files import (
    UnsafeFileError,
    atomic_folder,
    member,
    read_json,
    restore,
    verify_checksums,
    write_checksums,
)
from scvi_tahoe.model._tahoe_st import TahoeST
from scvi_tahoe.prediction import arguments_for_observed
from scvi_tahoe.response import makes_cells, means_by_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from anndata import AnnData

    from scvi_tahoe._compat import AnnOrMuData
    from scvi_tahoe.evaluate import EvaluationResult

#: key of ``uns`` with one row a condition, in the order of the columns of ``varm``
ENSEMBLE_RECORD = "scvi_tahoe_ensemble"
_LIST = "ensemble.json"


class TahoeEnsemble:
    """Ensemble of models that differ in their seed (or in more).

    The mean of several models is usually closer to the truth than each of them, and they are less reliable if they
    disagree (Lakshminarayanan et al., *Simple and scalable predictive uncertainty estimation using deep ensembles*,
    NeurIPS 2017). The spread shows variation between seeds, not errors that all members share.

    Parameters
    ----------
    models
        Two or more trained models with the same genes, perturbations, representation and columns.

    Attributes
    ----------
    models
        The members. The cells of a prediction are those of the first.

    Raises
    ------
    ValueError
        If there are fewer than two models, one is not trained, or they differ in what they predict.

    Examples
    --------
    >>> ensemble = TahoeEnsemble.train(adata, seeds=(0, 1, 2), max_steps=1000)
    >>> predicted = ensemble.predict(perturbations=["STAT1"], contexts=["A549"])
    >>> predicted.uns["scvi_tahoe_ensemble"]
    """

    @checked()
    def __init__(self, models: Sequence[TahoeST]) -> None:
        self.models = tuple(models)
        if len(self.models) < 2:
            raise ValueError(f"an ensemble needs two or more models; got {len(self.models)}.")
        for i, model in enumerate(self.models):
            if not model.is_trained_:
                raise ValueError(f"member {i} is not trained; its predictions mean nothing yet.")
            _verify_alike(i, model, self.models[0])

    def __repr__(self) -> str:
        return f"TahoeEnsemble of {len(self.models)} models: {self.models[0]._model_summary_string}"

    @classmethod
    @checked()
    def train(
        cls,
        data: AnnOrMuData | Callable[[int], TahoeST],
        *,
        seeds: Sequence[int] = (0, 1, 2),
        model_kwargs: Mapping[str, Any] | None = None,
        save_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> TahoeEnsemble:
        """Train one model for each seed, which decides initial weights, the order of cells, and random splits.

        Parameters
        ----------
        data
            Registered data, or a function from a seed to a new model, e.g.
            ``lambda seed: TahoeST.from_pretrained("folder", adata, seed=seed)``.
        seeds
            Two or more different seeds.
        model_kwargs
            Options of :class:`TahoeST`, if ``data`` are data.
        save_dir
            Folder for the training runs, each in a subfolder ``seed_0`` and so on.
        **kwargs
            Further arguments of :meth:`TahoeST.train`.

        Returns
        -------
        The ensemble.

        Raises
        ------
        ValueError
            If there are fewer than two seeds, a seed is repeated, or an option does not fit.
        """
        seeds = [int(seed) for seed in seeds]
        if len(seeds) < 2 or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds={seeds} must be two or more different numbers.")
        for name in ("seed", "resume_from"):
            if name in kwargs:
                raise ValueError(f"an ensemble does not take {name}; it trains one model for each of seeds={seeds}.")
        factory = callable(data)
        if factory and model_kwargs:
            raise ValueError("model_kwargs are for models made from data; the function that was given makes its own.")
        models = []
        for seed in seeds:
            model = data(seed) if factory else TahoeST(data, seed=seed, **(model_kwargs or {}))
            folder = None if save_dir is None else Path(save_dir) / f"seed_{seed}"
            model.train(seed=seed, save_dir=folder, **kwargs)
            models.append(model)
        return cls(models)

    @checked()
    def predict(self, adata: AnnOrMuData | None = None, **kwargs: Any) -> AnnData:
        """Predict cells with the mean effect of the members, and how far the members disagree.

        Cells are those of the first member; each gene of a condition is multiplied so that its mean becomes the mean
        over members (at most doubled), which keeps zeros and the spread of cells.

        Parameters
        ----------
        adata
            As in :meth:`TahoeST.predict`.
        **kwargs
            Further arguments of :meth:`TahoeST.predict`, with ``output="expression"`` and without a path.

        Returns
        -------
        AnnData as returned by :meth:`TahoeST.predict`, with additional

        * ``varm["ensemble_delta"]``, ``varm["ensemble_sd"]`` - mean over members of the delta against the control cells
          that predictions started from (with ``prior="response"`` or ``"cells"``: all control cells of the context),
          and its standard deviation (``n - 1``), ``[genes, conditions]``, float32
        * ``uns["scvi_tahoe_ensemble"]`` - DataFrame with a row for each of these columns: perturbation, dose and
          context (if registered), ``effect_size`` (norm of the mean delta), ``uncertainty`` (norm of the standard
          deviation over the norm of the mean delta: near 0 the members agree, near 1 they differ by as much as the size
          of the effect)
        * ``obs["uncertainty"]`` - the same for each cell's condition, unless members have ``prior="response"``: how far
          these agree says little about their errors, and predictions have ``obs["expected_error"]``

        Raises
        ------
        ValueError
            As :meth:`TahoeST.predict`, or for another output.
        """
        if (output := kwargs.pop("output", "expression")) != "expression":
            raise ValueError(
                f"output={output!r}: an ensemble predicts 'expression'; mean deltas are in varm['ensemble_delta']."
            )
        if kwargs.get("path") is not None:
            raise ValueError(
                f"path={str(kwargs['path'])!r}: an ensemble predicts in memory, as its mean is known only when all "
                "members have predicted; write the result with write_h5ad, or ask for fewer conditions at a time."
            )
        keeps_controls = kwargs.pop("control_layer", False)
        said: set[str] = set()
        with _said_once(said):
            first = self.models[0].predict(adata, control_layer=True, **kwargs)
        codes, table = condition_of_cell(first.obs, self.models[0].keys)
        table.index = table.index.astype(str)  # as AnnData wants them in files
        means = [means_by_code(first.X, codes)]
        for model in self.models[1:]:
            with _said_once(said):
                means.append(means_by_code(model.predict(adata, **kwargs).X, codes))
        start_KG = self._start_means(adata, first.layers["control"], codes, table, **kwargs)
        if not keeps_controls:
            del first.layers["control"]
        mean_KG, sd_KG = np.mean(means, axis=0), np.std(means, axis=0, ddof=1)
        for k, own_G in enumerate(means[0]):
            wanted_G = np.minimum(mean_KG[k], 2 * own_G)
            factor_G = np.divide(wanted_G, own_G, out=np.ones_like(wanted_G), where=own_G > 0)
            first.X[codes == k] *= factor_G.astype(first.X.dtype)
        delta_KG = mean_KG - start_KG
        size_K, spread = np.linalg.norm(delta_KG, axis=1), np.linalg.norm(sd_KG, axis=1)
        # without an effect there is nothing to be certain of, unless the members agree on that
        uncertainty_K = np.divide(spread, size_K, out=np.where(spread > 0, np.inf, 0.0), where=size_K > 0)
        own = {"effect_size": size_K, "uncertainty": uncertainty_K}
        table = pd.DataFrame(beside_labels(table, own), index=table.index)
        first.varm["ensemble_delta"], first.varm["ensemble_sd"] = (x.T.astype(np.float32) for x in (delta_KG, sd_KG))
        first.uns[ENSEMBLE_RECORD] = table
        if all(model.prior != "response" for model in self.models):
            for name, values in beside_labels(first.obs, {"uncertainty": uncertainty_K[codes]}).items():
                first.obs[name] = values
        return first

    def _start_means(
        self, adata: AnnOrMuData | None, control_CG: np.ndarray, codes: np.ndarray, table: pd.DataFrame, **kwargs: Any
    ) -> np.ndarray:
        """Return the mean of the control cells that each condition is compared with, ``[K, G]``.

        These are the cells it started from, or, if a prior moved them, all of its context.
        """
        model = next((model for model in self.models if makes_cells(model.prior)), None)
        if model is None:
            return means_by_code(control_CG, codes)
        data = model._prediction_data(
            adata,
            perturbations=kwargs.get("perturbations"),
            max_missing_genes=kwargs.get("max_missing_genes", 0.1),
        )
        key = model.keys.context_key
        contexts = [data.screen.index.contexts[0]] * len(table) if key is None else table[key].tolist()
        controls = {context: data.screen.index.controls(context) for context in dict.fromkeys(contexts)}
        dataset = cell_set_dataset(
            data.spec,
            data.screen,
            model.device,
            alignment=data.alignment,
            full_precision=True,
            rows=np.concatenate([*controls.values()]),
        )
        mean_of = {c: dataset.cells.mean(rows, model.device) for c, rows in controls.items()}
        return np.stack([mean_of[context] for context in contexts])

    @checked()
    def evaluate(
        self,
        reference: AnnData | EvaluationReference,
        prediction: AnnData | None = None,
        *,
        seed: int = 0,
        progress: bool = True,
        **kwargs: Any,
    ) -> EvaluationResult:
        """Score the ensemble's prediction against observed cells.

        Parameters
        ----------
        reference, prediction, seed, progress, **kwargs
            As in :meth:`TahoeST.evaluate`.

        Returns
        -------
        Scores with baselines and ceiling.

        Raises
        ------
        ValueError
            If scores need counts, which an ensemble does not predict, or the reference no longer knows its cells.
        """
        first = self.models[0]
        if prediction is None:
            preset = kwargs.get("preset", "vcc2025")
            if PRESETS.find(preset).from_counts:
                raise ValueError(
                    f"preset={preset!r} scores counts, which the mean of several models is not; evaluate one of them, "
                    "ensemble.models[0].evaluate(...)."
                )

        def predict(observed: AnnOrMuData) -> AnnData:
            requested = arguments_for_observed(observed, first.keys)
            return self.predict(observed, **requested, seed=seed, progress=progress)

        known = predict if prediction is None else prediction
        return first._evaluate(reference, known, seed=seed, progress=progress, **kwargs)

    @checked()
    def save(self, dir_path: str | Path, *, overwrite: bool = False, **kwargs: Any) -> None:
        """Save every member into a folder of its own. The ensemble is written atomically.

        Parameters
        ----------
        dir_path
            Folder.
        overwrite
            Whether to replace an ensemble that was saved there.
        **kwargs
            Further arguments of :meth:`TahoeST.save`, for each member.

        Raises
        ------
        FileExistsError
            If the folder exists and may not be replaced.
        """
        names = [f"member_{i}" for i in range(len(self.models))]
        with atomic_folder(dir_path, overwrite=overwrite, kind="ensemble", signatures=(_LIST,)) as partial:
            for name, model in zip(names, self.models, strict=True):
                model.save(partial / name, **kwargs)
            (partial / _LIST).write_text(json.dumps({"members": names}, indent=1))
            write_checksums(partial, [_LIST])

    @classmethod
    @checked()
    def load(cls, dir_path: str | Path, adata: AnnOrMuData | bool | None = None, **kwargs: Any) -> TahoeEnsemble:
        """Load an ensemble saved with :meth:`save`.

        Parameters
        ----------
        dir_path
            Folder.
        adata, **kwargs
            As in :meth:`TahoeST.load`, for each member.

        Returns
        -------
        The ensemble.

        Raises
        ------
        FileNotFoundError
            If the folder holds no ensemble.
        """
        folder = Path(dir_path)
        restore(folder)
        if not (folder / _LIST).is_file():
            raise FileNotFoundError(f"{folder} holds no ensemble ({_LIST} is missing); TahoeST.load reads one model.")
        verify_checksums(folder)
        names = read_json(member(folder, _LIST)).get("members")
        if not isinstance(names, list) or not names or any(Path(str(n)).name != n or n == ".." for n in names):
            raise UnsafeFileError(f"{_LIST} in {folder} does not name the folders of the members.")
        return cls([TahoeST.load(folder / name, adata, **kwargs) for name in names])


@contextmanager
def _said_once(said: set[str]) -> Iterator[None]:
    """Let through what members warn of, but a finding of the evaluation only once, whichever member has it first.

    ``said`` are the names of the findings so far, which are the beginnings of their messages.
    """
    with warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        name = str(warning.message).partition(":")[0]
        if name not in said or not issubclass(warning.category, EvaluationWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        said.add(name)


def _verify_alike(position: int, model: TahoeST, first: TahoeST) -> None:
    """Reject a member that predicts something else than the first."""
    for what, mine, theirs in (
        ("genes", tuple(model.genes), tuple(first.genes)),
        ("representation", model.representation, first.representation),
        ("columns", model.keys, first.keys),
        ("perturbations", set(model.perturbation_table.names), set(first.perturbation_table.names)),
    ):
        if mine != theirs:
            shown = "" if what in ("genes", "perturbations") else f": {mine} and {theirs}"
            raise ValueError(
                f"members 0 and {position} differ in their {what}{shown}; an ensemble averages like with like."
            )
