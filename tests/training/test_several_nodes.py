"""The files of the page "Many GPUs", run on two nodes as torchrun and as SLURM start them, here on one machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scvi_tahoe.datasets import simulate_screen

FILES = Path(__file__).parents[2] / "docs" / "_static" / "many_gpus"
#: what is other here than on a cluster: the machine has no GPU, and little time
CHANGES = {
    'perturbation_key="target_gene"': 'perturbation_key="perturbation"',
    'control="non-targeting"': 'control="control"',
    'context_key="cell_line"': 'context_key="context"',
    'TahoeST(adata, size="small")': 'TahoeST(adata, size=SIZE, set_size=8, prior="none")',
    "max_steps=20_000": "max_steps=3, batch_size=2, validate_every=3, progress=False, callbacks=[Seen()]",
    'accelerator="gpu"': 'accelerator="cpu"',
}
BEFORE = """
import torch
from lightning.pytorch import Callback

SIZE = {"hidden": 16, "n_layers": 1, "intermediate": 32, "n_heads": 2}


class Seen(Callback):
    sets = []

    def on_train_batch_start(self, trainer, plan, batch, *args):
        self.sets += [tuple(cells.sum(1).tolist()) for cells in batch["observed_SNX"]]


"""
AFTER = """
rank = model.trainer.global_rank
weights = model.module.state_dict()
torch.save({"sets": Seen.sets, "weights": weights, "ranks": model.trainer.world_size}, f"rank{rank}.pt")
"""
#: starts one task on each of two nodes, as SLURM's does, and ends all of them if one fails
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] && shift
for i in 0 1; do SLURM_PROCID=$i SLURM_NODEID=$i SLURM_LOCALID=0 "$@" & done
wait -n || { kill $(jobs -p); exit 1; }
wait -n
"""


def started_by_torchrun(free_port):
    """One agent on each node."""
    node = {"GPUS": "1", "NODES": "2", "FIRST": "127.0.0.1", "PORT": free_port()}
    return [(["bash", "torchrun.sh"], node)] * 2


def started_by_slurm(free_port):
    """What SLURM sets for a job."""
    job = {
        "SLURM_JOB_ID": "20001", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2", "SLURM_NODELIST": "localhost", "SLURM_JOB_NODELIST": "localhost",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(),
    }  # fmt: skip
    return [(["bash", "slurm.sh"], job)]


@pytest.mark.slow
@pytest.mark.parametrize("started", [started_by_torchrun, started_by_slurm])
def test_two_nodes_train_one_model_on_different_sets(started, clean_environment, free_port, tmp_path):
    simulate_screen(2, 6, n_genes=40, n_cells=40, n_control_cells=40).write_h5ad(tmp_path / "screen.h5ad")
    script = (FILES / "train.py").read_text()
    for old, new in CHANGES.items():
        assert script.count(old) == 1, old
        script = script.replace(old, new)
    (tmp_path / "train.py").write_text(BEFORE + script + AFTER)
    for name in ("torchrun.sh", "slurm.sh"):
        (tmp_path / name).write_text((FILES / name).read_text())
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    clean = clean_environment()
    path = f"{tmp_path}:{Path(sys.executable).parent}:{clean['PATH']}"
    processes = [
        subprocess.Popen(
            command, env={**clean, "OMP_NUM_THREADS": "1", "PATH": path, **node}, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for command, node in started(free_port)
    ]  # fmt: skip
    try:
        for process in processes:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output[-3000:]
    finally:
        for process in processes:
            process.kill()
    first, second = (torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in range(2))
    assert first["ranks"] == second["ranks"] == 2
    assert len(first["sets"]) == len(second["sets"]) == 6
    assert not set(first["sets"]) & set(second["sets"])
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())
    assert (tmp_path / "runs" / "many" / "model" / "model.pt").is_file()


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sh"])
def test_the_files_for_clusters_are_valid(name):
    text = (FILES / name).read_text()
    subprocess.run(["bash", "-n", FILES / name], check=True)
    assert "set -euo pipefail" in text
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    # Lightning starts no processes itself there: one task for each card
    assert asked.get("ntasks-per-node") == asked.get("gpus-per-node")
