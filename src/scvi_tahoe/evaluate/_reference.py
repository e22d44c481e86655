"""The truth that predictions are scored against, what is computed once for all of them, and the scores of a context."""

from __future__ import annotations

import hashlib
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe.evaluate._baselines import (
    applicable_baselines,
    baseline_cells,
    chosen_baseline,
    embedding_tables,
    find_baseline,
)
from scvi_tahoe.evaluate._cells import align_genes, cells_from_adata
from scvi_tahoe.evaluate._context_truth import ContextTruth, TruthCache, content_hash, installed_versions
from scvi_tahoe.evaluate._differential_expression import FDR, chosen_backend
from scvi_tahoe.evaluate._group_statistics import GroupStatistics, group_statistics
from scvi_tahoe.evaluate._input_checks import (
    cell_totals,
    check_contexts,
    check_control_scale,
    check_counts,
    check_leakage,
    check_range,
    check_training_data,
    log1p_expression,
    profiles_of_contexts,
)
from scvi_tahoe.evaluate._metric_cell_eval import cell_eval_scores
from scvi_tahoe.evaluate._metrics import Comparison, computed_metrics
from scvi_tahoe.evaluate._summary import mean_over_draws

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import polars as pl
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._checks import Check
    from scvi_tahoe.evaluate._differential_expression import Backend
    from scvi_tahoe.evaluate._input_checks import CellProfile
    from scvi_tahoe.evaluate._presets import ScoringSettings

#: cells of each table that every evaluation compares
_SAMPLE = 64


@dataclass(eq=False, repr=False)
class EvaluationReference:
    """Observed held-out cells, and the training data that baselines come from.

    Build it once with :meth:`from_adata` and score any number of predictions: what does not depend on them is computed
    for the first one only. The AnnData that it was made from must not change in the meantime.
    """

    #: observed cells with the controls of every context
    cells: CellTable
    _: KW_ONLY
    #: label of control cells
    control: str
    #: columns of ``obs`` in every object that is scored
    perturbation_key: str
    context_key: str | None = None
    #: training cells over the same genes
    train: CellTable | None = None
    #: vector of each perturbation in each table, for the baselines that use them; one table alone is named ``""``
    embeddings: Mapping[str, Mapping[str, NDArray[np.float64]]] | None = None
    #: text between the perturbations of a combination, for the baseline that adds them up
    combination_separator: str | None = None
    #: as in :meth:`from_adata`, as are the options below
    layer: str | None = None
    ceiling: bool = True
    #: keeps tables of the truth
    cache: TruthCache = field(default_factory=TruthCache)
    de_backend: Backend = "auto"
    num_threads: int | None = None
    progress: bool = False
    #: what :meth:`from_adata` read, from whose control cells a model can predict
    adata: AnnData | None = field(default=None, init=False)
    #: whether several contexts are taken for one, if the columns of ``adata`` can tell
    context_checks: list[Check] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.cells = _with_perturbations(self.cells, self.control)
        self.de_backend = chosen_backend(self.de_backend)
        self._subsets: dict[tuple[tuple[str, str], ...], EvaluationReference] = {}
        self._as_read = self._samples()
        self._scored: set[tuple[str, ScoringSettings, int]] = set()

    @classmethod
    @checked(num_threads=(1, None))
    def from_adata(  # noqa: PLR0913
        cls,
        adata: AnnData,
        *,
        perturbation_key: str,
        control: str,
        context_key: str | None = None,
        baseline_from: AnnData | None = None,
        perturbation_embedding: Mapping[str, Any] | pd.DataFrame | tuple[Sequence[str], ArrayLike] | None = None,
        combination_separator: str | None = None,
        layer: str | None = None,
        ceiling: bool = True,
        cache_dir: str | os.PathLike[str] | None = None,
        de_backend: Backend = "auto",
        num_threads: int | None = None,
        progress: bool = False,
    ) -> EvaluationReference:
        """Read held-out cells and training data; neither object is changed.

        Parameters
        ----------
        adata
            Held-out cells and the control cells of their contexts, log1p expression.
        perturbation_key, context_key
            Columns of ``obs`` with the perturbation label and the context (cell line, donor) of each cell. Contexts are
            scored one by one and averaged.
        control
            Label of control cells.
        baseline_from
            Training data, for the baselines and the check on leakage. Genes are matched by name.
        perturbation_embedding
            Vector of each perturbation, for the baselines ``"ridge"`` and ``"nearest"``: ``{label: vector}``, a
            DataFrame with labels as index, or a pair of labels and matrix. Several tables are given by name,
            ``{name: DataFrame or dictionary}``; each has its own ``"ridge:name"`` and ``"nearest:name"``.
        combination_separator
            Text between the perturbations of a combination, ``"+"`` in ``"KLF1+MAP2K6"``, for the baseline
            ``"additive"``.
        layer
            Layer with the expression in every object. If ``None``, ``X``.
        ceiling
            Whether to compute the split-half ceiling, which costs about as much as scoring one prediction.
        cache_dir
            Folder in which tables of the truth are kept between processes. If ``None``, they are kept in memory.
        de_backend
            Where differential expression is tested: ``"cpu"`` (pdex), ``"gpu"`` (gpudge, the extra ``gpu``), or
            ``"auto"``, the GPU if gpudge is installed and there is a CUDA device. Both give the same ranks.
        num_threads
            Threads of the differential expression test on the CPU.
        progress
            Show progress bars with the time left.

        Raises
        ------
        KeyError, ValueError
            If a column, the layer, genes of the training data, or the control cells of a context are missing.
        ImportError, RuntimeError
            If ``de_backend="gpu"`` and gpudge is not installed, or there is no CUDA device.
        """
        read = partial(cells_from_adata, perturbation_key=perturbation_key, context_key=context_key, layer=layer)
        cells = read(adata, role="reference")
        train = None
        if baseline_from is not None:
            train = align_genes(read(baseline_from, role="training data"), cells.genes, role="training data")
        reference = cls(
            cells,
            control=control,
            perturbation_key=perturbation_key,
            context_key=context_key,
            train=train,
            embeddings=embedding_tables(perturbation_embedding),
            combination_separator=combination_separator,
            layer=layer,
            ceiling=ceiling,
            cache=TruthCache(cache_dir),
            de_backend=de_backend,
            num_threads=num_threads,
            progress=progress,
        )
        reference.adata = adata
        reference.context_checks = [check_contexts(adata.obs, cells, control=control, context_key=context_key)]
        return reference

    def __repr__(self) -> str:
        n = sum(map(len, self.conditions.values()))
        train = "no training data" if self.train is None else f"{self.train.n_cells} training cells"
        size = f"{n} conditions in {len(self.contexts)} contexts, {self.cells.n_cells} cells"
        return f"EvaluationReference: {size}, {train}"

    @cached_property
    def contexts(self) -> dict[str, ContextTruth]:
        """Truth of each context."""
        shared = (self.control, self.cache, chosen_backend(self.de_backend), self.num_threads, self.progress)
        return {c: ContextTruth(self.cells.of_context(c), *shared) for c in self.cells.contexts}

    @property
    def conditions(self) -> dict[str, tuple[str, ...]]:
        """Perturbations of each context."""
        return {context: truth.perturbations for context, truth in self.contexts.items()}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the held-out cells, their labels and the control label."""
        return content_hash(self.cells) + f"-{self.control}"

    @cached_property
    def train_fingerprint(self) -> str | None:
        """Hash of the training cells and labels."""
        return None if self.train is None else content_hash(self.train)

    def verify_unchanged(self) -> None:
        """Raise a ValueError if the data were changed in place since they were read, so that kept results are stale.

        Expression is shared with the AnnData it came from. A sample of cells is compared, which finds what is done to
        all of them, such as another normalisation.
        """
        changed = [name for name, sample in self._samples().items() if sample != self._as_read[name]]
        if changed:
            raise ValueError(
                f"The {' and the '.join(changed)} of this reference changed in place since it was made, so what was "
                "computed from them is stale: make a new one with EvaluationReference.from_adata(...), and give it a "
                "copy if the data will change."
            )

    def _samples(self) -> dict[str, str]:
        """Hash of some cells of each table."""
        tables = {"held-out cells": self.cells} | ({} if self.train is None else {"training data": self.train})
        places = {name: np.linspace(0, table.n_cells - 1, _SAMPLE).astype(np.intp) for name, table in tables.items()}
        return {name: content_hash(table.take(places[name])) for name, table in tables.items()}

    @cached_property
    def _embedding_fingerprint(self) -> str:
        digest = hashlib.sha256()
        for table, rows in sorted((self.embeddings or {}).items()):
            for name, vector in sorted(rows.items()):
                digest.update(f"{table}\x1f{name}".encode() + vector.tobytes())
        return digest.hexdigest()

    @cached_property
    def range_check(self) -> Check:
        """Whether the observed values can be log1p expression."""
        return check_range(self.cells, role="reference")

    @cached_property
    def profiles(self) -> dict[str, CellProfile]:
        """Totals and zeros of a sample of the observed perturbed cells of each context."""
        return profiles_of_contexts(self.cells, without=self.control)

    @cached_property
    def leakage_checks(self) -> list[Check]:
        """Whether held-out conditions or cells are among the training data."""
        return [] if self.train is None else check_leakage(self.train, self.cells, control=self.control)

    @cached_property
    def train_checks(self) -> list[Check]:
        """Whether the training data are log1p expression on the scale of the observed cells."""
        return [] if self.train is None else check_training_data(self.train, self.profiles, control=self.control)

    @cached_property
    def control_checks(self) -> list[Check]:
        """Whether the control cells are on the scale of the observed perturbed cells, and of those of the training."""
        checks = check_control_scale(self.cells, self.profiles, control=self.control, role="reference")
        if self.train is not None:
            trained = profiles_of_contexts(self.train, without=self.control)
            checks += check_control_scale(self.train, trained, control=self.control, role="training data")
        return checks

    @cached_property
    def train_count_checks(self) -> list[Check]:
        """Whether the training data are raw counts."""
        return [] if self.train is None else [check_counts(self.train, role="training data")]

    @cached_property
    def log1p(self) -> EvaluationReference:
        """The reference with log1p expression in the place of its raw counts."""
        train = None if self.train is None else log1p_expression(self.train, total=self.total)
        return replace(self, cells=log1p_expression(self.cells, total=self.total), train=train)

    @cached_property
    def total(self) -> float:
        """Median number of counts of the observed control cells, to which all cells are normalised."""
        return float(np.median(cell_totals(self.cells)[self.cells.perturbation == self.control]))

    def restricted_to(self, conditions: Mapping[str, tuple[str, ...]]) -> EvaluationReference:
        """Return the reference with these conditions and their controls only; itself if nothing is left out."""
        if dict(conditions) == self.conditions:
            return self
        key = tuple((c, p) for c, perturbations in conditions.items() for p in (*perturbations, self.control))
        if key not in self._subsets:
            rows = np.sort(np.concatenate([self.cells.rows[condition] for condition in key]))
            self._subsets[key] = replace(self, cells=self.cells.take(rows))
        return self._subsets[key]

    def chosen_baseline(self, baseline: Any) -> Any:
        """Return the name of the baseline that scores are scaled from, with ``"auto"`` resolved."""
        return chosen_baseline(baseline, self.train, self.embeddings, self.combination_separator)

    @property
    def applicable_baselines(self) -> list[str]:
        """Names of the baselines that every evaluation shows."""
        return applicable_baselines(
            self.conditions, self.train, self.embeddings, control=self.control,
            combination_separator=self.combination_separator,
        )  # fmt: skip

    @checked()
    def baseline_cells(
        self, name: str, *, seed: int = 0, n_cells: Literal["observed", "all"] = "observed"
    ) -> CellTable:
        """Predict every condition with a named baseline."""
        return baseline_cells(
            name, self.cells, self.train, control=self.control, embeddings=self.embeddings,
            combination_separator=self.combination_separator, seed=seed, n_cells=n_cells,
        )  # fmt: skip

    def choices_of_baseline(self, name: str, settings: ScoringSettings, *, seed: int = 0) -> Iterator[CellTable]:
        """Draw the cells of a baseline repeatedly; all of them at once if their number is not matched."""
        n_cells: Literal["observed", "all"] = "observed" if settings.match_cells else "all"
        for offset in settings.seeds_of_draws:
            yield self.baseline_cells(name, seed=seed + offset, n_cells=n_cells)

    def baseline_scores(self, name: str, settings: ScoringSettings, *, seed: int = 0) -> pd.DataFrame:
        """Scores of a named baseline on the real controls, since it has none of its own; one row for each condition."""
        return mean_over_draws(self.baseline_draws(name, settings, seed=seed))

    def n_unscored(self, names: Sequence[str], settings: ScoringSettings, *, seed: int) -> int:
        """Count the baselines that have not been scored in this way yet."""
        settings = replace(settings, control_cells="real")
        return sum((name, settings, seed) not in self._scored for name in names)

    def baseline_draws(self, name: str, settings: ScoringSettings, *, seed: int = 0) -> list[pd.DataFrame]:
        """Scores of a named baseline, one table for each choice of its cells."""
        settings = replace(settings, control_cells="real")
        key: dict[str, object] = {"table": "baseline", "name": name, "train": self.train_fingerprint}
        if find_baseline(name)[0].needs_embeddings:
            key["embeddings"] = self._embedding_fingerprint

        def compute() -> pd.DataFrame:
            cells = self.choices_of_baseline(name, settings, seed=seed)
            # no cells are kept while the next ones are made
            scores = {f"{i}": self.score(next(cells), settings) for i in range(len(settings.seeds_of_draws))}
            return pd.concat(scores, names=["draw"])

        table = self._table(key, settings, seed, compute, index=["draw", "context", "perturbation"])
        self._scored.add((name, settings, seed))
        return [draw.droplevel("draw") for _, draw in table.groupby(level="draw", sort=False)]

    def ceiling_scores(self, settings: ScoringSettings, *, seed: int = 0) -> pd.DataFrame:
        """Scores of one half of the observed cells against the other, at half depth; index context, perturbation."""
        split = settings.control_cells == "predicted"
        halves = (truth.halves(split_controls=split, seed=seed) for truth in self.contexts.values())
        return self._table({"table": "split halves"}, settings, seed, lambda: _scores(halves, settings))

    def score(self, predicted: CellTable, settings: ScoringSettings) -> pd.DataFrame:
        """Score cells of every condition, one row per (context, perturbation), without checks."""
        return _scores(((truth, predicted.of_context(c)) for c, truth in self.contexts.items()), settings)

    def _table(
        self,
        key: dict[str, object],
        settings: ScoringSettings,
        seed: int,
        compute: Callable[[], pd.DataFrame],
        index: Sequence[str] = ("context", "perturbation"),
    ) -> pd.DataFrame:
        """Fetch a table of scores from the cache, which holds polars frames."""
        import polars as pl

        def as_polars() -> pl.DataFrame:
            frame = compute().reset_index()
            return pl.DataFrame({name: frame[name].to_numpy() for name in frame})

        whole_key = {**key, "truth": self.fingerprint, "settings": asdict(settings), "backend": self.de_backend}
        whole_key |= {"seed": seed, "versions": installed_versions()}
        table = pd.DataFrame(self.cache.table(whole_key, as_polars).to_dict(as_series=False))
        return table.set_index(list(index))


def _scores(sides: Iterable[tuple[ContextTruth, CellTable]], settings: ScoringSettings) -> pd.DataFrame:
    parts = {truth.context: score_context(truth, cells, settings).per_perturbation for truth, cells in sides}
    return pd.concat(parts, names=["context", "perturbation"])


def _with_perturbations(cells: CellTable, control: str) -> CellTable:
    """Verify the controls of every context and leave out contexts that hold nothing else."""
    scored = [context for context in cells.contexts if cells.perturbations(context, control=control)]
    if not scored:
        raise ValueError(f"The reference holds control cells ({control!r}) only: there is nothing to score.")
    for context in scored:
        if (context, control) not in cells.rows:
            labels = list(cells.perturbations(context, control=control)[:5])
            raise ValueError(
                f"Context {context!r} of the reference has no control cells labelled {control!r}, as every context "
                f"needs; its labels start with {labels}."
            )
    return cells.take(np.isin(cells.context, scored))


@dataclass(frozen=True)
class ContextScores:
    """Scores of one context."""

    #: one row per perturbation, one column per score, and ``n_cells``, ``n_cells_predicted``
    per_perturbation: pd.DataFrame
    #: means, variances and zeros of the predicted cells
    statistics: GroupStatistics
    #: differential expression of the predicted cells, if it was tested
    de_predicted: pl.DataFrame | None = None


def score_context(truth: ContextTruth, predicted: CellTable, settings: ScoringSettings) -> ContextScores:
    """Score predicted cells of every perturbation, with controls unless the real ones are taken, against the truth."""
    preset, real_controls = settings.record, settings.control_cells == "real"
    controls_of = truth.statistics if real_controls else None
    labels = (truth.context, truth.perturbations)
    statistics = group_statistics(predicted, *labels, control=truth.control, controls_of=controls_of)
    both = (truth.statistics, statistics)
    sides = Comparison(*both, truth.cells.genes, truth.weights, truth=truth, predicted_cells=predicted)
    scores = computed_metrics(sides, lambda metric: not (metric.needs_de or metric.needs_cells), preset.metrics)
    de_predicted = None
    if preset.cell_eval_profile is not None:
        controls = truth.controls if real_controls else None
        de_predicted = truth.test(predicted, controls=controls)
        theirs = cell_eval_scores(sides, de_predicted, profile=preset.cell_eval_profile, controls=controls)
        tables = (truth.differential_expression, de_predicted)
        n_observed, n_predicted = (_count_significant(table, truth.perturbations) for table in tables)
        sides = replace(sides, n_de_observed=n_observed, n_de_predicted=n_predicted)
        ours = computed_metrics(sides, lambda metric: metric.needs_de and not metric.needs_cells, preset.metrics)
        rest = scores.drop(columns=scores.columns.intersection(theirs.columns))
        counts = pd.DataFrame({"n_de_observed": n_observed, "n_de_predicted": n_predicted}, index=scores.index)
        scores = pd.concat([theirs, rest, counts, ours], axis=1)
    if preset.scores_cells:
        of_cells = computed_metrics(
            sides, lambda info: info.needs_cells and (preset.needs_de or not info.needs_de), preset.metrics
        )
        scores = pd.concat([scores, of_cells], axis=1)
    if preset.metrics is not None:
        if absent := [name for name in preset.metrics if name not in scores]:
            raise ValueError(
                f"preset {settings.preset!r} names metrics that are not in profile {preset.cell_eval_profile!r} of "
                f"cell-eval: {', '.join(absent)}."
            )
        counted = scores.columns.intersection(["n_de_observed", "n_de_predicted"], sort=False)
        scores = scores[[*preset.metrics, *counted]]
    scores.insert(0, "n_cells", truth.statistics.n_cells)
    scores.insert(1, "n_cells_predicted", statistics.n_cells)
    scores.index.name = "perturbation"
    return ContextScores(scores, statistics, de_predicted)


def _count_significant(table: pl.DataFrame, perturbations: tuple[str, ...]) -> NDArray[np.intp]:
    """Differentially expressed genes of each perturbation, ``[P]``."""
    import polars as pl

    counts = dict(table.filter(pl.col("fdr") < FDR).group_by("target").len().iter_rows())
    return np.array([counts.get(p, 0) for p in perturbations], dtype=np.intp)
