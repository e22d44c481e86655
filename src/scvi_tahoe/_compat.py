"""Every workaround for scvi-tools, Lightning, anndata and pandas. No features."""

from __future__ import annotations

import logging
import sys
import warnings
import weakref
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd
import rich.pretty  # noqa: F401  scvi-tools < 1.4.3 uses it in view_anndata_setup without importing it
from anndata import AnnData
from mudata import MuData

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from lightning.pytorch import Trainer
    from scvi.data import AnnDataManager

AnnOrMuData: TypeAlias = AnnData | MuData


def history_as_lists(history: dict[str, pd.DataFrame] | None) -> dict[str, Any] | None:
    """Return a training history in plain types.

    scvi-tools pickles ``history_`` with the model, and DataFrames pickled by pandas 3 (scvi-tools 1.5) cannot be read
    by pandas 2 (scvi-tools 1.4). May go when scvi-tools 1.4 is no longer supported.
    """
    return history and {
        name: {"index_name": frame.index.name, "index": frame.index.tolist(), "values": frame.iloc[:, 0].tolist()}
        if isinstance(frame, pd.DataFrame)
        else frame
        for name, frame in history.items()
    }


def history_as_frames(history: dict[str, Any] | None) -> dict[str, pd.DataFrame] | None:
    """Undo :func:`history_as_lists`."""
    return history and {
        name: pd.DataFrame({name: entry["values"]}, index=pd.Index(entry["index"], name=entry["index_name"]))
        if isinstance(entry, dict)
        else entry
        for name, entry in history.items()
    }


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's remarks on hardware, products and its own way of stopping from our users; warnings stay.

    Kept away, too, is the line of scvi-tools (1.4 to 1.5) that calls whatever ends a training, Ctrl-C included, a
    ``NameError``. The exception itself is raised as ever.
    """
    names = ("utilities.rank_zero", "accelerators.cuda", "trainer.connectors.checkpoint_connector")
    levels = {log: log.level for log in (logging.getLogger(f"lightning.pytorch.{name}") for name in names)}
    for log in levels:
        log.setLevel(logging.WARNING)
    try:
        without_line: Any = _WithoutLine(sys.stdout, "Exception raised during training.")
        with warnings.catch_warnings(), redirect_stdout(without_line):
            # loaders hand over row numbers, so worker processes would cost more than they bring
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # every value is logged where it is computed, however short the run is
            warnings.filterwarnings("ignore", message=r"The number of training batches .* is smaller than the logging")
            # recipes freeze parts before training starts, and their dropout is off for good
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
            # which weights shared out by torch 2.13 warn of; nothing in the network is changed in place
            warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
            # what Lightning 2.6 calls in torch 2.13 is Lightning's to change
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            yield
    finally:
        for log, level in levels.items():
            log.setLevel(level)


class _WithoutLine:
    """A text stream that leaves out the line that one `print` begins with a given argument."""

    def __init__(self, stream: TextIO, beginning: str) -> None:
        self._stream, self._beginning = stream, beginning
        self._leaves_out = False

    def write(self, text: str) -> int:
        # print writes its arguments, the spaces between them and the end of the line one by one
        self._leaves_out |= text == self._beginning
        if not self._leaves_out:
            return self._stream.write(text)
        self._leaves_out = "\n" not in text
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def begin_next_epoch(trainer: Trainer) -> None:
    """Let a run that resumes from the end of an epoch go on with the next one.

    Lightning (2.6) ends that epoch a second time where the length of the run is given in steps: hooks run twice, and
    from there on it counts one epoch too many, by which samplers would draw other sets.
    """
    loop = trainer.fit_loop
    loop.epoch_loop.restarting = False
    loop.epoch_progress.increment_completed()
    for part in (loop, loop.epoch_loop):
        part.reset_restart_stage()


def ask_for_sigterm_seldom(trainer: Trainer, every: int = 50) -> None:
    """Let the processes of a run ask each other for a SIGTERM at every 50th minibatch instead of at every one.

    Lightning (2.6) asks before each minibatch and reads the answer from the device, which by then has finished all
    it was given and idles until the next step has been launched. A process still ends at the minibatch after a signal
    of its own.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    ask = getattr(loop, "_broadcast_sigterm_tensor", None)
    if ask is None:  # an older Lightning
        return
    minibatches = count()

    def seldom() -> None:
        if next(minibatches) % every == 0:
            ask()

    loop._broadcast_sigterm_tensor = seldom


def forget_managers_with(model: Any) -> None:
    """Let scvi-tools forget the data of a model when the model is gone; it keeps them as long as the process lives."""
    managers = getattr(type(model), "_per_instance_manager_store", {})
    weakref.finalize(model, managers.pop, model.id, None)


class _Managers(dict[type, "AnnDataManager"]):
    """Managers of data by model class, which copies and pickles of the data leave behind."""

    def __reduce__(self) -> tuple[type[_Managers], tuple[()]]:
        return _Managers, ()


def forget_manager_with_data(model_class: Any, manager: AnnDataManager) -> None:
    """Let scvi-tools forget data that nobody else has any more; it keeps them as long as the process lives.

    The data hold their manager, and the class, which finds the manager of data by their identifier, holds neither.
    """
    known = getattr(model_class, "_setup_adata_manager_store", {})
    if not isinstance(known, weakref.WeakValueDictionary):
        model_class._setup_adata_manager_store = weakref.WeakValueDictionary(known)
    vars(manager.adata).setdefault("_scvi_tahoe_managers", _Managers())[model_class] = manager


def require(module: str, extra: str) -> Any:
    """Import an optional package; an ImportError names the extra that brings it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed for this; install it with: pip install 'scvi-tahoe[{extra}]'") from error
