"""The response model of a table of responses: fit, predict, report, save and load."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from anndata import AnnData

from scvi_tahoe._arguments import checked
from scvi_tahoe._constants import EFFECTS_KEYS
from scvi_tahoe._devices import device_of
from scvi_tahoe._names import beside_labels, nearest_names
from scvi_tahoe._threads import solving_threads
from scvi_tahoe.data import ScreenKeys, label_columns
from scvi_tahoe.response._kernels import Conditions, TableKernel
from scvi_tahoe.response._members import Question
from scvi_tahoe.response._plan_next import plan_next
from scvi_tahoe.response._response_model import fit_responses
from scvi_tahoe.response._response_report import response_report
from scvi_tahoe.response._response_table import read_responses, read_tables
from scvi_tahoe.response._saved_fit import read_fit, write_fit
from scvi_tahoe.response._uncertainty import (
    Measured,
    predict_conditions,
    probability_of_direction,
    probability_of_effect,
    usual_change,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

    from scvi_tahoe.response._fitted import Fitted
    from scvi_tahoe.response._response_model import Criterion

logger = logging.getLogger(__name__)

_NO_SUPPORT = 0.01
_RECORD = "scvi_tahoe_response"
_LABELS = ("perturbation_key", "context_key", "dose_key", "combination_separator")
_KEYS = (*_LABELS, "control")


class ResponseModel:
    """Mean changes of conditions, learned from a table of such changes: no cells and no network.

    Make one with :meth:`fit` or :meth:`load`. The model is a Gaussian process over conditions (kernels of contexts,
    perturbations and their parts, doses and embedding tables) whose weights maximise the marginal likelihood [1]_,
    stacked [3]_ with simple predictors (mean, transfer, nearest neighbours, ridge regression [4]_) by conditions that
    are predicted without themselves, which the inverse of one matrix gives for all of them [1]_, [2]_.

    Attributes
    ----------
    criterion
        As given to :meth:`fit`.
    notes
        What was ignored, averaged or left out of the data, one line each.

    References
    ----------
    .. [1] Rasmussen and Williams 2006, *Gaussian Processes for Machine Learning*, chapter 5.4.
    .. [2] Sundararajan and Keerthi 2001, Neural Computation 13:1103.
    .. [3] Breiman 1996, Machine Learning 24:49.
    .. [4] Ahlmann-Eltze, Huber and Anders 2025, Nature Methods.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from anndata import AnnData
    >>> from scvi_tahoe.response import ResponseModel
    >>> rng = np.random.default_rng(0)
    >>> genes = pd.DataFrame(rng.normal(size=(31, 4)), index=[f"gene_{i}" for i in range(31)])
    >>> changes = genes.to_numpy()[:30] @ rng.normal(size=(4, 50))
    >>> screen = AnnData(changes, obs=pd.DataFrame({"target": genes.index[:30]}, index=genes.index[:30]))
    >>> response = ResponseModel.fit(screen, perturbation_key="target", tables=genes, progress=False)
    >>> predicted = response.predict(["gene_30"])  # was not measured
    >>> predicted.X.shape, predicted.layers["sd"].shape
    ((1, 50), (1, 50))
    """

    def __init__(
        self,
        fitted: Fitted,
        measured: Measured,
        keys: ScreenKeys,
        *,
        criterion: Criterion,
        notes: Sequence[str] = (),
        table_names: Iterable[str] = (),
    ) -> None:
        self._fitted, self._measured, self._keys = fitted, measured, keys
        self._table_names = frozenset(table_names)
        self.criterion: Criterion = criterion
        self.notes = tuple(notes)

    @classmethod
    @checked()
    def fit(  # noqa: PLR0913
        cls,
        adata: AnnData,
        *,
        perturbation_key: str,
        context_key: str | None = None,
        source_key: str | None = None,
        control: str | None = None,
        tables: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
        dose_key: str | None = None,
        combination_separator: str | None = None,
        variance_layer: str | None = None,
        control_expression: pd.DataFrame | None = None,
        criterion: Criterion = "error",
        seed: int = 0,
        device: str | torch.device = "auto",
        progress: bool = True,
    ) -> ResponseModel:
        """Fit to a table of responses.

        Parameters
        ----------
        adata
            One row for each condition; ``X`` is its change against control, ``[conditions, genes]``, on any scale on
            which effects add up (differences of mean log expression, log fold changes, z scores). NaN: not measured.
            Rows of one condition are averaged.
        perturbation_key
            Column of ``obs`` with the perturbations.
        context_key
            Column of ``obs`` with the contexts (cell line, cell type, donor). If None, there is one context.
        source_key
            Column of ``obs`` with the data set of each context: contexts of one data set may have more in common.
        control
            Label of control rows, which are left out. If None, there are none.
        tables
            Embeddings of perturbations: a DataFrame with perturbations as index, or several by name. Perturbations
            without a row are predicted from the rest. With combinations or doses, rows are those of components.
        dose_key
            Column of ``obs`` with the doses.
        combination_separator
            Text between the perturbations of a combination, e.g. ``"+"``.
        variance_layer
            Layer with the sampling variance of each value of ``X``, its standard error squared: noisy conditions then
            count less. NaN, or 0 in a whole row: not known. Infinite: the value is ignored.
        control_expression
            Mean expression of control cells, contexts as index, genes as columns. Tells how alike three or more
            contexts are, new ones included, and how far a perturbed gene itself can fall; in the unit of ``X``.
        criterion
            ``"error"`` minimises the squared error. ``"discrimination"`` multiplies what is specific to a perturbation
            by the factor that tells left-out conditions apart best (PDS); :meth:`report` says what that costs.
        seed
            Random seed for folds, and for the conditions that weights are learned from.
        device
            Device for matrix products; ``"auto"`` is the first CUDA device, if there is one.
        progress
            Whether to show a progress bar if it takes more than a few seconds.

        Returns
        -------
        The fitted model. What was ignored or averaged is logged and in :attr:`notes`.

        Raises
        ------
        KeyError
            If there is no such column or layer.
        TypeError
            If ``adata`` or a table is of another type.
        ValueError
            If values are infinite or no numbers, all responses are 0 or missing, variances are negative, a table covers
            no perturbation, or an option is unknown.
        """
        where = device_of(device)
        table = read_responses(
            adata, perturbation_key=perturbation_key, context_key=context_key, control=control, dose_key=dose_key,
            combination_separator=combination_separator, variance_layer=variance_layer,
            control_expression=control_expression, source_key=source_key,
        )  # fmt: skip
        parser = table.keys.parser
        components = Conditions.of(table.responses.perturbations, table.responses.contexts, parser).components
        frames, of_tables = read_tables(tables, components)
        notes = (*table.notes, *of_tables)
        for note in notes:
            logger.info("%s.", note)
        kernels = {name: TableKernel.of(frame, components) for name, frame in frames.items()}
        with solving_threads(*table.responses.changes.shape):
            fitted = fit_responses(
                table.responses, parser, kernels, criterion=criterion, device=where, seed=seed, progress=progress
            )
        # names of tables that say nothing count too: asking for them is not a typo
        in_tables = {name for frame in frames.values() for name in frame.index}
        measured = Measured.of(fitted, table.has_noise)
        return cls(fitted, measured, table.keys, criterion=criterion, notes=notes, table_names=in_tables)

    @property
    def perturbations(self) -> list[str]:
        """Labels that were measured, sorted."""
        return list(self._fitted.conditions.labels)

    @property
    def contexts(self) -> list[str]:
        """Contexts that were measured, sorted; ``"all"`` where there is no column of contexts."""
        return list(self._fitted.conditions.context_names)

    @property
    def genes(self) -> list[str]:
        """Names of the genes that are predicted."""
        return self._fitted.responses.genes.tolist()

    @checked()
    def predict(
        self,
        perturbations: Sequence[str] | str | None = None,
        contexts: Sequence[str] | str | None = None,
        *,
        use_measured: bool = True,
        new_contexts: bool = False,
        min_change: float | None = None,
    ) -> AnnData:
        """Predict the mean change of every perturbation in every context.

        Parameters
        ----------
        perturbations
            Labels, measured or not. If None, all that were measured.
        contexts
            Contexts. If None, all that were measured.
        use_measured
            Whether a condition that was measured is its posterior mean given its own measurement too, which removes
            noise. Otherwise its own measurement is left out of the simple predictors, but not of the kernels.
        new_contexts
            Whether contexts that nothing is known of may be asked for: the perturbation's change elsewhere.
        min_change
            Size from which a change counts as an effect. If None, the median over genes of the standard deviation of
            measured changes; ``uns["scvi_tahoe_response"]["min_change"]`` has it.

        Returns
        -------
        AnnData ``[conditions, genes]``: ``X``, the mean change, float32; ``layers["sd"]``, its standard deviation
        (sampling noise of a measurement comes in addition); ``layers["p_effect"]``, the probability that the true
        change is larger than ``min_change``, up or down, and ``layers["p_direction"]``, that it has the sign of ``X``;
        ``obs`` with the labels, ``support`` (share of the variance
        among perturbations that is explained by what is known of this one, from 0 to 1) and ``starts_from``. The
        functions of :mod:`scvi_tahoe.effects` take it as it is.

        Raises
        ------
        ValueError
            If a perturbation is neither measured nor in a table, or a context is unknown; the nearest are listed. If
            ``min_change`` is negative.
        """
        if min_change is not None and not min_change >= 0:
            raise ValueError(f"min_change={min_change!r} is not allowed; give a size of 0 or more, or None.")
        labels = self._known_labels(_listed(perturbations, self.perturbations, "perturbations"))
        places = self._known_contexts(_listed(contexts, self.contexts, "contexts"), new_contexts)
        questions = [Question(label, c, hides_condition=not use_measured) for c in places for label in labels]
        means, fitted = self._fitted.responses.control_means, self._fitted
        found = predict_conditions(fitted, questions, means, self._measured)
        columns = label_columns([q.perturbation for q in questions], self._keys)
        if self._keys.context_key is not None:
            columns[self._keys.context_key] = [q.context for q in questions]
        several = self._keys.context_key is not None
        names = [f"{q.perturbation} in {q.context}" if several else q.perturbation for q in questions]
        own = {"support": found.support, "starts_from": found.starts_from}
        obs = pd.DataFrame(beside_labels(columns, own), index=names)
        if len(lost := obs.index[found.support < _NO_SUPPORT]):
            logger.warning(
                "%d of %d predictions have no support, as nothing tells their perturbation from others: %s.",
                len(lost), len(obs), ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else ""),
            )  # fmt: skip
        min_change = usual_change(fitted) if min_change is None else float(min_change)
        record = {
            "criterion": self.criterion, "n_conditions": len(fitted.conditions), "use_measured": use_measured,
            "min_change": min_change,
        }  # fmt: skip
        kept = {name: key for name in _LABELS if (key := getattr(self._keys, name)) is not None}
        layers = {
            "sd": found.deviation,
            "p_effect": probability_of_effect(found.changes, found.deviation, min_change),
            "p_direction": probability_of_direction(found.changes, found.deviation),
        }
        return AnnData(
            found.changes, obs=obs, var=pd.DataFrame(index=self.genes), layers=layers,
            uns={_RECORD: record, EFFECTS_KEYS: kept},
        )  # fmt: skip

    @checked()
    def plan_next(
        self,
        n: int = 20,
        *,
        perturbations: Sequence[str] | None = None,
        contexts: Sequence[str] | str | None = None,
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
            What can be measured. If None, all perturbations with a row in a table.
        contexts
            Where. If None, all contexts that were measured.
        to_predict
            Perturbations that matter: only their errors in ``contexts`` count. If None, those of ``perturbations``.

        Returns
        -------
        One row for each choice, the best first: its labels; ``gain``, the share of the expected squared error of all
        conditions to predict that it takes away from the others; ``left``, the share that then remains for the others.

        Raises
        ------
        ValueError
            If a perturbation or context is unknown, all of ``to_predict`` was measured, there are fewer than ``n``
            candidates, or there are more than 3,000 conditions that can be measured or are to be predicted.
        """
        if perturbations is None and not self._table_names:
            raise ValueError("without a table, name what can be measured: plan_next(perturbations=[...]).")
        labels = sorted(self._table_names) if perturbations is None else _listed(perturbations, [], "perturbations")
        if perturbations is None:
            labels = [label for label in labels if not self._fitted.parser.is_control(label)]
        places = self._known_contexts(_listed(contexts, self.contexts, "contexts"), new_contexts=False)
        seen = self._fitted.members.seen

        def not_measured(labels: list[str]) -> list[tuple[str, str]]:
            known = self._known_labels(labels)
            return [(label, context) for context in places for label in known if seen.row(label, context) is None]

        candidates = not_measured(labels)
        counted = None if to_predict is None else not_measured(_listed(to_predict, [], "to_predict"))
        chosen = plan_next(self._fitted, candidates, n, self._fitted.responses.control_means, to_predict=counted)
        picked = [candidates[k] for k in chosen.pop("candidate")]
        columns = label_columns([label for label, _ in picked], self._keys)
        if self._keys.context_key is not None:
            columns[self._keys.context_key] = [context for _, context in picked]
        return pd.DataFrame(beside_labels(columns, chosen))

    @checked()
    def report(self, *, losses: bool = True) -> pd.DataFrame:
        """Return what the model learned, and how well it predicts conditions that it is not shown.

        Parameters
        ----------
        losses
            Whether to add how much the squared error of left-out conditions grows without each table, without what is
            specific to a context, and without what the perturbation does elsewhere (column ``loss``; 0.1 is 10 % more).
            Up to 250 conditions decide.

        Returns
        -------
        One row for each kernel, table (``part``; ``weight`` is its share of the variance of the training conditions)
        and member (``weight`` in the stack; the response model as a whole has none), the last for each kind of
        ``question`` with ``pearson``, ``pds`` (against the others of the context, among up to 300), ``mae``, ``rmse``
        and ``n_conditions``. ``report.attrs["text"]`` is a short text for people.
        """
        return response_report(self._fitted, self.notes, losses=losses)

    @checked()
    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Save to a folder: numbers in ``response.npz``, the rest in ``response.json``; no pickle.

        Parameters
        ----------
        path
            Folder to create, complete or not at all.
        overwrite
            Whether to replace a response model that is there.

        Raises
        ------
        FileExistsError
            If the folder exists and ``overwrite`` is False, or it holds something else.
        """
        values = {
            "keys": {key: getattr(self._keys, key) for key in _KEYS}, "criterion": self.criterion,
            "notes": list(self.notes), "table_names": sorted(self._table_names),
        }  # fmt: skip
        write_fit(path, self._fitted, self._measured, values, overwrite=overwrite)

    @classmethod
    @checked()
    def load(cls, path: str | Path, *, device: str | torch.device = "auto") -> ResponseModel:
        """Load a saved model, whose predictions are the same to the last bit on the same device.

        Parameters
        ----------
        path
            Folder that :meth:`save` wrote.
        device
            As for :meth:`fit`.

        Raises
        ------
        FileNotFoundError
            If there is no response model.
        ValueError
            If it is damaged, or of a later version.
        """
        fitted, measured, values = read_fit(Path(path), device_of(device))
        return cls(
            fitted, measured, ScreenKeys(**values["keys"]),
            criterion=values["criterion"], notes=values["notes"], table_names=values["table_names"],
        )  # fmt: skip

    def __repr__(self) -> str:
        return self.report().attrs["text"]

    def _known_labels(self, labels: list[str]) -> list[str]:
        """Labels in their usual spelling; a ValueError if a component is neither measured nor in a table."""
        parser, conditions = self._fitted.parser, self._fitted.conditions
        known = {*conditions.components, *self._table_names}
        found = []
        for label in labels:
            for part in parser.components(label):
                if part.name not in known:
                    have = "nor in a table" if self._table_names else "and there is no table"
                    near = nearest_names(part.name, sorted(known))
                    raise ValueError(f"perturbation {part.name!r} was not measured {have}{near}.")
            if parser.is_control(label):
                raise ValueError(f"{label!r} is the control, whose change is 0; ask for perturbations.")
            found.append(parser.spelling(label))
        return list(dict.fromkeys(found))

    def _known_contexts(self, contexts: list[str], new_contexts: bool) -> list[str]:
        known = {*self.contexts, *self._fitted.responses.control_means}
        unknown = [context for context in contexts if context not in known]
        if unknown and not new_contexts:
            near = nearest_names(unknown[0], sorted(known))
            raise ValueError(
                f"context {unknown[0]!r} is unknown{near}; measured are {sorted(known)[:10]}. To predict in a context "
                "that nothing is known of, give new_contexts=True."
            )
        return list(dict.fromkeys(contexts))


def _listed(labels: Sequence[str] | str | None, default: list[str], what: str) -> list[str]:
    if labels is None:
        return default
    found = [labels] if isinstance(labels, str) else [str(label) for label in labels]
    if not found:
        raise ValueError(f"{what} is empty; name at least one, or leave it out for all.")
    return found
