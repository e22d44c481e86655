"""Whatever is given, a call refuses it in its own words or does what it says: tables, run files, screens, arguments.

``SCVI_TAHOE_EXAMPLES=3000`` tries so many examples of each, other ones each time.
"""

from __future__ import annotations

import copy
import os
import string
import sys
import traceback
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scvi_tahoe import FractionSplit, HeldOutPerturbations, ListedConditions, TahoeST, read_embedding_table
from scvi_tahoe._matrices import trusted_matrix
from scvi_tahoe.data import LabelParser
from scvi_tahoe.effects import cells_needed, hill
from scvi_tahoe.nn import NetworkConfig, ObjectiveConfig
from scvi_tahoe.study import TahoeRun
from scvi_tahoe.tables import read_table, write_table
from scvi_tahoe.training import PlanConfig

sys.path.insert(0, str(Path(__file__).parent / "study"))

from study_samples import RUN

N_EXAMPLES = int(os.environ.get("SCVI_TAHOE_EXAMPLES", "0"))
EXAMPLES = settings(
    max_examples=N_EXAMPLES or 25,
    deadline=None,
    derandomize=not N_EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
REFUSALS = (ValueError, TypeError, KeyError)

numbers = st.one_of(st.integers(-3, 30), st.integers(), st.floats(), st.booleans())
words = st.text(string.printable, max_size=6)
plain = st.recursive(
    st.one_of(st.none(), numbers, words, st.binary(max_size=3), st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=2)),
    max_leaves=4,
)


def refuses_or_returns(call):
    """Return what a call returns, and None where it refuses; another package's error fails the test."""
    try:
        return call()
    except REFUSALS as error:
        if "scvi_tahoe" in traceback.extract_tb(error.__traceback__)[-1].filename and str(error).strip():
            return None
        raise


CONFIGS = {
    FractionSplit: {"validation": 0.1, "test": 0.1},
    HeldOutPerturbations: {"validation": ("A",), "test": ("B",)},
    ListedConditions: {"validation": {"x": ("A",)}, "test": {"x": "all"}},
    LabelParser: {"control": "c", "combination_separator": "+", "has_dose": False},
    NetworkConfig: {"n_input": 4, "n_output": 4, "n_perturbation": 4, "hidden": 8, "n_layers": 1, "n_heads": 2},
    ObjectiveConfig: {"terms": {"energy": 1.0}},
    PlanConfig: {"max_steps": 5, "lr": 0.1, "recipe": "full"},
    cells_needed: {"sd": [1.0, 2.0], "change": 0.5, "power": 0.8},
    hill: {"dose": [1.0], "emax": 1.0, "ec50": 1.0, "slope": 1.0},
}


@pytest.mark.parametrize("call", CONFIGS, ids=lambda call: call.__name__)
@EXAMPLES
@given(data=st.data())
def test_any_argument_is_taken_or_refused_in_our_words(call, data):
    right = CONFIGS[call]
    name = data.draw(st.sampled_from(sorted(right)))
    refuses_or_returns(lambda: call(**{**right, name: data.draw(plain)}))


def places(content, path=()):
    inside = content.items() if isinstance(content, dict) else ()
    return [(*path, key) for key, _ in inside] + [p for k, v in inside for p in places(v, (*path, k))]


@EXAMPLES
@given(place=st.sampled_from(places(RUN)), value=plain)
@example(place=("split", "kind"), value=[])
def test_any_value_of_a_run_file_is_refused_or_survives_a_round_trip(place, value):
    content = copy.deepcopy(RUN)
    section = content
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    run = refuses_or_returns(lambda: TahoeRun.from_dict(content))
    if run is not None:
        assert TahoeRun.from_dict(run.to_dict()) == run


@st.composite
def sparse_parts(draw):
    shape = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    indices = draw(st.lists(st.integers(-1, 5), max_size=6))
    indptr = draw(st.lists(st.integers(-1, 7), min_size=shape[0] + 1, max_size=shape[0] + 1))
    if draw(st.booleans()):  # mostly right, so that not all is refused
        indices = [max(0, min(i, shape[1] - 1)) for i in indices] if shape[1] else []
        indptr = sorted(max(0, min(i, len(indices))) for i in indptr)
        indptr[0] = 0
    return shape, np.array(indices, np.int32), np.array(indptr, np.int32)


@EXAMPLES
@given(parts=sparse_parts())
def test_a_sparse_matrix_of_any_parts_is_refused_or_is_what_its_parts_say(parts):
    shape, indices, indptr = parts
    matrix = sp.csr_matrix(shape, dtype=np.float32)
    matrix.data, matrix.indices, matrix.indptr = np.arange(1, len(indices) + 1, dtype=np.float32), indices, indptr
    found = refuses_or_returns(lambda: trusted_matrix(matrix, "X"))
    if found is not None:
        expected = np.zeros(shape, np.float32)
        for row in range(shape[0]):
            for k in range(indptr[row], indptr[row + 1]):
                expected[row, indices[k]] += k + 1
        np.testing.assert_array_equal(found.toarray(), expected)


@st.composite
def screens(draw):
    n_cells, n_genes = draw(st.integers(0, 9)), draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    counts = rng.poisson(2.0, (n_cells, n_genes)).astype(float)
    values = np.log1p(counts / np.maximum(counts.sum(1, keepdims=True), 1) * 100)
    if draw(st.booleans()) and values.size:
        values.flat[draw(st.integers(0, values.size - 1))] = draw(st.sampled_from([np.nan, np.inf, -1.0, 3e38, 1e13]))
    dtype = draw(st.sampled_from(["float32", "float64", "float16", "int32", "bool", "complex64", "U5"]))
    form = draw(st.sampled_from([np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array]))
    labels = draw(st.lists(st.sampled_from(["c", "A", "B", "", None, 1, 2.5]), min_size=n_cells, max_size=n_cells))
    column = pd.Series(labels, dtype=object, index=[f"cell_{i}" for i in range(n_cells)])
    if draw(st.booleans()):
        column = column.astype("category")
    with np.errstate(all="ignore"):
        values = values.astype(dtype)
    matrix = values if dtype in ("U5", "float16") else form(values)
    return ad.AnnData(
        matrix, obs=pd.DataFrame({"p": column}), var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    )


@pytest.mark.filterwarnings("ignore")
@EXAMPLES
@given(adata=screens(), control=st.sampled_from(["c", "A", "1", ""]))
def test_any_screen_is_refused_or_registered_as_it_is(adata, control):
    before = adata.copy()

    def register():
        TahoeST.setup_anndata(adata, "p", control)
        return TahoeST(adata, size={"hidden": 8, "n_layers": 1, "intermediate": 8, "n_heads": 2}, set_size=2)

    model = refuses_or_returns(register)
    if model is not None:
        assert set(model.perturbation_table.names) <= {str(label) for label in before.obs["p"].unique()} | {control}
        assert list(model.genes) == list(before.var_names)
        dense = [np.asarray(x.toarray() if sp.issparse(x) else x) for x in (before.X, adata.X)]
        np.testing.assert_array_equal(*dense)


names = st.lists(st.text(string.printable + "äπ漢", min_size=1, max_size=5).map(str.strip).filter(bool), unique=True)


@EXAMPLES
@given(names=names.filter(bool), ending=st.sampled_from([".parquet", ".csv", ".tsv", ".npz"]), seed=st.integers(0, 99))
@example(names=["NA", "null", "1", "1.0"], ending=".csv", seed=0)
def test_a_table_of_any_names_comes_back_as_it_was(names, ending, seed, tmp_path_factory):
    rng = np.random.default_rng(seed)
    values = pd.DataFrame(rng.normal(size=(len(names), 3)).astype(np.float32), pd.Index(names), list("xyz"))
    path = tmp_path_factory.mktemp("tables") / f"table{ending}"
    write_table(values, path)
    found = refuses_or_returns(lambda: read_table(path))
    if found is not None:
        assert list(found.index) == names
        np.testing.assert_allclose(found.to_numpy(), values.to_numpy(), rtol=1e-6)


@EXAMPLES
@given(
    content=st.one_of(st.binary(max_size=60), words.map(str.encode)),
    ending=st.sampled_from(["csv", "npz", "pt", "tsv"]),
)
@example(content=b"a,1\nb,2e400\n", ending="csv")
def test_a_table_of_any_bytes_is_refused_or_finite(content, ending, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / f"table.{ending}"
    path.write_bytes(content)
    found = refuses_or_returns(lambda: read_embedding_table(path))
    if found is not None:
        assert len(found["names"]) == len(found["matrix"])
        assert np.isfinite(found["matrix"]).all()
