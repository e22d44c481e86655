"""What a table is worth: each alone, all together, and each with its rows shuffled, on measured responses.

Conditions of one context are predicted without themselves, from tables alone; the response model's own scores.
A shuffled table must be worth nothing, that is, as much as no table: the mean of the other perturbations.

Without a file, responses are simulated, and so are tables of which a known share tells about them:

    python benchmarks/tables_worth.py

    python benchmarks/tables_worth.py responses.h5ad --perturbation-key perturbation --context-key cell_line \\
        --context K562 --control control --table go=emb_gene_go.parquet --table string=string.parquet
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvi_tahoe.response import ResponseModel
from scvi_tahoe.tables import read_table, shuffled_table


def simulated(seed, n=200, n_genes=200, width=16):
    """Return responses that are linear in hidden numbers, half of their variance noise, and tables that know some."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, width))
    changes = hidden @ rng.normal(size=(width, n_genes)) / np.sqrt(width) + rng.normal(size=(n, n_genes))
    names = [f"P{i}" for i in range(n)]
    tables = {}
    for share in (1.0, 0.75, 0.5, 0.25, 0.0):
        values = np.sqrt(share) * hidden + np.sqrt(1 - share) * rng.normal(size=hidden.shape)
        tables[f"{share:.0%} of a table's variance"] = pd.DataFrame(values.astype(np.float32), index=names)
    obs = pd.DataFrame({"perturbation": names}, index=names)
    return anndata.AnnData(changes.astype(np.float32), obs=obs), tables


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("responses", type=Path, nargs="?")
    parser.add_argument("--perturbation-key", default="perturbation")
    parser.add_argument("--context-key")
    parser.add_argument("--context")
    parser.add_argument("--control")
    parser.add_argument("--table", action="append", default=[], help="NAME=FILE")
    parser.add_argument("--n-genes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.responses is None:
        adata, tables = simulated(options.seed)
    else:
        adata = anndata.read_h5ad(options.responses)
        adata = adata[adata.obs[options.context_key].astype(str) == options.context].copy()
        adata.X = (adata.X.toarray() if sp.issparse(adata.X) else np.asarray(adata.X)).astype(np.float32)
        adata = adata[:, np.sort(np.argsort(-adata.X.var(0))[: options.n_genes])].copy()
        tables = {name: read_table(path) for name, path in (text.split("=", 1) for text in options.table)}
    trials = {name: {name: table} for name, table in tables.items()} | {"all": tables}
    trials |= {f"{name}, shuffled": {name: shuffled_table(table, options.seed)} for name, table in tables.items()}
    rows = []
    for trial, used in trials.items():
        model = ResponseModel.fit(
            adata, perturbation_key=options.perturbation_key, control=options.control, tables=used,
            seed=options.seed, progress=False,
        )  # fmt: skip
        report = model.report()
        found = report[(report["part"] == "member") & report["name"].isin(["response model", "mean"])]
        for _, row in found.iterrows():
            scores = {key: row[key] for key in ("pearson", "pds", "mae", "rmse", "n_conditions")}
            rows.append({"tables": trial, "question": row["question"], "predicted by": row["name"], **scores})
        print(pd.DataFrame(rows).tail(len(found)).to_string(index=False, header=len(rows) == len(found)), flush=True)
    if options.output:
        pd.DataFrame(rows).to_csv(options.output, index=False)


if __name__ == "__main__":
    main()
