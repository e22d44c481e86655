"""What a training looks like from inside."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import zlib
from contextlib import suppress

import lightning.pytorch as pl
import pytest
import torch
from filelock import FileLock


class Spy(pl.Callback):
    """Calls a function of (trainer, plan) after every minibatch and keeps what it returns."""

    def __init__(self, look, *, at_start=False):
        self.look, self.seen = look, []
        self.at_start = at_start

    def on_train_batch_start(self, trainer, plan, *args):
        if self.at_start:
            self.seen.append(self.look(trainer, plan))

    def on_train_batch_end(self, trainer, plan, *args):
        if not self.at_start:
            self.seen.append(self.look(trainer, plan))


class Interrupt(pl.Callback):
    """Ctrl-C after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture
def spy():
    return Spy


@pytest.fixture
def interrupt():
    return Interrupt


@pytest.fixture
def weights():
    """A copy of all tensors of a model."""
    return lambda model: {k: v.clone() for k, v in model.module.state_dict().items()}


@pytest.fixture
def pretrained(make_model):
    """A model whose tensors all count as pretrained, but for those whose name contains a text."""

    def make(*, new=None, **options):
        model = make_model(**options)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # the last layer of the head starts at zero, where nothing below it has a gradient
            for parameter in model.module.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        names = [n for n, _ in model.module.named_parameters()]
        model.pretrained_parameters_ = [n for n in names if new is None or new not in n]
        return model

    return make


@pytest.fixture(scope="session")
def clean_environment():
    """Return the environment without what a launcher says of a process among others.

    Lightning leaves that behind in a process in which an earlier test trained.
    """
    said = ("SLURM", "LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_", "TORCHELASTIC")
    return lambda: {name: value for name, value in os.environ.items() if not name.startswith(said)}


@pytest.fixture(scope="session")
def free_port():
    """Find a port that nobody listens on, and that the system gives to no outgoing connection before it is used."""

    def find():
        for port in random.SystemRandom().sample(range(15_000, 32_000), 50):
            with socket.socket() as tried, suppress(OSError):
                tried.bind(("", port))
                return str(port)
        raise OSError("no port is free")

    return find


@pytest.fixture(scope="session")
def folder_of_script(tmp_path_factory, clean_environment, free_port):
    """Run a script that starts several processes to its end, once for all workers; returns the folder it wrote to."""

    def run(text):
        base = tmp_path_factory.getbasetemp()
        root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        folder = root / f"script_{zlib.crc32(text.encode())}"
        with FileLock(f"{folder}.lock"):
            if not (folder / "done").exists():
                folder.mkdir(exist_ok=True)
                (folder / "script.py").write_text(text)
                result = subprocess.run(
                    [sys.executable, str(folder / "script.py"), str(folder)],
                    capture_output=True, text=True, timeout=300, check=False,
                    env={**clean_environment(), "OMP_NUM_THREADS": "1", "MASTER_PORT": free_port()},
                )  # fmt: skip
                assert result.returncode == 0, result.stderr[-3000:]
                (folder / "done").touch()
        return folder

    return run
