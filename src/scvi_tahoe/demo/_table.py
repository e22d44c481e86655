"""Scores as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["score_table"]


def score_table(scores: pd.DataFrame) -> str:
    """Return the scores as aligned text, one predictor a line.

    Parameters
    ----------
    scores
        :attr:`DemoResult.scores`.
    """
    text = scores.map(lambda value: "" if value != value else f"{value:.3f}")
    if "score" in scores:
        text["score"] = scores["score"].map(lambda value: "" if value != value else f"{value:.1f}")
    return text.rename_axis(None).to_string()
