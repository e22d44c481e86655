"""The table of a study: one row a round, its scores, its best step, its time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi_tahoe.study._run_config import TahoeRun
from scvi_tahoe.study._run_folder import CONFIG

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from scvi_tahoe.study._finetune import RunResult
    from scvi_tahoe.study._study_config import StudyConfig

__all__ = ["SCORED", "score_table"]

#: Column -> metric in the summary of an evaluation, where no overall score names it.
SCORED = {"DES": "overlap_at_N", "PDS": "discrimination_score_l1", "MAE": "mae"}


def score_table(config: StudyConfig, runs: Mapping[str, RunResult]) -> pd.DataFrame:
    """Return one row a scored round.

    Parameters
    ----------
    config
        The study.
    runs
        What each round left, by name.

    Returns
    -------
    Columns ``DES`` (differential expression score), ``PDS`` (perturbation discrimination score), ``MAE`` (mean absolute
    error), ``overall`` with the ``year`` of the challenge it is defined by, ``best_step``, ``steps``, ``seconds``, and
    ``published_*`` where the study has numbers to compare with.
    """
    import pandas as pd

    rows: dict[str, dict[str, Any]] = {}
    for one in config.rounds:
        if one.role == "pretraining":
            continue
        result = runs[one.name]
        row: dict[str, Any] = dict.fromkeys([*SCORED, "overall", "year"])
        if result.scores is not None:
            summary = result.scores.summary["value"]
            row |= {name: summary[metric] for name, metric in SCORED.items() if metric in summary.index}
            if result.scores.vcc is not None:
                row |= {"overall": result.scores.vcc["overall"], "year": result.scores.vcc["year"]}
        row |= {
            "best_step": result.best_step,
            "steps": TahoeRun.from_yaml(result.folder / CONFIG).train.max_steps,
            "seconds": round(result.seconds["total"], 1),
        }
        row |= {f"published_{name}": value for name, value in one.published.items()}
        rows[one.name] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("round")
