"""The cells of a run: read or made, held-out cells taken out, and an embedding made where one was asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe import datasets
from scvi_tahoe.data import FewShotContext, FractionSplit, ScreenKeys, verify_screen
from scvi_tahoe.pretrained import read_embedding_table
from scvi_tahoe.study._cell_files import read_files, some_cells

if TYPE_CHECKING:
    from anndata import AnnData

    from scvi_tahoe.data import Split
    from scvi_tahoe.study._run_config import DataConfig, TahoeRun


@dataclass(frozen=True, eq=False)
class RunData:
    """The cells of a run."""

    train: AnnData  # everything the model may see
    held_out: AnnData | None  # observed cells to be predicted, with the controls of their contexts; None: no scores
    split: Split | None  # which cells of `train` validate; None: as `TahoeST.train` chooses
    config: DataConfig  # with every label spelled out
    shares_conditions: bool  # whether held-out cells are of conditions that are also trained on


def load_data(run: TahoeRun) -> RunData:
    """Return the cells of a run."""
    adata, held_out, split, config = _read(run.data)
    split, shared = run.chosen_split or split, False
    if held_out is None and split is not None:
        adata, held_out = _take_out(adata, split, config, seed=run.seed)
        shared = held_out is not None and isinstance(split, FractionSplit)
        if run.split is not None and "validation" not in run.split and not getattr(split, "validation", None):
            split = None  # it names only what to predict
        else:
            split = replace(split, test=type(split.test)())  # type: ignore[attr-defined, call-arg]  # none of its kind
    if config.cell_embedding_components is not None:
        _add_components(adata, held_out, config)
    keys = ScreenKeys(**config.keys)
    verify_screen(adata, keys)
    if held_out is not None:
        verify_screen(held_out, keys, table_required=False)
    return RunData(adata, held_out, split, config, shared)


def _read(config: DataConfig) -> tuple[AnnData, AnnData | None, Split | None, DataConfig]:
    """Return the cells, those held out, the split of a named screen, and the section with its labels."""
    if config.path is not None:
        adata = read_files(config.path, config)
        held_out = None if config.held_out is None else read_files(config.held_out, config)
        for part in (adata, held_out):
            add_embeddings(part, config)
        return adata, held_out, None, config
    held_out = split = None
    labels = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
    if config.dataset == "papalexi_few_shot":
        task = datasets.papalexi_few_shot()
        adata, held_out = task.train, task.held_out
        labels = {name: getattr(task, name) for name in labels}
        split = FewShotContext(context=task.context, validation=task.validation_targets)
    elif config.dataset == "papalexi_thp1":
        adata = datasets.papalexi_thp1()
        labels |= {"control": str(adata.uns["control_label"]), "context_key": "bio_rep"}
    elif config.dataset == "norman_k562":
        adata, labels["context_key"] = datasets.norman_k562(), "cell_type"
    else:
        adata = datasets.simulate_screen(n_genes=config.n_genes or 200, **config.simulation)
    add_embeddings(adata, config)
    filled = config.replaced()  # past the check that a user gives no labels of a named screen
    filled.__dict__.update(labels)
    return adata, held_out, split, filled


def add_embeddings(adata: AnnData | None, config: DataConfig) -> None:
    """Put the tables of perturbation embeddings that are in files of their own into ``uns``."""
    for key, file in config.embedding_files.items() if adata is not None else ():
        adata.uns[key] = read_embedding_table(file)  # type: ignore[union-attr]


def _take_out(adata: AnnData, split: Split, config: DataConfig, *, seed: int) -> tuple[AnnData, AnnData | None]:
    """Separate the test part of a split, with the controls of its contexts."""
    index = verify_screen(adata, ScreenKeys(**config.keys | {"cell_embedding_key": None})).index
    test = split.assign(index, seed=seed).test
    if not len(test):
        return adata, None
    contexts = {index.conditions[c].context for c in np.unique(index.condition_of_cell[test])}
    controls = np.concatenate([index.controls(context) for context in sorted(contexts)])
    seen = np.ones(adata.n_obs, dtype=bool)
    seen[test] = False
    held_out = np.sort(np.concatenate([test, controls]))
    return some_cells(adata, seen), some_cells(adata, held_out)


def _add_components(train: AnnData, held_out: AnnData | None, config: DataConfig) -> None:
    """Embed cells in the principal components of the control cells, at unit length.

    They are fitted on control cells, because the embedding replaces one that was pretrained on unperturbed cells.
    """
    from sklearn.decomposition import PCA

    is_control = (train.obs[config.perturbation_key].astype(str) == config.control).to_numpy()
    matrices = [a.X if config.layer is None else a.layers[config.layer] for a in (train, held_out) if a is not None]
    controls, n_components = matrices[0][is_control], config.cell_embedding_components
    if n_components >= (limit := min(controls.shape)):
        raise ValueError(f"data.cell_embedding_components is {n_components}; it must be less than the {limit} genes or "
                         "control cells of the data.")  # fmt: skip
    pca = PCA(n_components, svd_solver="arpack", random_state=0).fit(controls)
    for adata, matrix in zip((train, held_out), matrices, strict=False):
        cells = pca.transform(matrix)
        length = np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-12)
        adata.obsm[config.embedding_key] = (cells / length).astype(np.float32)
