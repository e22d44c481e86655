"""How a result looks in a terminal: warnings first, then the challenge's score with its terms, then the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from scvi_tahoe.evaluate._result import EvaluationResult

__all__ = ["finding_lines", "other_baseline", "result_text"]


def result_text(result: EvaluationResult) -> str:
    """Return the result as text.

    Parameters
    ----------
    result
        Result.
    """
    columns = ["value", "baseline", "ceiling", "scaled"]
    head = (
        f"EvaluationResult: preset {result.provenance['preset']!r}, {len(result.per_perturbation)} conditions, "
        f"baseline {result.provenance['baseline']!r}"
    )
    challenge = [] if result.vcc is None else [_challenge(result.vcc) + other_baseline(result)]
    return "\n".join([head, *finding_lines(result), *challenge, result.summary[columns].round(4).to_string()])


def finding_lines(result: EvaluationResult) -> list[str]:
    """One line for each warning and error of the checks, the gravest first.

    Parameters
    ----------
    result
        Result.
    """
    grave = result.checks[result.checks["status"].isin(["warning", "error"])]
    return [f"{row['status']}: {name}: {row['message']}" for name, row in grave.iterrows()]


def other_baseline(result: EvaluationResult) -> str:
    """What to say of an overall score of 2025 that does not start where the challenge's does; nothing of others.

    Parameters
    ----------
    result
        Result.
    """
    name = result.provenance["baseline"]
    own = result.vcc is None or result.vcc["year"] != 2025 or name == "train_mean"
    return "" if own else f" (from {name!r}, not from 'train_mean' as in the challenge)"


def _challenge(vcc: Mapping[str, Any]) -> str:
    """Overall score with its year; raw terms, baseline and scaled terms in one line."""
    terms = [
        f"{name} {vcc[name]:.4f} (baseline {vcc['baseline'][name]:.4f}, scaled {share:.4f})"
        for name, share in vcc["scaled"].items()
    ]
    return f"VCC {vcc['year']} overall {vcc['overall']:.2f}: {', '.join(terms)}"
