"""Two runs compared number by number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from scvi_tahoe._arguments import checked
from scvi_tahoe.files import MALFORMED, UnsafeFileError, one_line, read_csv, read_json
from scvi_tahoe.study._run_files import BEST, METRICS, PROVENANCE, SCORES, is_run, read_checkpoint

#: Columns of a log that depend on the machine, not on the run.
_OF_THE_MACHINE = ("sets_per_second", "mfu", "peak_memory_gb")


@dataclass(frozen=True)
class RunComparison:
    """Two runs, number by number.

    ``differences`` has one sentence for each thing that is not the same, the first of its kind; ``reasons`` says what
    differs between the machines, which may explain it.
    """

    differences: tuple[str, ...]
    reasons: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether every number is the same."""
        return not self.differences

    def __str__(self) -> str:
        if self.same:
            return "Rebuilt: log, weights and scores are the same numbers."
        why = f" Between the runs, {'; '.join(self.reasons)}." if self.reasons else ""
        return f"Rebuilt, with other numbers: {'; '.join(self.differences)}.{why}"


@checked()
def compare_runs(first: str | Path, second: str | Path) -> RunComparison:
    """Compare the logs, the weights and the scores of two runs, exactly.

    Parameters
    ----------
    first, second
        Folders of finished runs; a FileNotFoundError names one that holds no trained run, a ValueError those that are
        damaged.
    """
    first, second = Path(first), Path(second)
    for folder in (first, second):
        if not is_run(folder):
            raise FileNotFoundError(f"{folder} holds no trained run.")
    try:
        found = [*_logs(first, second), *_weights(first, second), *_scores(first, second)]
        return RunComparison(tuple(found), tuple(_machines(first, second)) if found else ())
    except MALFORMED as error:
        raise UnsafeFileError(f"{first} and {second} cannot be compared, one is damaged: {one_line(error)}") from None


def _logs(first: Path, second: Path) -> list[str]:
    a, b = (read_csv(folder / METRICS, index_col="step") for folder in (first, second))
    for name in a.columns.union(b.columns, sort=False):
        if name in _OF_THE_MACHINE:
            continue
        if name not in a or name not in b or len(a) != len(b):
            return [f"{METRICS} has other columns or rows"]
        x, y = a[name].to_numpy(dtype=float), b[name].to_numpy(dtype=float)
        other = ~((x == y) | (np.isnan(x) & np.isnan(y)))
        if other.any():
            row = int(np.flatnonzero(other)[0])
            return [f"{name} at step {a.index[row]} was {x[row]:.8g} and is {y[row]:.8g}"]
    return []


def _weights(first: Path, second: Path) -> list[str]:
    a, b = (read_checkpoint(folder / BEST)["state_dict"] for folder in (first, second))
    if a.keys() != b.keys():
        return [f"{BEST} has other tensors"]
    return [f"{BEST} has other numbers in {name}" for name in a if not torch.equal(a[name], b[name])][:1]


def _scores(first: Path, second: Path) -> list[str]:
    if not (first / SCORES).is_dir() or not (second / SCORES).is_dir():
        return []
    a, b = (read_csv(folder / SCORES / "summary.csv", index_col=0)["value"] for folder in (first, second))
    if not a.index.equals(b.index):
        return ["other metrics were scored"]
    other = a.index[~((a == b) | (a.isna() & b.isna()))]
    return [f"{name} was {a[name]:.8g} and is {b[name]:.8g}" for name in other[:1]]


def _machines(first: Path, second: Path) -> list[str]:
    a, b = (read_json(folder / PROVENANCE) for folder in (first, second))
    return [
        f"{name} was {a[part].get(name)} and is {b[part].get(name)}"
        for part in ("versions", "machine")
        for name in dict.fromkeys([*a[part], *b[part]])
        if a[part].get(name) != b[part].get(name)
    ]
