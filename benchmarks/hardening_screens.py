"""Screens of every kind for ``hardening.py``: the same cells stored in another way, and other cells."""

from __future__ import annotations

import resource
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
import torch
from hardening_inputs import KEYS, SLOW_SECONDS, SMALL, is_ours

import scvi_tahoe
from scvi_tahoe import TahoeST, datasets, response
from scvi_tahoe.data import dense_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    Change = Callable[[ad.AnnData], ad.AnnData | None]

QUICK: dict[str, Any] = {**KEYS, "preset": "quick", "progress": False}


def plain_screen() -> ad.AnnData:
    """Return the cells from which all others are made."""
    cells = datasets.simulate_screen(2, 4, n_genes=60, n_cells=8, n_control_cells=20)
    cells.uns.clear()
    cells.obsm.clear()
    cells.X = sp.csr_matrix(cells.X)
    cells.obs = cells.obs[["perturbation", "context"]].astype(str)
    return cells


def _matrix(make: Callable[[sp.csr_matrix], Any]) -> Change:
    """Put a matrix in place of ``X``, past what AnnData makes of it."""

    def change(cells: ad.AnnData) -> None:
        cells._X = make(cells.X.copy())

    return change


def _obs(make: Callable[[pd.DataFrame], Any]) -> Change:
    def change(cells: ad.AnnData) -> None:
        cells.obs = make(cells.obs)

    return change


def _column(name: str, make: Callable[[pd.Series], Any]) -> Change:
    return _obs(lambda obs: obs.assign(**{name: make(obs[name])}))


def _labels(make: Callable[[pd.Series], Any]) -> Change:
    return _column("perturbation", make)


def _renamed(label: str, name: str = "perturbation") -> Change:
    return _column(name, lambda column: column.replace({f"{name}_1": label}))


def _one(value: Any) -> Callable[[pd.Series], pd.Series]:
    """Return a change of a column: one label of a perturbed cell is another value."""

    def change(column: pd.Series) -> pd.Series:
        column = column.astype(object).copy()
        column.iloc[int(np.flatnonzero(column.to_numpy() != "control")[0])] = value
        return column

    return change


def _with_levels(column: pd.Series, *levels: str) -> pd.Series:
    return column.astype(pd.CategoricalDtype([*sorted(set(column)), *levels]))


def _set(name: str, make: Callable[[ad.AnnData], Any]) -> Change:
    return lambda cells: setattr(cells, name, make(cells))


def _from_file(name: str, *, dense: bool = False, rows: bool = False, **options: Any) -> Change:
    def change(cells: ad.AnnData) -> ad.AnnData:
        if dense:
            cells.X = cells.X.toarray()
        path = Path(f"{name}.h5ad")
        if not path.exists():
            cells.write_h5ad(path)
        found = ad.read_h5ad(path, **options)
        return found[np.arange(found.n_obs)] if rows else found

    return change


def _from_zarr(cells: ad.AnnData) -> ad.AnnData:
    if not Path("same.zarr").exists():
        cells.write_zarr("same.zarr")
    return ad.read_zarr("same.zarr")


def _backwards(matrix: sp.csr_matrix) -> sp.csr_matrix:
    for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        for part in (matrix.indices, matrix.data):
            part[start:stop] = part[start:stop][::-1].copy()
    matrix.has_sorted_indices = True  # which is not so
    return matrix


def _with(matrix: Any, **parts: Any) -> Any:
    for name, value in parts.items():
        setattr(matrix, name, value)
    return matrix


def _read_only(matrix: Any) -> Any:
    for part in (matrix,) if isinstance(matrix, np.ndarray) else (matrix.data, matrix.indices, matrix.indptr):
        part.flags.writeable = False
    return matrix


def _stepped(matrix: sp.csr_matrix) -> np.ndarray:
    wide = np.zeros((matrix.shape[0], 2 * matrix.shape[1]), np.float32)
    wide[:, ::2] = matrix.toarray()
    return wide[:, ::2]


def _all_stored(matrix: sp.csr_matrix) -> sp.csr_matrix:
    dense = matrix.toarray()
    full = sp.csr_matrix(np.ones_like(dense))
    full.data = dense.ravel().copy()
    return full


def _twice_stored(matrix: sp.csr_matrix) -> sp.csr_matrix:
    parts = np.repeat(matrix.data / 2, 2), np.repeat(matrix.indices, 2), matrix.indptr * 2
    return sp.csr_matrix(parts, shape=matrix.shape)


def _dask(make: Callable[[Any, sp.csr_matrix], Any]) -> Change:
    """Put a dask array in place of ``X``; an ImportError, which is no try, where dask is not installed."""

    def change(cells: ad.AnnData) -> None:
        import dask.array

        cells._X = make(dask.array, cells.X.copy())

    return change


def _with_one_more(matrix: Any) -> Any:
    """Return a matrix whose arrays are longer than it says."""
    return _with(
        matrix, data=np.append(matrix.data, matrix.data[:1]), indices=np.append(matrix.indices, matrix.indices[:1])
    )


def _bad(matrix: Any, part: str, value: Any) -> Any:
    getattr(matrix, part)[0] = value
    return matrix


class OwnAnnData(ad.AnnData):
    """A class of somebody's own."""


def same_cells() -> dict[str, Change]:
    """Return other ways to store the same cells, of which every answer must be the same."""
    strings = (
        "string",
        "string[pyarrow]",
        pd.ArrowDtype(pa.string()),
        pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string())),
    )
    formats = (
        sp.csc_matrix,
        sp.csr_array,
        sp.csc_array,
        sp.coo_matrix,
        sp.coo_array,
        sp.lil_matrix,
        sp.bsr_matrix,
        sp.dok_matrix,
        sp.dia_matrix,
    )
    return {
        "nothing changed": lambda cells: None,
        "unused perturbation": _labels(lambda c: _with_levels(c, "ghost", "zzz")),
        "unused context": _column("context", lambda c: _with_levels(c, "zz")),
        "ordered": _labels(lambda c: c.astype(pd.CategoricalDtype(sorted(set(c)), ordered=True))),
        "levels backwards": _labels(lambda c: c.astype(pd.CategoricalDtype(sorted(set(c))[::-1]))),
        **{f"text as {kind}": _labels(lambda c, kind=kind: c.astype(kind)) for kind in strings},
        **{f"context as {k}": _column("context", lambda c, k=k: c.astype(k)) for k in (*strings, "category")},
        "categories of arrow": _labels(lambda c: c.astype("string[pyarrow]").astype("category")),
        "numpy texts": _labels(lambda c: pd.Series([np.str_(v) for v in c], index=c.index, dtype=object)),
        **{f"stored as {make.__name__}": _matrix(make) for make in formats}, "dense": _matrix(lambda x: x.toarray()),
        "Fortran order": _matrix(lambda x: np.asfortranarray(x.toarray())), "np.matrix": _matrix(lambda x: x.todense()),
        "stepped": _matrix(_stepped), "float64": _matrix(lambda x: x.astype(np.float64)),
        "long double": _matrix(lambda x: x.toarray().astype(np.longdouble)),
        "big endian": _matrix(lambda x: x.toarray().astype(">f4")),
        "sparse big endian": _matrix(lambda x: x.astype(">f4")), "entries backwards": _matrix(_backwards),
        "entries twice": _matrix(_twice_stored), "zeros stored": _matrix(_all_stored), "read-only": _matrix(_read_only),
        "dense read-only": _matrix(lambda x: _read_only(x.toarray())), "memory map": _matrix(_memory_map),
        "longer data": _matrix(_with_one_more),
        "64-bit indices": _matrix(lambda x: _with(x, indices=np.int64(x.indices), indptr=np.int64(x.indptr))),
        "not masked": _matrix(lambda x: np.ma.masked_array(x.toarray())),
        "negative zeros": _matrix(lambda x: np.where(x.toarray() == 0, np.float32(-0.0), x.toarray())),
        "dask": _dask(lambda da, x: da.from_array(x.toarray(), chunks=(7, 60))),
        "sparse dask": _dask(lambda da, x: da.from_array(x.toarray(), chunks=(20, 60)).map_blocks(sp.csr_matrix)),
        "frame": _matrix(lambda x: pd.DataFrame(x.toarray())),
        "view": lambda c: ad.concat([c, c], index_unique="-")[: c.n_obs],
        "view of a view": lambda c: c[np.arange(c.n_obs)][:, c.var_names],
        "view by truth": lambda c: c[np.ones(c.n_obs, bool)], "backed": _from_file("sparse", backed="r"),
        "backed dense": _from_file("dense", dense=True, backed="r"), "h5ad": _from_file("sparse"),
        "backed view": _from_file("sparse", rows=True, backed="r"),
        "backed dense view": _from_file("dense", dense=True, rows=True, backed="r"), "zarr": _from_zarr,
        "cells of one name": _set("obs_names", lambda c: ["same"] * c.n_obs),
        "cells named in Chinese": _set("obs_names", lambda c: [f"细胞{i}é" for i in range(c.n_obs)]),
        "cells without names": _set("obs_names", lambda c: [""] * c.n_obs), "raw": _set("raw", lambda c: c),
        "NaN in a layer": lambda c: c.layers.update(x=c.X * np.nan),
        "NaN elsewhere": _obs(lambda o: o.assign(q=np.nan)),
        "nullable elsewhere": _obs(lambda o: o.assign(q=pd.array([1, *[None] * (len(o) - 1)], dtype="Int64"))),
        "lists elsewhere": _obs(lambda o: o.assign(q=[[1]] * len(o))),
        "obsp": lambda c: c.obsp.update(x=sp.eye(c.n_obs).tocsr()),
        "objects in uns": lambda c: c.uns.update(x=object(), y={1: 2}),
        "own class": lambda c: OwnAnnData(c.X, obs=c.obs, var=c.var),
        "named index of genes": lambda c: setattr(c.var.index, "name", "gene_ids"),
        "index named as the column": lambda c: setattr(c.obs.index, "name", "perturbation"),
        "column index": _obs(lambda o: o.assign(index=1)),
        "columns of ours": _obs(lambda o: o.assign(origin="x", n_cells=3, batch="b", source="s", _scvi_batch=0)),
        "columns of var": _set("var", lambda c: c.var.assign(perturbation=1, gene=2, highly_variable=False)),
    }  # fmt: skip


def _memory_map(matrix: sp.csr_matrix) -> np.ndarray:
    np.save("cells.npy", matrix.toarray())
    return np.load("cells.npy", mmap_mode="r")


def other_cells() -> dict[str, Change]:
    """Return screens with other labels, values or sizes: each is taken, or refused in words of this package."""
    names = {
        "Cyrillic and emoji": "пертурбация é 漢 🧬", "newline": "a\nb", "tab": "a\tb", "NUL": "a\0b",
        "half a character": "a\ud800", "slash": "a/b", "dots": "..", "long": "x" * 100_000, "255 bytes": "x" * 255,
        "spaces around": " a ", "space": "  ", "nothing": "", "nan": "nan", "NA": "NA", "None": "None", "True": "True",
        "number": "1e5", "case": "Control", "control and space": "control ", "dollar": "$x_{", "percent": "%s{}",
        "backslash": "C:\\x", "quote": "'\"", "bell": "\x07", "right to left": "\u202eabc", "mark": "<b>&amp;</b>",
        "plus": "a+b", "colon": "a: 1", "comma": "a,b", "origin": "origin", "all": "all", "composed": "é",
        "decomposed": "e\u0301", "zero width": "\u200b", "shell": "$(x)", "glob": "[*]?",
    }  # fmt: skip
    columns: dict[str, Callable[[pd.Series], Any]] = {
        "one number": _one(1), "one fraction": _one(2.5), "bytes": lambda c: c.map(str.encode),
        "tuples": lambda c: c.map(lambda v: (v, 1)), "lists": lambda c: c.map(lambda v: [v]),
        "dates": lambda c: pd.to_datetime(["2020-01-01"] * len(c)), "truth": lambda c: c == "control",
        "periods": lambda c: pd.period_range("2020", periods=len(c), freq="D"),
        "intervals": lambda c: pd.cut(np.arange(len(c)), 3),
        "Int64 with gaps": lambda c: pd.array([1, *[None] * (len(c) - 1)], dtype="Int64"),
        "boolean": lambda c: pd.array(c == "control", dtype="boolean"), "NaN": _one(np.nan), "None": _one(None),
        "NA": _one(pd.NA), "NaT": _one(pd.NaT), "no category": lambda c: _one(None)(c).astype("category"),
        "all NaN": lambda c: np.nan, "no string": lambda c: _one(None)(c).astype("string"),
        "no arrow": lambda c: _one(None)(c).astype("string[pyarrow]"),
        "codes": lambda c: c.astype("category").cat.codes, "same": lambda c: "control",
        "all different": lambda c: [f"p{i}" for i in range(len(c))], "complex": lambda c: np.arange(len(c)) * 1j,
        "sparse": lambda c: pd.arrays.SparseArray(c == "control"), "numbers": lambda c: c.map(len),
    }  # fmt: skip
    matrices: dict[str, Callable[[sp.csr_matrix], Any]] = {
        "float16": lambda x: x.toarray().astype(np.float16), "truth values": lambda x: x > 0,
        "uint8": lambda x: x.astype(np.uint8), "int8": lambda x: x.toarray().astype(np.int8),
        "int64": lambda x: x.astype(np.int64), "uint64": lambda x: x.toarray().astype(np.uint64),
        "none": lambda x: None, "short": lambda x: x[:-3], "wide": lambda x: sp.hstack([x, x]).tocsr(),
        "1-D": lambda x: np.ones(x.shape[0]), "3-D": lambda x: np.ones((*x.shape, 1)),
        "masked": lambda x: np.ma.masked_greater(x.toarray(), 1), "list": lambda x: x.toarray().tolist(),
        "tensor": lambda x: torch.tensor(x.toarray()), "sparse tensor": lambda x: torch.tensor(x.toarray()).to_sparse(),
        "structured": lambda x: np.zeros(x.shape, dtype=[("a", "f4")]), "dates": lambda x: x.toarray().astype("M8[s]"),
        "float indices": lambda x: _with(x, indices=x.indices.astype(np.float64)),
        "unsigned indices": lambda x: _with(x, indices=x.indices.astype(np.uint32)),
        "indices of two kinds": lambda x: _with(x, indices=x.indices.astype(np.int64)),
        "float starts": lambda x: _with(x, indptr=x.indptr.astype(float)),
        "2-D data": lambda x: _with(x, data=x.data[:, None]), "short data": lambda x: _with(x, data=x.data[:-5]),
        "short starts": lambda x: _with(x, indptr=x.indptr[:-5]), "hidden NaN": lambda x: _bad(x, "data", np.nan),
        "CSC index below": lambda x: _bad(x.tocsc(), "indices", -3),
        "CSC index above": lambda x: _bad(x.tocsc(), "indices", 10**6),
        "COO index above": lambda x: _bad(x.tocoo(), "row", 10**6),
        "COO index below": lambda x: _bad(x.tocoo(), "col", -1),
        "BSR index above": lambda x: _bad(sp.bsr_matrix(x), "indices", 10**6),
        "LIL index above": lambda x: _bad(x.tolil(), "rows", [10**6] * len(x.tolil().data[0])),
        "DIA outside": lambda x: sp.dia_matrix((np.ones((1, 5)), [900]), shape=x.shape),
        "tiny negative": lambda x: np.where(x.toarray() == 0, np.float32(-1e-9), x.toarray()),
        "denormal": lambda x: np.where(x.toarray() == 0, np.float32(1e-42), x.toarray()),
        "empty CSR": lambda x: sp.csr_matrix(x.shape, dtype=np.float32), "text": lambda x: x.toarray().astype(str),
        "text numbers": lambda x: x.toarray().astype(object), "bytes": lambda x: x.toarray().astype("S"),
    }  # fmt: skip

    def genes(make: Callable[[ad.AnnData], Any]) -> Change:
        return lambda c: setattr(c, "_var", c.var.set_index(make(c)))

    cells: dict[str, Change] = {
        "one gene": lambda c: c[:, :1].copy(), "two genes": lambda c: c[:, :2].copy(),
        "no genes": lambda c: c[:, :0].copy(), "one cell": lambda c: c[:1].copy(),
        "two cells": lambda c: c[[0, -1]].copy(), "no cells": lambda c: c[:0].copy(),
        "one cell each": lambda c: c[~c.obs.duplicated().to_numpy()].copy(),
        "one perturbation": lambda c: c[c.obs["perturbation"].isin(["control", "perturbation_1"])].copy(),
        "controls of one context": lambda c: c[_is_not_control_of(c.obs, "context_1")].copy(),
        "one control": lambda c: c[~((c.obs["perturbation"] == "control") & c.obs.duplicated()).to_numpy()].copy(),
        "only layers": lambda c: ad.AnnData(obs=c.obs, var=c.var, layers={"x": c.X}),
        "no obs": lambda c: ad.AnnData(c.X), "obs without columns": _obs(lambda o: o[[]]),
        "column twice": lambda c: setattr(c, "_obs", pd.concat([c.obs, c.obs[["perturbation"]]], axis=1)),
        "context twice": lambda c: setattr(c, "_obs", pd.concat([c.obs, c.obs[["context"]]], axis=1)),
        "short obs": lambda c: setattr(c, "_obs", c.obs.iloc[:-3]),
        "context of one cell missing": _column("context", lambda s: s.where(np.arange(len(s)) != 3).astype("category")),
        "closed file": _closed, "same genes twice": lambda c: ad.concat([c, c], axis=1, merge="same"),
        "NUL in genes": _set("var_names", lambda c: [f"g\0{i}" for i in range(c.n_vars)]),
        "half characters in genes": _set("var_names", lambda c: [f"g\ud800{i}" for i in range(c.n_vars)]),
        "genes in Chinese": _set("var_names", lambda c: [f"基因_{i}é" for i in range(c.n_vars)]),
        "gene without a name": _set("var_names", lambda c: ["", *c.var_names[1:]]),
        "levels of genes": genes(lambda c: pd.MultiIndex.from_arrays([c.var_names, c.var_names])),
        "gene of NaN": genes(lambda c: pd.Index([np.nan, *c.var_names[1:]], dtype=object)),
        "numbered genes": genes(lambda c: pd.RangeIndex(c.n_vars)),
        "categorical genes": genes(lambda c: pd.CategoricalIndex(c.var_names)),
        "other genes": _set("var_names", lambda c: [f"other{i}" for i in range(c.n_vars)]),
        "genes in capitals": _set("var_names", lambda c: c.var_names.str.upper()),
        "dask of NaN": _dask(lambda da, x: da.from_array(x.toarray() * np.nan)),
        "MuData": lambda c: mudata.MuData({"rna": c}), "DataFrame": lambda c: c.to_df(),
        "file name": lambda c: "screen.h5ad", "nothing": lambda c: None or [],
    }  # fmt: skip
    return {
        **{f"label {name}": _renamed(label) for name, label in names.items()},
        **{f"context {name}": _renamed(label, "context") for name, label in names.items()},
        **{f"labels of {name}": _labels(make) for name, make in columns.items()},
        **{f"contexts of {name}": _column("context", make) for name, make in columns.items()},
        **{f"matrix {name}": _matrix(make) for name, make in matrices.items()}, **cells,
    }  # fmt: skip


def _is_not_control_of(obs: pd.DataFrame, context: str) -> np.ndarray:
    return ~((obs["perturbation"] == "control") & (obs["context"] == context)).to_numpy()


def _closed(cells: ad.AnnData) -> ad.AnnData:
    found = _from_file("sparse", backed="r")(cells)
    found.file.close()
    return found


def _dense(found: Any) -> np.ndarray:
    return np.asarray(found.X.toarray() if sp.issparse(found.X) else found.X)


def calls(plain: ad.AnnData) -> dict[str, Callable[[ad.AnnData], Any]]:
    """Return what is done with a screen, each with an answer that can be compared."""
    data = plain.copy()
    TahoeST.setup_anndata(data, **KEYS)
    model = TahoeST(data, size=SMALL, set_size=4)
    model.train(max_steps=2, batch_size=2, progress=False, accelerator="cpu")

    joined = {**KEYS, "harm_control": False, "progress": False}
    quality = {**KEYS, "n_permutations": 0, "progress": False}

    def life(cells: ad.AnnData) -> np.ndarray:
        TahoeST.setup_anndata(cells, **KEYS)
        fresh = TahoeST(cells, size=SMALL, set_size=4)
        fresh.train(max_steps=2, batch_size=2, progress=False, accelerator="cpu")
        found = fresh.predict(n_cells=8, progress=False)
        fresh.save("model", overwrite=True)
        again = TahoeST.load("model", cells).predict(n_cells=8, progress=False)
        if not np.array_equal(_dense(found), _dense(again)):
            raise AssertionError("a loaded model predicts something else")
        Path("predicted.h5ad").unlink(missing_ok=True)
        found.write_h5ad("predicted.h5ad")
        written = ad.read_h5ad("predicted.h5ad").obs["perturbation"].astype(str)
        if list(written) != list(found.obs["perturbation"].astype(str)):
            raise AssertionError("labels change in a file")
        fresh.export("exported", overwrite=True)
        TahoeST.from_pretrained("exported", cells, check_scale=False)
        fresh.predict(n_cells=8, progress=False, path="predicted.zarr", overwrite=True)
        return _dense(found)

    def drawn(cells: ad.AnnData) -> np.ndarray:
        result = scvi_tahoe.evaluate(cells, plain, **QUICK, baselines=False)
        result.save("result")
        result.to_html("result.html")
        scvi_tahoe.EvaluationResult.load("result").plot("bars", save="bars.png")
        return result.per_perturbation.select_dtypes("number").to_numpy()

    def fitted(cells: ad.AnnData) -> np.ndarray:
        found = response.ResponseModel.fit(cells, **KEYS, progress=False)
        found.save("response", overwrite=True)
        return np.asarray(response.ResponseModel.load("response").predict().X)

    def stored(cells: ad.AnnData) -> np.ndarray | None:
        Path("cells.h5ad").unlink(missing_ok=True)
        try:
            cells.copy().write_h5ad("cells.h5ad")
        except Exception:  # noqa: BLE001  no file holds it
            return None
        shutil.rmtree("store", ignore_errors=True)
        scvi_tahoe.write_store("cells.h5ad", "store", **KEYS)
        cells = scvi_tahoe.read_store("store")
        return dense_rows(cells.X, np.arange(cells.n_obs)).sum(1)

    def scored(cells: ad.AnnData) -> np.ndarray:
        return (
            scvi_tahoe.evaluate(plain, cells, **QUICK, baselines=False)
            .per_perturbation.select_dtypes("number")
            .to_numpy()
        )

    model.save("adapt", overwrite=True)
    return {
        "life": life,
        "predict": lambda c: _dense(model.predict(c, n_cells=8, progress=False)),
        "effects": lambda c: model.predict_effects(c).to_numpy(),
        "prediction": drawn,
        "reference": scored,
        "table": lambda c: response.effects_table(c, **KEYS, progress=False).to_numpy(),
        "response model": fitted,
        "concat": lambda c: np.asarray(scvi_tahoe.concat_screens({"x": c, "y": plain}, **joined).X.sum(1)).ravel(),
        "quality": lambda c: scvi_tahoe.screen_quality(c, **quality).select_dtypes("number").to_numpy(),
        "store": stored,
        "baseline": lambda c: _dense(scvi_tahoe.baseline_prediction("train_mean", plain, c, **KEYS)),
        "adapt": lambda c: _dense(TahoeST.load("adapt", c).predict(n_cells=8, progress=False)),
    }


def odd_screens(part: int, parts: int) -> Counter[str]:
    """Give every kind of screen to every so-manieth call, and count the answers."""
    found: Counter[str] = Counter()
    plain = plain_screen()
    works = calls(plain)
    for name, work in [*works.items()][part::parts]:
        expected = work(plain.copy())
        for kind, change in [*same_cells().items(), *other_cells().items()]:
            try:
                cells = plain.copy()
                made = change(cells)
                cells = cells if made is None else made
            except Exception:  # noqa: BLE001  AnnData takes no such thing
                found["not made"] += 1
                continue
            found["tried"] += 1
            found[_judged(name, kind, work, cells, expected)] += 1
    return found


#: what a call may refuse with a remedy nevertheless, as cells are told apart by name and a model keeps its data
MAY_BE_REFUSED = ("cells of one name", "cells without names", "view", "view of a view", "view by truth", "backed view")
MAY_BE_REFUSED += ("backed dense view",)


def _judged(name: str, kind: str, work: Callable[[ad.AnnData], Any], cells: Any, expected: Any) -> str:
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    is_same = kind in same_cells()
    answer = "taken"
    try:
        got = work(cells)
    except Exception as error:  # noqa: BLE001  judged
        must_take = is_same and kind not in MAY_BE_REFUSED and not (name == "store" and "csc" in kind)
        answer = "foreign" if not is_ours(error) else "not taken" if must_take else "refused"
        if answer != "refused":
            print(f"{answer}: {name} of {kind}: {type(error).__name__}: {str(error)[:140]!r}")
    else:
        if is_same and got is not None and not _equal(got, expected):
            answer = "other answer"
            print(f"other answer: {name} of {kind}")
        elif got is not None and got.dtype.kind == "f" and np.isinf(got).any():
            answer = "silent"
            print(f"silent: {name} of {kind}: infinite values")
    if time.process_time() - begin > SLOW_SECONDS:
        print(f"slow: {name} of {kind}: {time.process_time() - begin:.0f} s")
        answer = "slow"
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 10**6:
        print(f"over 1 GB: {name} of {kind}")
    return answer


def _equal(one: Any, other: Any) -> bool:
    if one.shape != other.shape:
        return False
    return one.dtype.kind != "f" or bool(np.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True))
