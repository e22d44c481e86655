"""What combinations do beyond the sum of their parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from scipy.stats import false_discovery_control, norm

from scvi_tahoe._arguments import checked
from scvi_tahoe._constants import EFFECTS_KEYS
from scvi_tahoe.effects._effects_adata import key_of, read_effects

_DRAWS = 200
_LEVEL = 0.05

if TYPE_CHECKING:
    from numpy.typing import NDArray


@checked()
def interactions(
    effects: AnnData,
    *,
    perturbation_key: str | None = None,
    context_key: str | None = None,
    separator: str | None = None,
    seed: int = 0,
) -> AnnData:
    r"""Compare every pair with its two parts in the same context.

    Changes are of log expression, where independent effects add up (Bliss independence [1]_ of fold changes). With the
    changes :math:`a` and :math:`b` of the parts and :math:`ab` of the pair, the deviation is :math:`ab - a - b`. The
    scores are those of Norman et al. [2]_ by least squares, where they have a robust regression:
    :math:`ab \approx c_1 a + c_2 b`; magnitude :math:`\sqrt{c_1^2 + c_2^2}` (1.41 where parts add up, more for synergy,
    less for buffering); dominance :math:`|\log_{10} |c_1 / c_2||`.

    Parameters
    ----------
    effects
        Changes of pairs and of their parts; see :mod:`scvi_tahoe.effects`.
    perturbation_key, context_key, separator
        Column of ``obs`` with the perturbations, column with the contexts, and text between the parts of a combination.
        If None, those that ``effects`` was made with.
    seed
        Random seed of the standard deviations of scores, which redraw changes within their own ones.

    Returns
    -------
    AnnData ``[pairs, genes]``: ``X``, the deviation; ``layers["expected"]``, the sum of the parts; ``layers["sd"]``
    where it is known, as if errors of pair and parts were independent, which overstates it. ``obs``: labels, ``first``,
    ``second``, ``magnitude`` and ``dominance`` with ``magnitude_sd`` and ``dominance_sd``, ``fit`` (share of the pair's
    squared change that the fit explains), ``similarity`` (cosine of the parts) and ``n_genes`` that deviate at a false
    discovery rate of 5 %. Pairs of largest deviation come first.

    Raises
    ------
    ValueError
        If there is no pair whose parts are there in the same context.

    References
    ----------
    .. [1] Bliss 1939, Annals of Applied Biology 26:585.
    .. [2] Norman et al. 2019, Science 365:786.
    """
    changes, sd = read_effects(effects)
    perturbation = effects.obs[key_of(effects, "perturbation_key", perturbation_key)].astype(str).to_numpy()
    context_key = key_of(effects, "context_key", context_key, needed=False)
    context = (
        np.zeros(len(perturbation), int) if context_key is None else effects.obs[context_key].astype(str).to_numpy()
    )
    separator = separator or effects.uns.get(EFFECTS_KEYS, {}).get("combination_separator")
    if not separator:
        raise ValueError(
            "these effects were made without a combination_separator; if they have combinations, give the text between "
            "the parts as separator, such as '+'."
        )
    row = {label: i for i, label in enumerate(zip(perturbation, context, strict=True))}
    found = []
    for (label, where), i in row.items():
        parts = [part.strip() for part in label.split(separator)]
        if len(parts) == 2 and all((part, where) in row for part in parts):
            found.append((i, row[parts[0], where], row[parts[1], where]))
    if not found:
        raise ValueError(
            f"no pair (two names with {separator!r} between them) has both parts among the {len(row)} conditions in "
            f"the same context. The first labels are {perturbation[:3].tolist()}."
        )
    pair, first, second = np.array(found).T
    expected = changes[first] + changes[second]
    deviation = changes[pair] - expected
    estimate, fit = _coefficients(changes[pair], changes[first], changes[second])
    scores = {"magnitude": _magnitude(estimate), "dominance": _dominance(estimate)}
    layers = {"expected": expected.astype(np.float32)}
    n_genes = np.full(len(pair), np.nan)
    spread = dict.fromkeys(scores, np.full(len(pair), np.nan))
    if sd is not None:
        of_deviation = np.sqrt(sum(np.square(sd[rows]) for rows in (pair, first, second)))
        layers["sd"] = of_deviation.astype(np.float32)
        p_values = 2 * norm.sf(np.abs(deviation) / np.maximum(of_deviation, 1e-12))
        n_genes = (false_discovery_control(p_values, axis=1) < _LEVEL).sum(axis=1)
        rng = np.random.default_rng(seed)
        drawn = []
        for _ in range(_DRAWS):
            redrawn = [
                changes[rows] + rng.standard_normal(deviation.shape) * sd[rows] for rows in (pair, first, second)
            ]
            drawn.append(_coefficients(redrawn[0], redrawn[1], redrawn[2])[0])
        spread = {
            "magnitude": np.std([_magnitude(c) for c in drawn], axis=0),
            "dominance": np.std([_dominance(c) for c in drawn], axis=0),
        }
    lengths = np.linalg.norm(changes[first], axis=1) * np.linalg.norm(changes[second], axis=1)
    obs = effects.obs.iloc[pair].assign(
        first=perturbation[first], second=perturbation[second], **scores,
        **{f"{name}_sd": values for name, values in spread.items()}, fit=fit,
        similarity=(changes[first] * changes[second]).sum(axis=1) / np.maximum(lengths, 1e-12), n_genes=n_genes,
    )  # fmt: skip
    order = np.argsort(-np.linalg.norm(deviation, axis=1), kind="stable")
    result = AnnData(deviation.astype(np.float32), obs=obs, var=effects.var.copy(), layers=layers)
    return result[order].copy()


def _coefficients(
    pair: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64]
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the parts, ``[pairs, 2]``, and the share of the pair's squared change that they explain."""
    parts = np.stack([first, second], axis=2)
    # a little on the diagonal: parts that do the same, or nothing, share what there is
    gram = np.einsum("pgi,pgj->pij", parts, parts)
    gram += 1e-9 * (np.trace(gram, axis1=1, axis2=2) + 1e-12)[:, None, None] * np.eye(2)
    coefficients = np.linalg.solve(gram, np.einsum("pgi,pg->pi", parts, pair)[:, :, None])[:, :, 0]
    left = np.square(pair - np.einsum("pgi,pi->pg", parts, coefficients))
    return coefficients, 1 - left.sum(axis=1) / np.maximum(np.square(pair).sum(axis=1), 1e-300)


def _magnitude(coefficients: np.ndarray) -> np.ndarray:
    return np.linalg.norm(coefficients, axis=1)


def _dominance(coefficients: np.ndarray) -> np.ndarray:
    absolute = np.maximum(np.abs(coefficients), 1e-6)
    return np.abs(np.log10(absolute[:, 0] / absolute[:, 1]))
