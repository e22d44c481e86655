"""`scvi-tahoe embed` writes embeddings next to the cells, and says in one line what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
from typer.testing import CliRunner

from scvi_tahoe.cli import app

sys.path.insert(0, str(Path(__file__).parents[1] / "pretrained"))
from se_folder import counts, write_folder


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "SE-toy")
    cells = counts(6)
    cells.var_names = cells.var_names.str.lower()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "aliases.csv").write_text(
        "other,symbol\n" + "".join(f"{name},{name.upper()}\n" for name in cells.var_names)
    )
    return tmp_path


def _embed(folder, *arguments):
    data = [folder / "cells.h5ad", folder / "SE-toy", "-o", folder / "out.h5ad"]
    return CliRunner().invoke(app, [str(a) for a in ["embed", *data, "--quiet", *arguments]])


def test_embeddings_are_written_with_a_report_and_the_licence(folder):
    done = _embed(folder, "--aliases", folder / "aliases.csv", "--seed", 3, "--key", "X_se")
    assert done.exit_code == 0, done.output
    assert "6 cells embedded in 34 numbers by SE-toy" in done.output
    assert "100 genes found" in done.output
    assert "Non-Commercial" in done.output
    written = anndata.read_h5ad(folder / "out.h5ad")
    assert np.isfinite(written.obsm["X_se"]).all()
    assert written.uns["scvi_tahoe_embedding"]["X_se"]["seed"] == 3


def test_a_user_error_is_one_line(folder):
    done = _embed(folder)
    assert done.exit_code == 2
    assert "too few to embed cells" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (folder / "out.h5ad").exists()
    (folder / "aliases.csv").write_text("a,b,c\n")
    assert "no column symbol" in _embed(folder, "--aliases", folder / "aliases.csv").stderr
