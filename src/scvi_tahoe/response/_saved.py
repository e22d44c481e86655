"""A response model as plain arrays and values, for saving, and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scvi_tahoe.data import LabelParser
from scvi_tahoe.evaluate import SeenChanges
from scvi_tahoe.response._context_scale import ContextScale
from scvi_tahoe.response._evidence_head import EvidenceHead, QuestionGain
from scvi_tahoe.response._fitted import Fitted
from scvi_tahoe.response._kernels import ConditionKernels, Conditions, TableKernel
from scvi_tahoe.response._members import MEMBERS, Members, Origin, Stack
from scvi_tahoe.response._own_gene import OwnGene, target_genes, without_targets
from scvi_tahoe.response._precision import Group
from scvi_tahoe.response._regression import Regression
from scvi_tahoe.response._responses import Responses

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: axes of the arrays: conditions n, genes G, components Q, groups g, kernels and nugget k
_AXES = {
    "changes": "nG", "noise": "nG", "basis": "QG", "size": "Q", "coefficients": "nQ", "weights": "gk",
    "group_noise": "gn", "excess": "G",
}  # fmt: skip


def plain_of_fitted(fitted: Fitted) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays, and values for JSON, from which :func:`fitted_from_plain` makes the model again."""
    regression, kernels = fitted.regression, fitted.kernels
    arrays = {
        "changes": fitted.responses.changes, "noise": fitted.responses.noise, "basis": regression.basis_QG,
        "size": regression.size_Q, "coefficients": regression.coefficients_nQ,
        "weights": np.stack([g.weights for g in regression.groups]),
        "group_noise": np.stack([g.noise for g in regression.groups]), "excess": fitted.excess_G,
    }  # fmt: skip
    if regression.inducing_mQ is not None:
        arrays["inducing"] = regression.inducing_mQ
    for k, table in enumerate(kernels.tables.values()):
        arrays |= {f"table{k}": table.matrix, f"center{k}": table.center_P, f"spread{k}": table.spread_P}
    if (head := fitted.head) is not None:
        arrays |= {"head_center": head.center_F, "head_spread": head.spread_F}
        arrays |= {f"head_layer{k}": w for k, w in enumerate(head.weights)}
    return arrays, {
        "parser": asdict(fitted.parser),
        "genes": fitted.responses.genes.tolist(),
        "inducing": None if regression.inducing is None else regression.inducing.tolist(),
        "groups": [[g.start, g.stop] for g in regression.groups],
        "sources": dict(fitted.responses.sources),
        "tables": [[name, list(table.names), table.scale] for name, table in kernels.tables.items()],
        "own": None if fitted.own is None else asdict(fitted.own),
        "stacks": [
            [origin.name, hidden, s.weights.tolist(), s.unshrunk.tolist(), dict(s.reliance)]
            for (origin, hidden), s in fitted.stacks.items()
        ],
        "inflation": [[origin.name, hidden, value] for (origin, hidden), value in fitted.inflation.items()],
        "local": [[origin.name, hidden, dict(value)] for (origin, hidden), value in fitted.local.items()],
        "unshrinking": [[origin.name, hidden, value] for (origin, hidden), value in fitted.unshrinking.items()],
        "spread": [[origin.name, hidden, value] for (origin, hidden), value in fitted.spread.items()],
        "sized": [[origin.name, hidden, value] for (origin, hidden), value in fitted.sized.items()],
        "shares": [[origin.name, hidden, value.tolist()] for (origin, hidden), value in fitted.shares.items()],
        "scores": fitted.scores,
        "silent": sorted(fitted.silent),
        "scale": 0.0 if fitted.scale is None else fitted.scale.power,
        "head": [] if head is None else [[o.name, hidden, asdict(gain)] for (o, hidden), gain in head.gains.items()],
    }


def fitted_from_plain(
    arrays: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    conditions: Sequence[tuple[str, str]],
    control_means: Mapping[str, np.ndarray],
    device: torch.device | str = "cpu",
) -> Fitted:
    """Make a response model of :func:`plain_of_fitted` again; ``conditions`` are contexts and perturbations."""
    parser = LabelParser(**settings["parser"])
    contexts, labels = (np.array(side, dtype=str) for side in zip(*conditions, strict=True))
    responses = Responses(
        labels, contexts, arrays["changes"], arrays["noise"], np.array(settings["genes"], dtype=str), control_means,
        dict(settings.get("sources", {})),
    )  # fmt: skip
    read = Conditions.of(labels, contexts, parser)
    tables = {
        name: TableKernel(tuple(names), arrays[f"table{k}"], arrays[f"center{k}"], arrays[f"spread{k}"], scale)
        for k, (name, names, scale) in enumerate(settings["tables"])
    }
    kernels = ConditionKernels.of(read, parser, tables, control_means, responses.sources)
    own = None if settings["own"] is None else OwnGene(**settings["own"])
    targets = target_genes(labels.tolist(), responses.genes.tolist(), parser)
    masked = responses.changes if own is None else without_targets(responses.changes, contexts, targets)
    scale, noise = None, responses.noise
    if power := settings.get("scale", 0.0):
        scale = ContextScale.of(power, contexts, control_means)
        factors = scale.factors(contexts, control_means)
        masked, noise = masked / factors, noise / np.square(factors)
    silent = frozenset(settings.get("silent", []))
    seen = SeenChanges(labels, contexts, masked, silent)
    groups = tuple(
        Group(start, stop, weights, noise)
        for (start, stop), weights, noise in zip(
            settings["groups"], arrays["weights"], arrays["group_noise"], strict=True
        )
    )
    inducing = settings.get("inducing")
    regression = Regression(
        arrays["basis"], arrays["size"], groups, arrays["coefficients"],
        None if inducing is None else np.array(inducing, dtype=np.int64), arrays.get("inducing"),
    )  # fmt: skip
    stacks = {
        (Origin[name], hidden): Stack(_of_members(weights), np.array(unshrunk), reliance)
        for name, hidden, weights, unshrunk, reliance in settings["stacks"]
    }
    inflation, local, unshrinking, spread, sized = (
        {(Origin[name], hidden): value for name, hidden, value in settings.get(key, [])}
        for key in ("inflation", "local", "unshrinking", "spread", "sized")
    )
    shares = {(Origin[name], hidden): np.array(value) for name, hidden, value in settings.get("shares", [])}
    return Fitted(
        responses=responses, parser=parser, conditions=read, kernels=kernels,
        members=Members(seen, noise, parser, kernels.tables), regression=regression, left_out={},
        stacks=stacks, own=own, inflation=inflation, local=local,
        excess_G=arrays["excess"], device=torch.device(device),
        scores=settings["scores"], unshrinking=unshrinking, spread=spread, sized=sized, shares=shares,
        silent=silent, scale=scale, head=_head(arrays, settings.get("head", [])),
    )  # fmt: skip


def _of_members(weights: Sequence[float]) -> np.ndarray:
    """One weight for each member; earlier versions had fewer members."""
    return np.pad(np.array(weights, dtype=float), (0, len(MEMBERS) - len(weights)))


def _head(arrays: Mapping[str, np.ndarray], gains: Sequence[Any]) -> EvidenceHead | None:
    if not gains:
        return None
    layers = sorted(name for name in arrays if name.startswith("head_layer"))
    return EvidenceHead(
        arrays["head_center"], arrays["head_spread"], tuple(arrays[name] for name in layers),
        {(Origin[name], hidden): QuestionGain(**gain) for name, hidden, gain in gains},
    )  # fmt: skip


def wrong_plain(
    arrays: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    conditions: Sequence[tuple[str, str]],
    control_means: Mapping[str, np.ndarray],
    n_genes: int,
) -> str:
    """Say what is wrong with arrays and settings of a file; an empty text if nothing is."""
    sizes = {"n": len(conditions), "G": n_genes}
    for name, axes in _AXES.items():
        if name not in arrays:
            return f"it lacks the array {name}"
        shape = arrays[name].shape
        if len(shape) != len(axes) or any(sizes.setdefault(a, n) != n for a, n in zip(axes, shape, strict=True)):
            return f"{name} has the shape {shape}"
    for name, values in arrays.items():
        if values.dtype.kind != "f" or not (np.isfinite(values).all() or name.startswith("spread")):
            return f"{name} has values that are not finite numbers"
    try:
        fitted = fitted_from_plain(arrays, settings, conditions, control_means)
        if sizes["k"] != len(fitted.kernels.names) + 1 or len(fitted.responses.genes) != n_genes:
            return "it has other kernels or genes"
        if wrong := _wrong_parts(fitted):
            return wrong
        stops = [0, *(group.stop for group in fitted.regression.groups)]
        if [group.start for group in fitted.regression.groups] != stops[:-1] or stops[-1] != sizes["Q"]:
            return "its groups do not cover the components"
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        return f"its settings cannot be read ({error})"
    return ""


def _wrong_parts(fitted: Fitted) -> str:
    """Say what is wrong with what not every fit has."""
    if _wrong_inducing(fitted.regression):
        return "its inducing conditions are not those that it knows something of"
    if fitted.head is not None and not fitted.head.is_consistent:
        return "the layers of its network do not fit each other"
    return ""


def _wrong_inducing(regression: Regression) -> bool:
    """Whether inducing conditions are not there, or what is known of them is not."""
    chosen, known = regression.inducing, regression.inducing_mQ
    if chosen is None or known is None:
        return not (chosen is None and known is None)
    n, n_components = regression.coefficients_nQ.shape
    return known.shape != (len(chosen), n_components) or not ((0 <= chosen) & (chosen < n)).all()
