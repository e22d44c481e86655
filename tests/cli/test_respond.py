"""The command that learns from a table of responses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from typer.testing import CliRunner

from scvi_tahoe.cli import app


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"P{i}" for i in range(9)]
    table = pd.DataFrame(rng.normal(size=(10, 2)), index=[*names, "new"])
    changes = table.to_numpy()[:9] @ rng.normal(size=(2, 6))
    obs = pd.DataFrame({"gene": names, "line": "x"}, index=names)
    AnnData(changes, obs=obs).write_h5ad(tmp_path / "changes.h5ad")
    table.set_axis(["a", "b"], axis=1).to_csv(tmp_path / "table.csv")
    return tmp_path


def run(folder, *arguments):
    keys = ["--perturbation-key", "gene", "-o", folder / "out.h5ad"]
    return CliRunner().invoke(app, [str(a) for a in ["respond", folder / "changes.h5ad", *keys, *arguments]])


def test_new_perturbations_are_predicted_by_a_table(files):
    options = ["--context-key", "line", "--predict", "new", "--report", files / "report.csv", "--save", files / "model"]
    result = run(files, "--table", f"t={files / 'table.csv'}", *options)
    assert result.exit_code == 0, result.output
    predicted = read_h5ad(files / "out.h5ad")
    assert predicted.obs["gene"].tolist() == ["new"]
    assert set(predicted.layers) - {None} == {"sd", "p_effect", "p_direction"}  # None: X
    assert set(pd.read_csv(files / "report.csv")["part"]) == {"kernel", "table", "member"}
    assert (files / "model" / "response.json").is_file()
    assert "Variance by kernel" in result.output
    assert "1 predicted conditions of 6 genes" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--predict", "P99"], "was not measured"),
        (["--table", "table.csv"], "not NAME=FILE"),
        (["--table", "t=nothing.csv"], "no file nothing.csv"),
        (["--context-key", "lin"], "did you mean 'line'"),
        (["--criterion", "best"], "--criterion best is unknown"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(files, arguments, says):
    result = run(files, *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (files / "out.h5ad").exists()


def test_a_file_that_exists_is_kept(files):
    (files / "out.h5ad").write_text("thesis")
    result = run(files)
    assert (result.exit_code, (files / "out.h5ad").read_text()) == (2, "thesis")
    assert run(files, "--overwrite", "--quiet").exit_code == 0
