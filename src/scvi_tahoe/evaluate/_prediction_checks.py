"""Checks on the spread, the zeros, the sizes and the differences of predicted effects.

Shapes: **P** perturbations, **G** genes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scvi_tahoe.evaluate._checks import Check, check_if, check_interval, most_severe
from scvi_tahoe.evaluate._metric_effects import effect_size_ratio

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._context_truth import ContextTruth
    from scvi_tahoe.evaluate._group_statistics import GroupStatistics

#: limits without a warning, calibrated on replicate splits of the shipped screens (benchmarks/evaluate_calibration.py)
_ZEROS = (-0.2, 0.2)
_SPREAD = (0.5, 1.5)
_EFFECT = (0.5, 2.0)
_NSIG = (0.2, 5.0)
_MIN_CELLS = 30
_CONTROLS = 1.5
_PROFILE = 0.8
_ONE_SCALE = (0.7, 1.4)
#: most perturbations whose pairs are looked at one by one; among more, a pair makes no difference to their mean
_MOST_PAIRED = 256
#: largest difference without a warning: good predictions of the shipped screens stay below 0.06, one change for all
#: lies above 0.2 (benchmarks/collapse_alarm.py)
_COLLAPSE = 0.2
#: a condition whose cells spread less than this share of the observed ones holds copies of its mean ...
_ALIKE = 0.25
#: ... and so may this share of all conditions without a warning, if there are this many cells
_FEW_ALIKE = 0.1
_CELLS_OF_SPREAD = 5
#: fewest differentially expressed genes of a condition for an overlap of gene lists
FEWEST_DE = 2


def checks_of_contexts(
    given: Mapping[str, GroupStatistics],
    scores: pd.DataFrame,
    contexts: Mapping[str, ContextTruth],
    *,
    own_controls: bool,
    needs_de: bool,
) -> list[Check]:
    """Check effects and spread of each context, and keep the most severe outcome of each check."""
    found = {}
    for c, truth in contexts.items():
        found[c] = check_statistics(given[c], truth.statistics, truth.cells.genes, own_controls=own_controls)
        if needs_de:
            found[c] += check_de_counts(scores[scores.index.get_level_values("context") == c])
    return most_severe(found)


def check_statistics(
    predicted: GroupStatistics, observed: GroupStatistics, genes: NDArray[np.str_], *, own_controls: bool
) -> list[Check]:
    """Check one context; predicted controls are compared with the observed ones if it is scored on them.

    Every finding is a warning or a note, since the prediction may be that bad.
    """
    zeros = float((predicted.zero_fraction - observed.zero_fraction).mean())
    zeros_message = (
        f"the share of zeros differs by {zeros:+.2f}: predicted cells are {'denser' if zeros < 0 else 'sparser'} than "
        "observed ones (a decoder of means gives no zeros), which costs DES, a rank test on cells."
    )
    noise_P = observed.variance.sum(axis=1) / observed.n_cells
    effect = float(np.nanmedian(effect_size_ratio(predicted.delta, observed.delta)))
    if effect < _EFFECT[0]:  # observed deltas are longer by the noise of their cells
        own_P = np.square(observed.delta).sum(axis=1)
        share_P = np.sqrt(np.clip(1 - noise_P / np.maximum(own_P, 1e-300), 0.25, 1))
        effect = float(np.nanmedian(effect_size_ratio(predicted.delta, observed.delta) / share_P))
    effect_message = f"the median predicted delta is {effect:.2g} times as long as the observed one; " + (
        "inflating effects can raise PDS and DES while MAE gets worse, and nothing in the overall score shows it."
        if effect > 1
        else "effects are too weak even for what the noise of the observed cells hides."
    )
    fewest = np.minimum(predicted.n_cells, observed.n_cells)
    cells_message = (
        f"{(fewest < _MIN_CELLS).sum()} of {len(fewest)} perturbations have fewer than {_MIN_CELLS} predicted or "
        "observed cells; their scores are mostly noise."
    )
    alike = likeness(observed.delta, noise_P)
    named = float(np.isin(observed.perturbations, genes).mean())
    named_message = f"{named:.0%} of the perturbations carry the name of a gene; PDS leaves out these genes only."
    checks = [
        _copies(predicted, observed),
        _profile(predicted, observed),
        _one_scale(predicted, observed),
        check_interval("zeros", zeros, message=zeros_message, warn=_ZEROS),
        _spread(predicted, observed),
        check_interval("effect size", effect, message=effect_message, warn=_EFFECT),
        check_collapse(predicted.delta, alike.cosine, largest=alike.largest, noise=alike.noise),
        check_interval("number of cells", float(fewest.min()), message=cells_message, warn=(_MIN_CELLS, np.inf)),
        Check("target genes", "ok" if named == 1 else "note", named, "any", named_message),
    ]
    return [*checks, _controls(predicted, observed)] if own_controls else checks


def check_de_counts(scores: pd.DataFrame) -> list[Check]:
    """Count conditions without differentially expressed genes, and compare the number of them on both sides."""
    few = scores["n_de_observed"] < FEWEST_DE
    few_message = (
        f"{(scores['n_de_observed'] == 0).sum()} of {len(scores)} conditions have no observed differentially expressed "
        f"gene and {(scores['n_de_observed'] == 1).sum()} one: DES, an overlap of gene lists, is undefined there, and "
        "it is a third of the overall score. Read PDS, MAE and Pearson."
    )
    undefined = check_if(few.any(), "conditions without DE genes", int(few.sum()), "0", few_message, "note")
    ratios = scores.loc[~few, "n_de_predicted"] / scores.loc[~few, "n_de_observed"]
    ratio = float(ratios.median()) if len(ratios) else float("nan")
    times = f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}"
    message = f"the median perturbation has {times} times as many differentially expressed genes as observed: " + (
        "predicted cells spread too little, which makes every gene significant, so DES says little about the effects."
        if ratio > 1
        else "predicted effects are weaker than the observed ones, as they are where little is known, or cells spread "
        "too much. DES counts what is not found."
    )
    check = check_interval("number of DE genes", ratio, message=message, warn=_NSIG)
    # weak effects are no fault of the cells, and the score shows them
    return [undefined, replace(check, status="note") if check.status == "warning" and ratio < 1 else check]


def _copies(predicted: GroupStatistics, observed: GroupStatistics) -> Check:
    """Count perturbations with the observed mean of every gene: no prediction, but the answer."""
    expressed = observed.mean.max(axis=1, keepdims=True) > 0
    equal = (np.isclose(predicted.mean, observed.mean, rtol=1e-6, atol=0) & expressed).all(axis=1)
    message = (
        f"the predicted cells of {equal.sum()} of {len(equal)} perturbations have exactly the observed means: the "
        "observed cells themselves were passed as the prediction."
    )
    return check_if(equal.any(), "copies of the truth", int(equal.sum()), "0", message)


def _profile(predicted: GroupStatistics, observed: GroupStatistics) -> Check:
    """Correlation over genes of the mean expression of both sides: genes under each other's names have none."""
    means = [side.mean.mean(axis=0) for side in (predicted, observed)]
    flat = any(np.ptp(mean) == 0 for mean in means)
    correlation = float("nan") if flat else float(np.corrcoef(*means)[0, 1])
    message = (
        f"mean expression of the genes correlates by {correlation:.2f} with the observed one (replicates: above 0.98): "
        "values stand under the names of other genes or contexts. Check var_names and the labels of the prediction."
    )
    return check_interval("gene profile", correlation, message=message, warn=(_PROFILE, np.inf))


def _one_scale(predicted: GroupStatistics, observed: GroupStatistics) -> Check:
    """Count perturbations whose summed log1p expression is off, as in a file of mixed scales; medians miss them."""
    observed_sum = observed.mean.sum(axis=1)
    ratio = np.divide(predicted.mean.sum(axis=1), observed_sum, out=np.ones_like(observed_sum), where=observed_sum > 0)
    off = (ratio < _ONE_SCALE[0]) | (ratio > _ONE_SCALE[1])
    first = int(np.argmax(off))
    message = (
        f"{off.sum()} of {len(off)} perturbations have another sum of log1p expression than observed (first: "
        f"{observed.perturbations[first]!r}, {ratio[first]:.2g} times): are their cells on another scale?"
    )
    allowed = f"summed log1p within {_ONE_SCALE[0]:g} to {_ONE_SCALE[1]:g} times"
    return check_if(off.any(), "scale of single conditions", int(off.sum()), allowed, message)


def _spread(predicted: GroupStatistics, observed: GroupStatistics) -> Check:
    observed_sd = np.sqrt(observed.variance).sum(axis=1)
    ratios = np.sqrt(predicted.variance).sum(axis=1) / np.maximum(observed_sd, 1e-12)
    ratio = float(np.median(ratios))
    remark = "DES is a rank test on cells and rewards or punishes the spread, not only the means."
    message = f"cells of one predicted condition spread {ratio:.2g} times as much as observed ones; {remark}"
    check = check_interval("spread of cells", ratio, message=message, warn=_SPREAD)
    alike = (ratios < _ALIKE) & (predicted.n_cells >= _CELLS_OF_SPREAD)
    if check.status != "ok" or alike.mean() <= _FEW_ALIKE:
        return check
    # too few to move the median
    first = observed.perturbations[int(np.argmax(alike))]
    message = f"cells of {alike.sum()} of {len(alike)} perturbations (first: {first!r}) are nearly all alike; {remark}"
    return replace(check, status="warning", message=message)


def _controls(predicted: GroupStatistics, observed: GroupStatistics) -> Check:
    """Distance of the predicted from the observed control mean, in units of what sampling alone would give."""
    distance = np.abs(predicted.control_mean - observed.control_mean).mean()
    error = np.sqrt(observed.control_variance / observed.n_control + predicted.control_variance / predicted.n_control)
    expected = np.sqrt(2 / np.pi) * error.mean()  # mean absolute value of a normal variable
    ratio = float(distance / expected) if expected > 0 else float("nan")
    message = (
        f"predicted controls lie {ratio:.1f} times as far from the observed ones as sampling alone would put them, so "
        'every effect, taken against them, is off; score with control_cells="real".'
    )
    return check_interval("controls", ratio, message=message, warn=(0, _CONTROLS))


def mean_cosine(delta_PG: NDArray[np.floating]) -> float:
    """Mean cosine over pairs of the perturbations of one context, ``[P, G]``; NaN if fewer than two change at all."""
    length = np.linalg.norm(delta_PG, axis=1)
    unit = delta_PG[length > 0] / length[length > 0, None]
    n = len(unit)
    if n < 2:
        return float("nan")
    return float((np.square(unit.sum(axis=0)).sum() - n) / (n * (n - 1)))


class Likeness(NamedTuple):
    """How alike the observed deltas of different perturbations of one context are.

    Attributes
    ----------
    cosine
        Their mean cosine; NaN if fewer than two change at all.
    largest
        Cosine of the pair that is most alike.
    noise
        Squared length that the sampling of their own cells adds to a delta, which makes deltas look more different
        than they are.
    """

    cosine: float
    largest: float
    noise: float


def likeness(delta_PG: NDArray[np.floating], noise_P: NDArray[np.floating]) -> Likeness:
    """Return how alike observed deltas ``[P, G]`` are; ``noise_P`` are the sampling variances of their squared lengths.

    The sampling of the controls, which all deltas share, makes them look more alike, and is in the cosine.
    """
    cosine = largest = mean_cosine(delta_PG)
    if len(delta_PG) <= _MOST_PAIRED:
        length = np.linalg.norm(delta_PG, axis=1)
        unit = delta_PG[length > 0] / length[length > 0, None]
        pairs = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
        largest = float(pairs.max(initial=-1.0))
    return Likeness(cosine, largest, float(np.mean(noise_P)))


def check_collapse(
    predicted_PG: NDArray[np.floating],
    observed_cosine: float,
    *,
    largest: float | None = None,
    noise: float = 0.0,
    of: str = "observed",
) -> Check:
    """Warn if predicted deltas of one context have a larger mean cosine than observed ones, beyond sampling noise.

    Compared is like with like. Predicted means lack the sampling noise of observed cells, without which effects look
    more alike than any observed ones; it is added to their lengths. Two perturbations may be as alike as the most alike
    observed ones, more of them less so. So it warns where the observed effects differ beyond their noise and the
    predicted ones do not.

    ``observed_cosine`` is the :func:`mean_cosine` of observed deltas (if NaN, the check passes), ``largest`` the cosine
    of the pair that is most alike (if None, the mean), ``noise`` the squared length that the sampling of their own
    cells adds to an observed delta, and ``of`` their name in the message.
    """
    n = len(predicted_PG)
    # columns of their own lengthen deltas and leave their products
    noisy = np.hstack([predicted_PG, np.sqrt(noise) * np.eye(n)]) if noise else predicted_PG
    pair = 0.0 if largest is None else max(largest - observed_cosine, 0.0)
    expected = observed_cosine + pair / max(n - 1, 1)
    cosine = mean_cosine(noisy)
    message = (
        f"predicted deltas of different perturbations have a mean cosine of {cosine:.2f} ({of}: {expected:.2f}): the "
        "model predicts nearly the same change for all of them."
    )
    return check_interval("mode collapse", cosine - expected, message=message, warn=(-np.inf, _COLLAPSE))
