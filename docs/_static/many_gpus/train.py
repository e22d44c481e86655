"""Train one model on several GPUs: torchrun.sh and slurm.sh start this once for each."""

import os
from pathlib import Path

import scanpy as sc

from scvi_tahoe import TahoeST

FOLDER = Path("runs/many")

adata = sc.read_h5ad("screen.h5ad")
TahoeST.setup_anndata(
    adata,
    perturbation_key="target_gene",
    control="non-targeting",
    context_key="cell_line",
)
model = TahoeST(adata, size="small")
last = FOLDER / "last.ckpt"
model.train(
    max_steps=20_000,
    accelerator="gpu",
    devices=int(os.environ["GPUS"]),
    num_nodes=int(os.environ["NODES"]),
    save_dir=FOLDER,
    # started again, a job continues where the last one stopped
    resume_from=last if last.exists() else None,
)
if model.trainer.is_global_zero:
    model.save(FOLDER / "model", overwrite=True)
