"""The terms of an objective: each registers itself under a name, and all that handles terms looks them up here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


class SetReference(NamedTuple):
    """What is known about each set in addition to its cells, for the terms that need it."""

    perturbation_SP: Tensor
    """Embedding of the perturbation."""
    control_SNG: Tensor
    """Control cells that the prediction starts from."""
    control_mean_SG: Tensor | None = None
    """Mean control cell of the context."""
    gene_weight_SG: Tensor | None = None
    """How strongly each gene responds to the perturbation, rows summing to 1."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """A named term of an objective."""

    #: Its key in ``ObjectiveConfig.terms``, or in ``embedding_terms``, and in logged metrics.
    name: str
    #: Takes predicted cells ``[S, N, G]``, observed cells ``[S, M, G]``, then what it ``needs``; returns one value a
    #: set, ``[S]``.
    function: Callable[..., Tensor]
    #: Keyword arguments of the function, and the options of :class:`~scvi_tahoe.nn.ObjectiveConfig` they come from.
    options: Mapping[str, str] = field(default_factory=dict)
    #: Fields of :class:`~scvi_tahoe.nn.SetReference` that the function takes, in its order.
    needs: tuple[str, ...] = ()


#: terms that compare predicted and observed cells, by name
TERMS: dict[str, Term] = {}
#: terms that compare the cell embedding read from the hidden cells with the observed one, by name
EMBEDDING_TERMS: dict[str, Term] = {}
#: functions of the terms that compare two sets of cells and need nothing else, by name
SET_LOSSES: dict[str, Callable[..., Tensor]] = {}


def register_term(
    name: str, *, options: Mapping[str, str] | None = None, needs: tuple[str, ...] = (), of_embedding: bool = False
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register the decorated function as a term of objectives, which :class:`Term` describes.

    Parameters
    ----------
    name, options, needs
        As in :class:`Term`.
    of_embedding
        Whether the term compares cell embeddings.

    Raises
    ------
    ValueError
        If the name is taken, or a need is not a field of :class:`SetReference`.

    Examples
    --------
    >>> @register_term("variance_mse")
    ... def variance_mse(x_SNG, y_SMG):
    ...     return (x_SNG.float().var(1) - y_SMG.float().var(1)).square().mean(-1)
    """
    if name in TERMS or name in EMBEDDING_TERMS:
        raise ValueError(f"a term {name!r} is registered already; choose another name.")
    if unknown := [need for need in needs if need not in SetReference._fields]:
        raise ValueError(f"the term {name!r} needs {unknown}; a set has {list(SetReference._fields)}.")

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        term = Term(name=name, function=function, options=dict(options or {}), needs=needs)
        (EMBEDDING_TERMS if of_embedding else TERMS)[name] = term
        if not (of_embedding or needs):
            SET_LOSSES[name] = function
        return function

    return register
