"""The page's script for several nodes, run by two processes as torchrun and as SLURM start them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scvi_tahoe.datasets import simulate_screen

PAGE = Path(__file__).parents[2] / "docs" / "user_guide" / "speed.md"
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


def script_of_the_page():
    text = re.search(r"```python\n(# train\.py\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert text is not None
    script = text.group(1)
    for old, new in CHANGES.items():
        assert script.count(old) == 1, old
        script = script.replace(old, new)
    return BEFORE + script + AFTER


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def started_by_torchrun():
    run = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    return [([*run, f"--rdzv-endpoint=127.0.0.1:{free_port()}", "train.py"], {})]


def started_by_slurm():
    """What `srun` sets for each task."""
    node = {
        "SLURM_JOB_ID": "20001", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "SLURM_JOB_NODELIST": "localhost",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    tasks = [{**node, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    return [([sys.executable, "train.py"], task) for task in tasks]


@pytest.mark.slow
@pytest.mark.parametrize("started", [started_by_torchrun, started_by_slurm])
def test_two_processes_train_one_model_on_different_sets(started, tmp_path):
    simulate_screen(2, 6, n_genes=40, n_cells=40, n_control_cells=40).write_h5ad(tmp_path / "screen.h5ad")
    (tmp_path / "train.py").write_text(script_of_the_page())
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "LOCAL_RANK", "RANK", "WORLD_SIZE"))}
    processes = [
        subprocess.Popen(
            command, env={**clean, "OMP_NUM_THREADS": "1", **task}, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for command, task in started()
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
    assert (tmp_path / "runs" / "two" / "model" / "model.pt").is_file()
