"""Presets: what an evaluation scores, and how the scores become one number, as in the Virtual Cell Challenge 2025."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scvi_tahoe._names import Registry
from scvi_tahoe.evaluate._metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What an evaluation scores."""

    #: profile of cell-eval whose metrics are computed, with differential expression. If ``None``, neither is done.
    cell_eval_profile: str | None = None
    #: whether metrics of single cells are computed
    scores_cells: bool = False
    #: names of the metrics that are computed and shown, in this order. If ``None``, all that what is tested and read
    #: allows.
    metrics: tuple[str, ...] | None = None
    #: whether both sides hold raw counts. They are checked as such, and scored after log1p.
    from_counts: bool = False
    #: makes the overall score, ``EvaluationResult.vcc``, of the scores of the prediction and of the baseline, one row
    #: for each (context, perturbation); returns ``None`` if they do not suffice, for instance without a baseline. Every
    #: preset gives the key ``overall``; a challenge adds its ``year``, its terms by name, and the same terms in
    #: ``baseline`` and, brought to one scale, in ``scaled``.
    aggregate: Callable[[pd.DataFrame, pd.DataFrame | None], dict[str, Any] | None] = lambda scores, baseline: None
    #: called with the finished :class:`~scvi_tahoe.evaluate.EvaluationResult`, the predicted cells and the reference as
    #: they were given; returns the result with further scores
    extend: Callable[..., Any] | None = None
    #: name of the baseline that a challenge prescribes, shown beside the others. If None, there is none.
    challenge_baseline: str | None = None

    @property
    def needs_de(self) -> bool:
        """Whether differential expression is tested."""
        return self.cell_eval_profile is not None


def overall_title(vcc: Mapping[str, Any]) -> str:
    """Return what the overall score of a preset is called: that of a challenge names its year."""
    return f"VCC {vcc['year']} overall" if "year" in vcc else "overall"


#: names that ``preset=...`` takes
PRESETS: Registry[Preset] = Registry("preset")

#: cell-eval's name of each term
TERMS = {"DES": "overlap_at_N", "PDS": "discrimination_score_l1", "MAE": "mae"}


@dataclass(frozen=True, kw_only=True)
class Vcc2025Terms:
    """The three terms, raw."""

    #: differential expression score, ``overlap_at_N``, best 1
    DES: float
    #: perturbation discrimination score, L1, best 1
    PDS: float
    #: mean absolute error of mean log1p profiles, best 0
    MAE: float


def vcc2025_overall(terms: Vcc2025Terms, baseline: Vcc2025Terms) -> dict[str, Any]:
    """Scale the three terms between baseline and perfection and average them.

    ``DES' = (DES - b) / (1 - b)``, ``PDS'`` likewise, ``MAE' = (b - MAE) / b``, each at least 0; the overall score is
    100 times their mean. It is comparable only between predictions for the same cells and the same baseline, and only
    within one release of cell-eval; being no better than the baseline and being far worse look the same.

    Returns
    -------
    ``year``, the raw terms, ``baseline``, ``scaled`` (each a dictionary of the three terms), and ``overall``.

    Notes
    -----
    Formula of cell-eval 0.8.2, ``score_agg_metrics`` with the ``vcc`` profile; a term that is NaN, or whose baseline
    leaves no room, counts 0 as there.
    """
    scaled = {
        "DES": _share(terms.DES - baseline.DES, 1 - baseline.DES),
        "PDS": _share(terms.PDS - baseline.PDS, 1 - baseline.PDS),
        "MAE": _share(baseline.MAE - terms.MAE, baseline.MAE),
    }
    overall = 100 * float(np.mean(list(scaled.values())))
    return {"year": 2025, **asdict(terms), "baseline": asdict(baseline), "scaled": scaled, "overall": overall}


def _share(gain: float, room: float) -> float:
    share = gain / room if room else np.nan
    return 0.0 if np.isnan(share) else max(float(share), 0.0)


def overall_of_means(terms: NDArray[np.floating], baseline: NDArray[np.floating]) -> NDArray[np.float64]:
    """Overall scores of many means of the three terms, ``[contexts, any number, 3]``, averaged over contexts."""
    best = np.array([1.0, 1.0, 0.0])
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (terms - baseline) / (best - baseline)
    share = np.where(np.isfinite(share), np.maximum(share, 0), 0)
    return np.asarray(100 * share.mean(axis=-1).mean(axis=0))


def overall_of_contexts(scores: pd.DataFrame, baseline: pd.DataFrame | None) -> dict[str, Any] | None:
    """Return the overall score of each context and their mean; None without a baseline or one of the terms."""
    if baseline is None or not set(TERMS.values()) <= set(scores.columns):
        return None
    columns = list(TERMS.values())
    terms, base = (side[columns].groupby(level="context", sort=False).mean() for side in (scores, baseline))
    by_context = {c: vcc2025_overall(_as_terms(terms.loc[c]), _as_terms(base.loc[c])) for c in terms.index}
    together = vcc2025_overall(_as_terms(terms.mean()), _as_terms(base.mean()))
    together["scaled"] = {t: float(np.mean([v["scaled"][t] for v in by_context.values()])) for t in TERMS}
    together["overall"] = float(np.mean([v["overall"] for v in by_context.values()]))
    together["by_context"] = {c: v["overall"] for c, v in by_context.items()}
    return together


def _as_terms(row: pd.Series) -> Vcc2025Terms:
    return Vcc2025Terms(**{term: float(row[column]) for term, column in TERMS.items()})


_OF_2025: dict[str, Any] = {"aggregate": overall_of_contexts, "challenge_baseline": "vcc2025_mean"}
PRESETS.register("vcc2025", Preset(cell_eval_profile="vcc", **_OF_2025))
PRESETS.register("quick", Preset())
PRESETS.register("minimal", Preset(cell_eval_profile="minimal", **_OF_2025))
PRESETS.register("full", Preset(cell_eval_profile="full", scores_cells=True, **_OF_2025))


@dataclass(frozen=True, kw_only=True)
class ScoringSettings:
    """How to score; everything here enters the cache key and the provenance."""

    #: name of a preset
    preset: str = "vcc2025"
    #: ``"real"`` puts the observed controls under the prediction; ``"predicted"`` takes its own
    control_cells: Literal["real", "predicted"] = "real"
    #: whether each condition is scored by as many cells as were observed, with the mean of all predicted ones
    match_cells: bool = True
    #: random choices of cells whose scores are averaged
    n_draws: int = 3

    def __post_init__(self) -> None:
        if self.n_draws < 1:
            raise ValueError(f"n_draws must be 1 or more, got {self.n_draws}.")
        if self.control_cells not in ("real", "predicted"):
            raise ValueError(f'control_cells must be "real" or "predicted", got {self.control_cells!r}.')
        if self.record.from_counts and self.control_cells == "predicted":
            raise ValueError('The challenge of 2026 takes observed controls on both sides: use control_cells="real".')
        record, needs = self.record, {}
        for name in record.metrics or ():
            info = METRICS.find(name)
            if info.needs_de and not record.needs_de:
                needs[name] = "cell_eval_profile"
            elif info.needs_cells and not record.scores_cells:
                needs[name] = "scores_cells"
        for name, option in needs.items():
            raise ValueError(f"preset {self.preset!r} names the metric {name!r}, which needs its option {option}.")

    @property
    def record(self) -> Preset:
        """What the preset scores."""
        return PRESETS.find(self.preset)

    @property
    def seeds_of_draws(self) -> tuple[int, ...]:
        """Offsets of the seed, one for each choice of cells; scores of means alone do not depend on it."""
        record = self.record
        several = self.match_cells and (record.needs_de or record.scores_cells)
        return tuple(1_000_003 * i for i in range(self.n_draws if several else 1))
