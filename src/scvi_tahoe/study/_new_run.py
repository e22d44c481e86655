"""A run file for a new screen: labels found by a look at the cells, other choices in comments."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from scvi_tahoe._arguments import checked
from scvi_tahoe.files import atomic_write_text
from scvi_tahoe.study._run_config import TahoeRun
from scvi_tahoe.study._schema import schema_line

if TYPE_CHECKING:
    from scvi_tahoe.study._screen_look import ScreenLook


@checked()
def write_new_run(look: ScreenLook, path: str | Path) -> TahoeRun:
    """Write a run file for a screen, with what may be changed in comments.

    Raises
    ------
    FileExistsError
        If there is a file already.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists; give the name of a new file.")
    text = _text(look, os.path.relpath(look.path, path.parent or "."), path.name)
    run = TahoeRun.from_dict(yaml.safe_load(text))
    atomic_write_text(path, text)
    return run


def _text(look: ScreenLook, data: str, file: str) -> str:
    def quoted(value: object) -> str:
        text = yaml.safe_dump(value, width=10_000, allow_unicode=True).removesuffix("\n").removesuffix("\n...")
        return json.dumps(value) if "\n" in text else text

    def one_line(text: str) -> str:  # of a comment, which ends with its line
        return "".join(c if c.isprintable() else " " for c in text)

    contexts = one_line(", ".join(list(look.contexts)[:5]) + (", ..." if len(look.contexts) > 5 else ""))
    file = one_line(shlex.quote(file))
    if look.context_key:
        context = f"  context_key: {quoted(look.context_key)}  # {len(look.contexts)}: {contexts}"
    else:
        context = "  # context_key: cell_line  # column of obs with cell lines, cell types or donors"
    dose = "  # dose_key: dose  # column of obs with doses of drugs"
    if look.dose_key is not None:
        dose = f"  dose_key: {quoted(look.dose_key)}  # doses of drugs"
    layer = "  # layer: log1p  # if they are in a layer" if look.layer is None else f"  layer: {quoted(look.layer)}"
    remarks = "".join(f"# Note: {one_line(remark)}.\n" for remark in look.remarks)
    separator = '  # combination_separator: "+"  # if labels such as A+B are combinations'
    if look.separator is not None:
        separator = f"  combination_separator: {quoted(look.separator)}  # predicted from their parts"
    questions = {
        "held_out_conditions": "conditions of perturbations that are measured in other contexts",
        "held_out_perturbations": "combinations of perturbations that are measured alone",
        "fraction": "cells of every condition",
    }
    split = (
        yaml.safe_dump(look.split, default_flow_style=True, sort_keys=False, width=100).strip().replace("\n", "\n  ")
    )
    return f"""{schema_line()}
# A run of scvi-tahoe: {look.shape[0]:,} cells of {look.shape[1]:,} genes. Look at what it would do, then do it:
#   scvi-tahoe finetune {file} --dry-run
#   scvi-tahoe finetune {file}
{remarks}name: {quoted(look.path.stem)}

data:
  path: {quoted(data)}  # log1p of normalised counts
{layer}
  # held_out: held_out.h5ad  # cells to be predicted and scored, if they are in a file of their own
  perturbation_key: {quoted(look.perturbation_key)}  # {len(look.labels) - 1} perturbations
  control: {quoted(look.control)}  # {look.labels[look.control]:,} cells
{context}
  # batch_key: batch  # technical batch, if controls of each batch are in the data
{separator}
{dose}
  # embedding_files: {{string: string.parquet}}  # tables of genes or drugs, for what is not measured
  # cell_embedding_key: X_state  # key of obsm with embeddings of cells, as scvi-tahoe embed writes them

# start: {{source: arcinstitute/ST-Tahoe}}  # published weights instead of a network from scratch

# Held out: {questions[look.split["kind"]]}.
split: {split}

train:
  max_steps: 1000

score:
  preset: vcc2025  # or quick: no differential expression, in a second

seed: 0
"""
