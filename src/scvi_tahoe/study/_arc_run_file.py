"""A run file made of a configuration of arc-state: what it still needs is decided or said in comments."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from scvi_tahoe import TahoeST
from scvi_tahoe.files import atomic_write_text
from scvi_tahoe.pretrained import DECISIONS, DecisionsNeededError
from scvi_tahoe.study._arc_table import read_arc_table
from scvi_tahoe.study._cell_files import few_cells
from scvi_tahoe.study._data import add_embeddings
from scvi_tahoe.study._model import model_on
from scvi_tahoe.study._schema import schema_line

if TYPE_CHECKING:
    from scvi_tahoe.study._arc_config import ArcConfig
    from scvi_tahoe.study._run_config import TahoeRun


def write_run_file(run: TahoeRun, config: ArcConfig, path: Path) -> TahoeRun:
    """Write a run that a configuration asks for, with its data, its split and the decisions that its weights need.

    Decisions are found with a few cells of the data and the weights where both are there; otherwise they are those that
    the published ST-Tahoe weights need. Comments say which.

    Raises
    ------
    ValueError
        If the file exists, or the table of the configuration is damaged.
    """
    if path.exists():
        raise ValueError(f"{path} exists; give the name of a new file.")
    remarks = [f"from {config.path}, by scvi-tahoe check"]
    run = _with_files(run, config, remarks)
    if missing := [name for name in run.train.loggers if find_spec(name) is None]:
        remarks.append(f"train.loggers leaves out {', '.join(missing)}, which is not installed here")
        run = replace(run, train=run.train.replaced(loggers=tuple(set(run.train.loggers) - set(missing))))
    reasons: dict[str, str] = {}
    if run.start.source is not None:
        found = _needed(run, remarks)
        reasons = _expected(run, config) if found is None else found
        if found is None and reasons:
            remarks.append("start.accept: what the published weights need; finetune --dry-run says what else")
        run = replace(run, start=run.start.replaced(accept=tuple(reasons)))
    atomic_write_text(path, _text(run, remarks, reasons))
    return run


def _with_files(run: TahoeRun, config: ArcConfig, remarks: list[str]) -> TahoeRun:
    """Fill in data files and split from the TOML table of the configuration."""
    named = config.text("data.kwargs.toml_config_path")
    try:
        table = read_arc_table(config.path.parent / Path(named or "").expanduser())
    except FileNotFoundError:
        where = "the configuration names no table" if named is None else f"{named} is not here"
        remarks.append(f"{where}: give your cells in data.path, and what to validate and predict in split")
        return run
    files = table.files[0] if len(table.files) == 1 else table.files
    return replace(run, data=run.data.replaced(path=files), split=table.split)


def _needed(run: TahoeRun, remarks: list[str]) -> dict[str, str] | None:
    """Return the decisions that the weights need on these data, and why; None if either is not here."""
    source = Path(str(run.start.source))
    if not source.exists() or not all(Path(name).exists() for name in (*run.data.files, *_tables(run))):
        return None
    try:
        cells = few_cells(run.data)
        add_embeddings(cells, run.data)
        TahoeST.setup_anndata(cells, **run.data.keys)
        model_on(replace(run, start=run.start.replaced(check_scale=False)), cells)
    except DecisionsNeededError as error:
        return error.needed
    except (ValueError, KeyError, FileNotFoundError) as error:
        remarks.append(f"a trial of the start says: {' '.join(str(error).split())[:300]}")
        return None
    return {}


def _tables(run: TahoeRun) -> list[str]:
    return list(run.data.embedding_files.values())


def _expected(run: TahoeRun, config: ArcConfig) -> dict[str, str]:
    """Return the decisions that the published ST-Tahoe weights need: one-hot drugs, 2,000 genes, no batches."""
    if not config.starts_from_tahoe:
        return {}
    network, embeds = run.model.network, run.model.representation == "embedding"
    wanted = {
        "new_input": True,
        "new_output": True,
        "other_control_encoder": network.get("control_encoder") == "linear",
        "new_perturbation_encoder": True,
        "new_batch_encoder": bool(run.model.batch_encoder),
        "new_gene_decoder": embeds and network.get("gene_decoder") is not None,
        "other_head": network.get("head") != "hidden_residual",
        "other_set_size": True,
    }
    return {name: DECISIONS[name] for name, is_needed in wanted.items() if is_needed}


def _text(run: TahoeRun, remarks: list[str], reasons: dict[str, str]) -> str:
    shown = {
        key: {k: v for k, v in part.items() if v not in (None, [], {})} if isinstance(part, dict) else part
        for key, part in run.to_dict().items()
        if part is not None
    }
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100)
    for name, reason in reasons.items():
        text = text.replace(f"  - {name}\n", f"  - {name}  # {reason}\n")
    return "\n".join([schema_line(), *(f"# {remark}" for remark in remarks), text])
