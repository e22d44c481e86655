"""A training log, whoever wrote it: arc-state's ``metrics.csv`` and ours say the same things under other names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe.files import read_csv
from scvi_tahoe.study._files import read_mapping, value_at

#: What we call it -> names of the column, the first that exists is taken.
_COLUMNS = {
    "train": ("train_loss",),
    "validation": ("val_loss", "validation_loss"),
    "decoder_train": ("decoder_loss", "train_decoder"),
    "decoder_validation": ("val/decoder_loss", "validation_decoder"),
    "sets_per_second": ("cell_sets_per_sec", "sets_per_second"),
    "seconds_per_step": ("batch_time_avg",),
    "utilisation": ("mfu (%)",),
    "flops": ("flops_per_batch",),
    "epoch": ("epoch",),
}
_MOST_STEPS = 2**53
_LOSSES = ["train_loss", "val_loss", "validation_loss"]
_RATE = ("lr-", "lr/", "lr_", "learning_rate")


@dataclass(frozen=True, eq=False)
class TrainingLog:
    """The training log of a run.

    Attributes
    ----------
    series
        By our names (``train``, ``validation``, ``decoder_train``, ...): values by step, without gaps. Steps are
        counted as the program itself counts them: arc-state counts from 0, ours are steps done.
    rates
        Learning rate by step, one entry per parameter group.
    config
        Configuration next to the log; empty if there is none.
    """

    name: str
    path: Path
    origin: Literal["arc-state", "scvi-tahoe"]
    series: dict[str, pd.Series]
    rates: dict[str, pd.Series]
    config: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str) -> pd.Series:
        """Return values by step, empty if the log does not have them."""
        return self.series.get(name, pd.Series(dtype=float))

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the lowest validation loss."""
        found = self.get("validation")
        return None if found.empty else (int(found.index[int(found.argmin())]), float(found.min()))

    @property
    def best_step(self) -> int | None:
        """Step of the lowest validation loss."""
        return None if self.best is None else self.best[0]

    @property
    def n_steps(self) -> int:
        """Steps of the run."""
        last = max(int(series.index.max()) for series in self.series.values() if not series.empty)
        return last if self.origin == "scvi-tahoe" else last + 1

    def setting(self, path: str, default: Any = None) -> Any:
        """Return a value of the configuration by its dotted path."""
        return value_at(self.config, path, default)


@checked()
def read_training_log(path: str | Path, *, config: str | Path | None = None) -> TrainingLog:
    """Read the log of one run.

    Parameters
    ----------
    path
        ``metrics.csv``, or the folder of a run of ours or of arc-state.
    config
        Configuration of the run. If None, the one next to the log.

    Raises
    ------
    FileNotFoundError
        If there is no log.
    ValueError
        If the file is not a training log.
    """
    path = _log_in(Path(path))
    table = read_csv(path)
    numeric = table.apply(pd.to_numeric, errors="coerce")
    losses = numeric.columns.intersection(_LOSSES)
    if "step" not in numeric or losses.empty:
        known = ", ".join(map(repr, _LOSSES))
        raise ValueError(f"{path} is not a training log: a column 'step' and one of {known} are expected; it has "
                         f"{list(table.columns[:8])}.")  # fmt: skip
    numeric = numeric[numeric["step"].abs() < _MOST_STEPS]  # not missing, not infinite
    if numeric[losses].isna().all(axis=None):
        raise ValueError(f"{path} holds no number in {', '.join(losses)}; it is an empty log, or none.")
    numeric.index = numeric.pop("step").astype(int)
    found = {ours: _series(numeric, names) for ours, names in _COLUMNS.items()}
    rates = {str(c): _series(numeric, (c,)) for c in numeric.columns if str(c).startswith(_RATE)}
    beside = _config_of(path) if config is None else Path(config)
    content = {} if beside is None else read_mapping(beside)
    ours = "validation_loss" in numeric or "sets_per_second" in numeric
    if ours:
        # what the best is chosen by, which need not be the whole loss
        monitor = str((content.get("train") or {}).get("monitor"))
        if monitor in numeric:
            found["validation"] = _series(numeric, (monitor,))
        # means over the steps of a validation interval are logged at its last step, counted from 0
        found = {name: series.set_axis(series.index + 1) for name, series in found.items()}
    return TrainingLog(
        name=_name(path, content),
        path=path,
        origin="scvi-tahoe" if ours else "arc-state",
        series={name: series for name, series in found.items() if not series.empty},
        rates={name: series for name, series in rates.items() if not series.empty},
        config=content,
    )


@checked()
def read_training_logs(path: str | Path, *, config: str | Path | None = None) -> list[TrainingLog]:
    """Read one log as :func:`read_training_log` does, or all in a folder of downloaded logs, by their names.

    In a folder with several ``*_metrics.csv``, every log is read with the ``*_config.yaml`` of the same name.
    """
    several = sorted(Path(path).glob("*_metrics.csv"))
    return [read_training_log(file) for file in several] or [read_training_log(path, config=config)]


def _log_in(path: Path) -> Path:
    if path.is_file():
        return path
    for pattern in ("metrics.csv", "version_*/metrics.csv", "*/metrics.csv", "*_metrics.csv"):
        if path.is_dir() and (found := sorted(path.glob(pattern))):
            return found[-1]
    raise FileNotFoundError(f"{path} is neither a metrics.csv nor a folder with one.")


def _config_of(path: Path) -> Path | None:
    """Find the configuration of a log: under the same name, next to it, or above it."""
    stem = path.name.removesuffix("_metrics.csv").split("_version_")[0]
    places = (path.with_name(f"{stem}_config.yaml"), path.with_name("config.yaml"), path.parent.parent / "config.yaml")
    return next((place for place in places if place.is_file()), None)


def _name(path: Path, config: dict[str, Any]) -> str:
    if isinstance(config.get("name"), str):
        return config["name"]
    stem = path.name.removesuffix("metrics.csv").rstrip("_")
    folder = path.parent.parent if path.parent.name.startswith("version_") else path.parent
    return stem.split("_version_")[0] or folder.resolve().name


def _series(table: pd.DataFrame, names: tuple[str, ...]) -> pd.Series:
    column = next((table[name].dropna() for name in names if name in table), pd.Series(dtype=float))
    return column[~column.index.duplicated(keep="last")].sort_index()
