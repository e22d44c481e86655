"""One door for whatever our commands leave: logs, runs, demos, checkpoints, models, scores, cells, stores, tables."""

from __future__ import annotations

import json
import shlex
import warnings
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np

from scvi_tahoe._arguments import checked
from scvi_tahoe.files import read_csv, verify_hdf5, verify_text
from scvi_tahoe.study._finding import findings_text, found
from scvi_tahoe.study._log_diagnosis import diagnose
from scvi_tahoe.study._log_figure import logs_figure
from scvi_tahoe.study._run_files import BEST, LAST, METRICS, PROVENANCE, SCORES, read_checkpoint
from scvi_tahoe.study._screen_look import REPEATED_NAMES, look_at_screen
from scvi_tahoe.study._training_log import read_training_log, read_training_logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matplotlib.figure import Figure

_LOGS = ("metrics.csv", "*_metrics.csv", "version_*/metrics.csv")
#: file of a model that TahoeST.save wrote
SAVED_MODEL = "model.pt"
_VERDICT = "verdict.txt"
_MODEL_FILES = ("config.json", "config.yaml", "*.safetensors", "var_dims.pkl")


@dataclass(frozen=True, eq=False)
class Inspection:
    """What was found at a path: as ``text`` for people, as plain values (``content``), and the figure of its logs."""

    text: str
    content: dict[str, Any]
    figure: Figure | None = None

    def to_json(self) -> str:
        """Return the content as JSON."""
        return json.dumps(self.content, indent=1, default=float)


@checked()
def inspect_path(path: str | Path, *, config: str | Path | None = None, checkpoint: str | None = None) -> Inspection:
    """Say what a log, a run, a checkpoint, a model, a result or a file of cells holds, and what is wrong with it.

    Parameters
    ----------
    path
        ``metrics.csv`` of ours or of arc-state, a folder with one or several logs, the folder of a run, a demo or a
        study, a checkpoint file, the folder of a model that was saved, exported or is in arc-state's format, the folder
        of an evaluation, an h5ad file, a store, or a table of embeddings.
    config
        Configuration of the run whose log it is, if it is not next to the log.
    checkpoint
        Which checkpoint of a model's folder in arc-state's format.

    Raises
    ------
    FileNotFoundError
        If there is nothing to inspect.
    ValueError
        If it is none of these things.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if path.suffix in (".ckpt", ".pth") or (path.suffix == ".pt" and path.name != SAVED_MODEL):
        return _checkpoint(path)
    if (reader := _reader(path)) is not None:
        return reader(path)
    parts = [_verdict(path)] if (path / SCORES / _VERDICT).is_file() else []
    parts += [_logs(path, config)] if path.is_file() or _has(path, _LOGS) else []
    # a model in arc-state's format or an export; the folder of a run of ours keeps its model inside
    is_model = _has(path, _MODEL_FILES) and not (path / PROVENANCE).exists()
    if path.is_dir() and (checkpoint is not None or not parts or is_model):
        parts += _model(path, checkpoint, needed=not parts)
    parts += [_checkpoint(path / name) for name in (BEST, LAST) if (path / name).is_file()]
    return Inspection(
        text="\n\n".join(part.text for part in parts),
        content={key: value for part in parts for key, value in part.content.items()},
        figure=next((part.figure for part in parts if part.figure is not None), None),
    )


def _reader(path: Path) -> Callable[[Path], Inspection] | None:
    """Return what describes files that are neither logs, checkpoints nor weights in a format; None if nothing does."""
    if path.is_file():
        kinds = {".h5ad": _cells, **dict.fromkeys((".parquet", ".npz", ".tsv"), _table), ".pt": _saved_model}
        return kinds.get(path.suffix)
    if (path / "zarr.json").is_file():
        from scvi_tahoe.data import is_store

        if is_store(path):
            return _store
    marks = {"result.json": _evaluation, SAVED_MODEL: _saved_model, "scores.csv": _scores}
    if (path / PROVENANCE).exists():  # the folder of a run also has a result.json
        return None
    return next((reader for mark, reader in marks.items() if (path / mark).is_file()), None)


def _cells(path: Path) -> Inspection:
    verify_hdf5(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=REPEATED_NAMES)
        cells = ad.read_h5ad(path, backed="r")
    try:
        record = cells.uns.get("scvi_tahoe_prediction")
        columns = {str(c): int(cells.obs[c].nunique()) for c in cells.obs}
        content = {
            "n_cells": cells.n_obs,
            "n_genes": cells.n_vars,
            "obs": columns,
            "layers": [*filter(None, cells.layers)],
        }
    finally:
        cells.file.close()
    lines = [
        f"{path}: {content['n_cells']:,} cells of {content['n_genes']:,} genes",
        "obs     " + ", ".join(f"{name} ({n:,})" for name, n in columns.items()) + " values",
        *([f"layers  {', '.join(content['layers'])}"] if content["layers"] else []),
    ]
    if record is not None:
        known = {str(k): str(v) for k, v in record.items() if isinstance(v, str | int | float | bool | np.generic)}
        lines += ["A prediction of scvi-tahoe:", *(f"  {name:<16} {value}" for name, value in known.items())]
        content["prediction"] = known
    else:
        lines += _as_screen(path)
    return Inspection("\n".join(lines), content)


def _as_screen(path: Path) -> list[str]:
    """Say how to train on a file of cells, and what has to be done first, as far as its labels tell."""
    try:
        look = look_at_screen(path)
    except (ValueError, KeyError) as error:
        return [f"Train on it: scvi-tahoe train {path} --perturbation-key ... --control ...", f"note: {error.args[0]}"]
    options = {"perturbation-key": look.perturbation_key, "control": look.control, "context-key": look.context_key,
               "dose-key": look.dose_key, "layer": look.layer, "combination-separator": look.separator}  # fmt: skip
    given = " ".join(f"--{name} {shlex.quote(value)}" for name, value in options.items() if value is not None)
    lines = [f"note: {remark}" for remark in look.remarks]
    if look.problems:
        lines += [f"problem: {problem}" for problem in look.problems]
        lines.append(f"Write a prepared file in Python:\n\n{indent(look.remedy(), '    ')}\n")
    prepared = look.prepared if look.problems else path
    return [*lines, f"Train on it: scvi-tahoe train {shlex.quote(str(prepared))} {given}"]


def _store(path: Path) -> Inspection:
    from scvi_tahoe.data import read_store

    cells = read_store(path)
    text = (
        f"{path}: a store of {cells.n_obs:,} cells of {cells.n_vars:,} genes; obs has {', '.join(map(str, cells.obs))}"
    )
    return Inspection(text, {"n_cells": cells.n_obs, "n_genes": cells.n_vars, "obs": list(map(str, cells.obs))})


def _table(path: Path) -> Inspection:
    from scvi_tahoe.tables import describe_table, read_table

    table = read_table(path)
    return Inspection(f"{path}: {describe_table(table)}", {"n_names": len(table), "n_numbers": table.shape[1]})


def _evaluation(path: Path) -> Inspection:
    from scvi_tahoe.evaluate import EvaluationResult

    result = EvaluationResult.load(path)
    content = {"summary": json.loads(result.summary.to_json(orient="index")), "verdict": str(result.verdict)}
    return Inspection(f"{path}\n{result!r}", content)


def _saved_model(path: Path) -> Inspection:
    from scvi_tahoe.model import TahoeST

    folder = path if path.is_dir() else path.parent
    registry = TahoeST.load_registry(str(folder))
    known = registry.get("setup_args", {})
    lines = [f"{folder}: a model of {registry.get('model_name')} (scvi-tools {registry.get('scvi_version')})"]
    lines += [f"  {name:<28} {value}" for name, value in known.items() if value is not None]
    lines.append(f"Read it with its data: TahoeST.load({str(folder)!r}, adata)")
    return Inspection("\n".join(lines), {"setup_args": {k: v for k, v in known.items() if v is not None}})


def _text_of(path: Path) -> str:
    verify_text(path)
    return path.read_text("utf-8").rstrip()


def _scores(path: Path) -> Inspection:
    """Say what a demo or a study left: its scores, and what to open."""
    table = read_csv(path / "scores.csv", index_col=0)
    lines = [f"{path}: {', '.join(sorted(p.name for p in path.iterdir() if not p.name.startswith('.')))}"]
    lines.append(table.to_string(float_format="{:.3f}".format, na_rep=""))
    if (path / "evaluation" / _VERDICT).is_file():
        lines.append(_text_of(path / "evaluation" / _VERDICT))
    if (path / "report.html").is_file():
        lines.append(f"Open {path / 'report.html'}")
    return Inspection("\n\n".join(lines), {"scores": json.loads(table.to_json(orient="index"))})


def _verdict(path: Path) -> Inspection:
    """Say how good the prediction of a run is, and what to open."""
    text = _text_of(path / SCORES / _VERDICT)
    report = path / "report.html"
    opened = f"\nOpen {report}" if report.is_file() else ""
    return Inspection(f"{path}\n{text}{opened}", {"verdict": text})


def _has(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)


def _logs(path: Path, config: str | Path | None) -> Inspection:
    logs = read_training_logs(path, config=config)
    # and those of the runs that these started from, where they are still there
    folders = [Path(str(log.setting("start.source"))) for log in logs if log.setting("start.source")]
    sources = [read_training_log(folder) for folder in folders if (folder / METRICS).is_file()]
    diagnoses = diagnose([*sources, *logs])[-len(logs) :]
    text, content = "\n\n".join(map(str, diagnoses)), {"logs": [one.to_dict() for one in diagnoses]}
    return Inspection(text, content, logs_figure(logs))


def _model(path: Path, checkpoint: str | None, *, needed: bool) -> list[Inspection]:
    from scvi_tahoe.pretrained import inspect_folder

    try:
        text = inspect_folder(path, checkpoint)
    except (ValueError, FileNotFoundError):
        # a folder of downloaded logs holds configurations without weights
        if needed:
            raise
        return []
    return [Inspection(text, {"model": text.splitlines()})]


def _checkpoint(path: Path) -> Inspection:
    """Say what a checkpoint of ours or of arc-state holds in addition to weights, without running code of it."""
    content = read_checkpoint(path)
    groups = [g for state in content.get("optimizer_states") or [] for g in state.get("param_groups", [])]
    callbacks = [c for c in (content.get("callbacks") or {}).values() if isinstance(c, dict)]
    best = next((c for c in callbacks if "best_step" in c), {})
    arc_best = next((c for c in callbacks if "best_model_score" in c), {})
    score = best.get("best_value", arc_best.get("best_model_score"))
    tensors, (step, epoch) = content["state_dict"], map(content.get, ("global_step", "epoch"))
    facts = {
        "step": None if step is None else int(step),
        "epoch": None if epoch is None else int(epoch),
        "n_tensors": len(tensors),
        "n_parameters": int(sum(t.numel() for t in tensors.values() if hasattr(t, "numel"))),
        "has_optimizer": bool(groups),
        "rates": [float(g["lr"]) for g in groups if "lr" in g],
        "weight_decay": [float(g["weight_decay"]) for g in groups if "weight_decay" in g],
        "has_schedule": bool(content.get("lr_schedulers")),
        "best_value": None if score is None else float(score),
        "best_step": best.get("best_step"),
        "ours": "plan_config" in content,
    }
    findings = [found(rule, **values) for rule, values in _checkpoint_findings(facts)]
    content = {**facts, "findings": [finding.to_dict() for finding in findings]}
    return Inspection(f"{path}\n{findings_text(findings)}", {path.name: content})


def _checkpoint_findings(facts: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Say what to know before a checkpoint is used."""
    yield "weights", facts
    if facts["has_optimizer"]:
        rates = ", ".join(f"{rate:.3g}" for rate in dict.fromkeys(facts["rates"]))
        # ours is resumed only where that is asked for
        yield "carries_optimizer", {"rates": rates, "level": "note" if facts["ours"] else "warning"}
        if not facts["has_schedule"]:
            yield "no_schedule", {}
        if facts["weight_decay"] and not any(facts["weight_decay"]):
            yield "no_weight_decay", {}
    if facts["best_step"] is not None and facts["step"] is not None and facts["best_step"] < facts["step"]:
        yield "not_the_best", facts
