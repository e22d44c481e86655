"""Execute tutorials from top to bottom; fail where a cell fails.

python tutorials/run.py                                        # all that need no GPU, with small settings
python tutorials/run.py --write tutorials/1_quick_start.ipynb  # with full settings; stores the outputs
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parent
#: These run with small settings in under six minutes on two cores; the one left out starts processes of its own.
CHECKED = ("1", "2", "3", "4", "5", "6", "7", "9")
SMALL_STEPS = "40"
#: Where a machine keeps its packages and notebooks, which is nobody else's business.
FOLDERS = re.compile(r"/\S+/(?=(?:site-packages|ipykernel_\d+|scvi_tahoe)/)")


def execute(path: Path, folder: Path, *, write: bool) -> str | None:
    """Run a notebook in a folder of its own; return the error, if there is one."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        resources={"metadata": {"path": folder}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        return f"{path.name}: {error}"
    print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)
    if write:
        notebook.metadata.pop("widgets", None)
        for cell in notebook.cells:
            cell.metadata.pop(
                "execution", None
            )  # times of the clock, which change with every run
            for output in cell.get("outputs", []):
                if "text" in output:  # warnings name the file they come from
                    text = output["text"].replace(f"{folder.resolve()}/", "")
                    output["text"] = FOLDERS.sub("", text)
        partial = path.with_suffix(".partial")
        nbformat.write(notebook, partial)
        os.replace(partial, path)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="default: all that need no GPU"
    )
    parser.add_argument(
        "--write", action="store_true", help="store the outputs in the notebooks"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the notebooks run; default: a temporary one"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    paths = chosen.notebooks or sorted(
        p for p in HERE.glob("*.ipynb") if p.name.split("_")[0] in CHECKED
    )
    if not chosen.write:
        os.environ.setdefault("TUTORIAL_STEPS", SMALL_STEPS)
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    for library in (
        "OMP",
        "NUMBA",
    ):  # one thread a notebook, a notebook a core; numba would raise those of PyTorch
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    with (
        tempfile.TemporaryDirectory() as temporary,
        ThreadPoolExecutor(chosen.jobs) as pool,
    ):
        folders = [(chosen.folder or Path(temporary)) / p.stem for p in paths]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        errors = [
            e
            for e in pool.map(
                lambda p, f: execute(p, f, write=chosen.write), paths, folders
            )
            if e
        ]
    if errors:
        sys.exit("\n\n".join(errors))


if __name__ == "__main__":
    main()
