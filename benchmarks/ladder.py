"""Ladders of the case study, with one seed or several, and whether the scores come in the order of the lesson.

    python benchmarks/ladder.py                                             # case_study and recommended: Papalexi
    python benchmarks/ladder.py new_context --seeds 3                       # simulated, with intervals over seeds
    python benchmarks/ladder.py full_size --max-steps 200 --preset none     # on a GPU, beside the files that it names

Everything else that a study leaves is in its folder, and it is taken up where it was if the folder holds it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from scipy import stats

from scvi_tahoe.study import StudyConfig, run_study

if TYPE_CHECKING:
    from scvi_tahoe.study import RoundConfig

SCORES = ["DES", "PDS", "MAE", "overall"]
TIMES = ["best_step", "steps", "seconds"]


def shortened(one: RoundConfig, max_steps: int | None) -> RoundConfig:
    """Return a round with its steps, and those between validations, cut to a number."""
    if max_steps is None:
        return one
    cut = {name: min(one.train.get(name, max_steps), max_steps) for name in ("max_steps", "validate_every")}
    return replace(one, train=one.train | cut)


def seeded(study: StudyConfig, seed: int) -> StudyConfig:
    """Return a study with a seed, which draws its simulated cells, too."""
    data = study.data
    if data.get("dataset") == "simulated":
        data = data | {"simulation": data.get("simulation", {}) | {"seed": seed}}
    return replace(study, seed=seed, data=data)


def over_seeds(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Return means over seeds with 90 % intervals of Student's t as text."""
    values = pd.concat(tables, keys=range(len(tables)), names=["seed"]).groupby(level="round", sort=False)
    return values.mean().map("{:.4g}".format) + (values.sem() * _quantile(tables)).map(" ± {:.2g}".format)


def between_rounds(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Return overall scores of rounds (rows) over those before them, within a seed, and in how many seeds they rise."""
    scores, half = pd.concat([table["overall"] for table in tables], axis=1).T, _quantile(tables)
    shown = pd.DataFrame("", index=scores.columns[1:], columns=scores.columns[:-1])
    for early, late in combinations(scores.columns, 2):
        rise = scores[late] - scores[early]
        shown.loc[late, early] = f"{rise.mean():+.1f} ± {rise.sem() * half:.1f} ({(rise > 0).sum()})"
    return shown


def _quantile(tables: list[pd.DataFrame]) -> float:
    return float(stats.t.ppf(0.95, len(tables) - 1))


def main() -> None:
    """Print a table for each seed, then one over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", default=["case_study", "recommended"])
    parser.add_argument("--folder", type=Path, default=Path("ladder"))
    parser.add_argument("--seed", type=int, help="the first; default: that of the study")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--max-steps", type=int, help="of each round, for a trial")
    parser.add_argument("--preset", help="what is scored, or none; default: as the study says")
    args = parser.parse_args()
    tables, preset = [], None if args.preset == "none" else args.preset
    for i in range(args.seeds):
        studies = [StudyConfig.from_yaml(name) for name in args.studies]
        seed = i + (studies[0].seed if args.seed is None else args.seed)
        studies = [
            replace(
                seeded(study, seed), rounds=[shortened(one, args.max_steps) for one in study.rounds],
                score=study.score | ({} if args.preset is None else {"preset": preset}),
            )
            for study in studies
        ]  # fmt: skip
        folder = args.folder if args.seeds == 1 else args.folder / f"seed-{seed}"
        result = run_study(*studies, folder=folder, progress=False, report=lambda line: print(line, flush=True))
        shown = result.table.reindex(columns=[*SCORES, *TIMES])
        print(f"\n{shown.to_string(float_format='{:.4f}'.format)}\n\n{result.lesson}\n{folder / 'report.html'}\n")
        tables.append(result.table.reindex(columns=SCORES).astype(float))
    if len(tables) > 1:
        print(f"Means over {len(tables)} seeds, with 90 % intervals:\n{over_seeds(tables).to_string()}")
        print(f"\nOverall scores over earlier rounds (and number of seeds):\n{between_rounds(tables).to_string()}")


if __name__ == "__main__":
    main()
