"""Files of a package that run from registration to the end of training, and in a prediction.

python benchmarks/code_path.py
python benchmarks/code_path.py --model scvi

Counted are calls of functions that are defined in the package's files; module and class bodies, comprehensions and
generator expressions are not. A jump is a call of a function in one file by a function in another, without code of
other packages in between; each pair of caller and called file counts once.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
import threading
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType, ModuleType

COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}


class CodePath:
    """Calls into the functions of a package, by file, while :meth:`recording`."""

    def __init__(self, package: ModuleType) -> None:
        self.root = str(Path(package.__file__).parent) + "/"
        self.calls: Counter[str] = Counter()
        self.jumps: Counter[tuple[str, str]] = Counter()
        self._file_of: dict[CodeType, str | None] = {}

    def file(self, frame: FrameType) -> str | None:
        """File of a function of the package, relative to its root; None for anything else."""
        code = frame.f_code
        if code not in self._file_of:
            is_function = code.co_flags & inspect.CO_NEWLOCALS and code.co_name not in COMPREHENSIONS
            is_own = is_function and code.co_filename.startswith(self.root)
            self._file_of[code] = code.co_filename.removeprefix(self.root) if is_own else None
        return self._file_of[code]

    def _called(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or (file := self.file(frame)) is None:
            return
        self.calls[file] += 1
        caller = frame.f_back
        while caller is not None and caller.f_code.co_name in COMPREHENSIONS:
            caller = caller.f_back
        if caller is not None and (origin := self.file(caller)) is not None and origin != file:
            self.jumps[origin, file] += 1

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Count, also in threads that start meanwhile."""
        threading.setprofile(self._called)
        sys.setprofile(self._called)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)


def run_tahoe(prior: str) -> tuple[CodePath, CodePath]:
    """Paths of `setup_anndata` to the end of `train`, and of `predict`, on a small simulated screen."""
    import scvi_tahoe
    from scvi_tahoe import TahoeST
    from scvi_tahoe.datasets import simulate_screen

    adata = simulate_screen(2, 6, n_genes=60, n_cells=24, n_control_cells=40)
    train, predict = CodePath(scvi_tahoe), CodePath(scvi_tahoe)
    with train.recording():
        TahoeST.setup_anndata(adata, "perturbation", "control", context_key="context", batch_key="batch")
        model = TahoeST(adata, size={"hidden": 16, "n_layers": 1, "intermediate": 32, "n_heads": 2}, prior=prior)
        model.train(max_steps=4, validate_every=2, batch_size=2, progress=False)
    with predict.recording():
        model.predict(progress=False)
    return train, predict


def run_scvi() -> tuple[CodePath, CodePath]:
    """The same of scvi-tools' SCVI, on its synthetic cells; the prediction is `get_normalized_expression`."""
    import scvi

    adata = scvi.data.synthetic_iid()
    train, predict = CodePath(scvi), CodePath(scvi)
    with train.recording():
        scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
        model = scvi.model.SCVI(adata)
        model.train(max_epochs=2, check_val_every_n_epoch=1)
    with predict.recording():
        model.get_normalized_expression()
    return train, predict


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["scvi_tahoe", "scvi"], default="scvi_tahoe")
    parser.add_argument("--prior", default="auto", help="prior of the TahoeST model")
    parser.add_argument("--files", action="store_true", help="list files, their calls and callers")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    paths = run_scvi() if options.model == "scvi" else run_tahoe(options.prior)
    print(f"| {options.model} | files | jumps between files |\n|---|---|---|")
    for what, path in zip(("setup_anndata to end of train", "prediction"), paths, strict=True):
        print(f"| {what} | {len(path.calls)} | {len(path.jumps)} |")
    if options.files:
        for what, path in zip(("training", "prediction"), paths, strict=True):
            print(f"\n{what}: file, calls, called from")
            for file, n_calls in sorted(path.calls.items()):
                print(f"{file:45} {n_calls:8,}  {', '.join(sorted(a for a, b in path.jumps if b == file))}")


if __name__ == "__main__":
    main()
