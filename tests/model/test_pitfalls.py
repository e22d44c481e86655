"""What newcomers ran into: each says at once what is wrong, and what to write instead."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scvi_tahoe
from scvi_tahoe import TahoeST

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["n_epochs", "epochs", "max_epochs"])
def test_a_number_of_epochs_is_said_in_steps(make_model, name):
    with pytest.raises(ValueError, match=f"does not take {name}; say it with max_steps"):
        make_model().train(**{name: 3})


def test_a_folder_that_exists_is_replaced_with_overwrite(make_model, tmp_path):
    model = make_model()
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="exists; give overwrite=True to replace it, or another folder"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)


def test_data_with_other_gene_identifiers_are_refused_when_a_model_is_loaded(make_model, screen, tmp_path):
    make_model(screen).save(tmp_path / "model")
    other = screen.copy()
    other.var_names = [f"ENSG{i:011}" for i in range(other.n_vars)]
    with pytest.raises(ValueError, match=r"lack 60 of the model's 60 genes.*they have e.g. \['ENSG0.*identifiers"):
        TahoeST.load(tmp_path / "model", other)
    with pytest.warns(UserWarning, match=r"lack 20 of the model's 60 genes.*max_missing_genes"):
        TahoeST.load(tmp_path / "model", screen[:, :40].copy())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        TahoeST.load(tmp_path / "model", screen[:, ::-1].copy())


def test_dir_names_what_the_package_offers():
    assert {"pl", "datasets", "evaluate", "TahoeST"} <= set(dir(scvi_tahoe))
    assert not {"Any", "TYPE_CHECKING", "import_module", "annotations"} & set(dir(scvi_tahoe))


@pytest.mark.parametrize("n_missing", [1, 5])
def test_a_fused_table_without_most_perturbations_is_told(screen, register, n_missing):
    table = screen.uns["perturbation_embedding"]
    other = pd.DataFrame(np.random.default_rng(0).normal(size=(6, 3)), index=table.index)
    other.index = [f"ENSP{i}" if i < n_missing else name for i, name in enumerate(table.index)]
    screen.uns["proteins"] = other
    keys = {"perturbation_embedding_key": ["perturbation_embedding", "proteins"]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        register(screen, **keys)
    told = [str(w.message) for w in caught if "fused tables" in str(w.message)]
    assert len(told) == (n_missing == 5)
    assert all("uns['proteins']" in text and "no row for 5 of 6 perturbations" in text for text in told)


def test_raw_counts_are_to_be_brought_to_one_total(screen, register):
    screen.X = screen.layers["counts"]
    with pytest.raises(ValueError, match=r"normalize_total\(adata, target_sum=1e4\)"):
        register(screen)


def test_the_guide_of_the_command_line_shows_tables_and_held_out_cells():
    text = (DOCS / "user_guide" / "studies.md").read_text()
    assert "held_out:" in text
    assert "perturbation_embedding_key:" in text
    assert "--perturbation all" in text
