"""The ladder of the case study beside our recipe, on data and with a seed that all rungs share.

Prints one row a rung: (a) cell embedding in, with gene decoder; (b) expression, backbone frozen; (c) backbone trained;
(d) ours; and whether the scores come in that order. Everything else the study leaves is in its folder.

    python benchmarks/ladder.py --folder ladder
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from scvi_tahoe.study import StudyConfig, run_study

RUNGS = {
    "round-1": "(a) embedding, decoder at 0.5",
    "round-2": "(a) embedding, decoder at 1",
    "round-3b": "(b) expression, frozen",
    "round-4a": "(c) unfrozen, lower rate",
    "round-4b": "(c) unfrozen",
    "recommended": "(d) ours",
}
COLUMNS = ["DES", "PDS", "MAE", "overall", "best_step", "steps", "seconds"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="ladder", help="taken up where it was if it holds this ladder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    studies = [replace(StudyConfig.from_yaml(name), seed=args.seed) for name in ("case_study", "recommended")]
    result = run_study(*studies, folder=args.folder, progress=False, report=lambda line: print(line, flush=True))
    table = result.table.loc[list(RUNGS), COLUMNS].rename(index=RUNGS)
    print(f"\n{table.to_string(float_format='{:.4f}'.format)}\n\n{result.lesson}\n{result.folder / 'report.html'}")


if __name__ == "__main__":
    main()
