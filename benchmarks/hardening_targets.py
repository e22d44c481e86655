"""Names that writers are given, for ``hardening.py``: folders, links, devices, and names that nothing has."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from hardening_formats import HANG_SECONDS, Hang
from hardening_inputs import KEYS, RUN, SMALL, is_ours
from typer.testing import CliRunner

import scvi_tahoe
from scvi_tahoe import TahoeEnsemble, TahoeST, datasets, evaluate, pl, tables
from scvi_tahoe.cli import app
from scvi_tahoe.response import ResponseModel
from scvi_tahoe.study import TahoeRun, finetune, look_at_screen, write_new_run

if TYPE_CHECKING:
    from collections.abc import Callable


class ShellError(ValueError):
    """A command that ended with another exit code than 0."""


_OURS = b"somebody's thesis"


def targets() -> dict[str, Callable[[Path, str], Any]]:
    """Return makers of names in a folder, ``make(folder, ending)``."""

    def with_thesis(path: Path) -> Path:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_OURS)
        return path

    def full_folder(folder: Path, ending: str) -> Path:
        return with_thesis(folder / f"t{ending}" / "thesis.txt").parent

    def linked(folder: Path, ending: str, target: Path) -> Path:
        (folder / f"t{ending}").symlink_to(target)
        return folder / f"t{ending}"

    def bound(folder: Path, ending: str) -> Path:
        here = Path.cwd()
        os.chdir(folder)
        socket.socket(socket.AF_UNIX).bind(f"t{ending}")
        os.chdir(here)
        return folder / f"t{ending}"

    def made(path: Path, make: Callable[[Path], object]) -> Path:
        make(path)
        return path

    def inside(folder: Path, name: str) -> str:
        os.chdir(folder)
        return name

    return {
        "full folder": full_folder, "empty folder": lambda d, e: made(d / f"t{e}", Path.mkdir),
        "foreign file": lambda d, e: with_thesis(d / f"t{e}"), "link to itself": lambda d, e: linked(d, e, d / f"t{e}"),
        "link to nothing": lambda d, e: linked(d, e, d / "nothing"), "link to a file": lambda d,
        e: linked(d, e, with_thesis(d / "real")), "link to a folder": lambda d,
        e: linked(d, e, with_thesis(d / "real" / "thesis.txt").parent), "pipe": lambda d,
        e: made(d / f"t{e}", os.mkfifo), "device": lambda d,
        e: made(d / f"t{e}", lambda p: os.mknod(p, 0o20666, os.makedev(1, 3))), "socket": bound,
        "file as folder": lambda d, e: with_thesis(d / "f") / f"t{e}", "file above the folder": lambda d,
        e: with_thesis(d / "f") / "g" / f"t{e}", "256 bytes": lambda d, e: d / ("x" * (256 - len(e)) + e),
        "240 bytes": lambda d, e: d / ("x" * (240 - len(e)) + e), "240 bytes of accents": lambda d,
        e: d / ("é" * ((240 - len(e)) // 2) + e), "220 bytes": lambda d, e: d / ("x" * (220 - len(e)) + e),
        "5,000 bytes": lambda d, e: d / Path(*["x" * 200] * 25) / f"t{e}", "newline": lambda d, e: d / f"a\nb{e}",
        "NUL": lambda d, e: f"{d}/a\0b{e}", "half a character": lambda d, e: f"{d}/a\ud800{e}", "byte": lambda d,
        e: f"{d}/a\udc80{e}", "no name": lambda d, e: "", "here": lambda d, e: inside(d, "."), "above": lambda d,
        e: inside(made(d / "s", Path.mkdir), ".."), "slash at the end": lambda d, e: f"{d}/t{e}/",
        "two slashes": lambda d, e: f"{d}//t{e}", "proc": lambda d, e: f"/proc/self/nothing{e}", "sys": lambda d,
        e: f"/sys/t{e}", "space": lambda d, e: d / f" {e}", "dash": lambda d, e: inside(d, f"-t{e}"), "glob": lambda d,
        e: d / f"[a]*?{e}", "percent": lambda d, e: d / f"%s{{x}}%d{e}", "temporary": lambda d,
        e: d / f".partial-1.aaaaaaaa-t{e}", "name alone": lambda d, e: inside(d, f"t{e}"),
        "folder of a link to nothing": lambda d, e: linked(d, "l", d / "no") / f"t{e}",
        "folder of a link to itself": lambda d, e: linked(d, "l", d / "tl") / f"t{e}", "new folders": lambda d,
        e: d / "a" / "b" / f"t{e}", "full device": lambda d, e: "/dev/full", "Chinese": lambda d, e: d / f"漢é🧬{e}",
        "tilde": lambda d, e: inside(d, f"~nobody/t{e}"), "folder up": lambda d, e: d / "s" / ".." / f"t{e}",
        "dot": lambda d, e: d / f".{e}", "URL": lambda d, e: inside(d, f"https://example.invalid/t{e}"),
        "other ending": lambda d, e: d / "t.exe", "no ending": lambda d, e: d / "t", "capitals": lambda d,
        e: d / f"T{e.upper()}", "hard link": lambda d,
        e: made(d / f"t{e}", lambda p: os.link(with_thesis(d / "real"), p)), "read-only file": lambda d,
        e: made(with_thesis(d / f"t{e}"), lambda p: p.chmod(0o400)), "number": lambda d, e: 5, "bytes": lambda d,
        e: str(d / f"t{e}").encode(), "None": lambda d, e: [],
    }  # fmt: skip


def writers(place: Path) -> dict[str, tuple[Callable[[Any, bool], object], str]]:
    """Return everything that writes a name, ``write(path, overwrite)``, with the ending of it."""
    cells = datasets.simulate_screen(2, 4, n_genes=40, n_cells=12, n_control_cells=30)
    cells.uns.clear()
    cells.write_h5ad(place / "cells.h5ad")
    TahoeST.setup_anndata(cells, **KEYS)
    model = TahoeST(cells, size=SMALL, set_size=4)
    model.train(max_steps=2, batch_size=2, progress=False)
    model.save(place / "base")
    model.export(place / "export")
    with_adapters = TahoeST.load(place / "base", cells)
    with_adapters.train(max_steps=2, batch_size=2, progress=False, recipe="lora")
    result = model.evaluate(cells, preset="quick", allow_train=True, progress=False)
    changes = model.predict_effects(as_adata=True)
    changes.write_h5ad(place / "changes.h5ad")
    keys = {name: KEYS[name] for name in ("perturbation_key", "context_key")}
    fitted = ResponseModel.fit(changes, **keys, progress=False)
    predicted = model.predict(n_cells=8, progress=False)
    predicted.write_h5ad(place / "predicted.h5ad")
    table = pd.DataFrame(np.eye(4, 3), index=list("ABCD"), columns=list("xyz"))
    table.to_csv(place / "table.csv")
    (place / "log.csv").write_text("step,train_loss,val_loss\n" + "".join(f"{i},1,2\n" for i in range(9)))
    run = TahoeRun.from_dict(RUN)
    labels = [word for name, value in KEYS.items() for word in (f"--{name.replace('_', '-')}", value)]

    labelled: dict[str, Any] = {name: KEYS[name] for name in ("perturbation_key", "control")}
    modelled = (place / "export", place / "cells.h5ad")

    def shell(*words: Any) -> None:
        answer = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        if answer.exit_code:
            raise ShellError(answer.exit_code, answer.output)

    def flag(overwrite: bool) -> list[str]:
        return ["--overwrite"] if overwrite else []

    submitted: dict[str, Any] = {"year": 2025, "genes": list(cells.var_names), **labelled}
    scored = (place / "predicted.h5ad", place / "cells.h5ad", *labels, "--preset", "quick", "--no-baselines")
    responses = (place / "changes.h5ad", "--perturbation-key", "perturbation", "--quiet")
    some: dict[str, Any] = {"progress": False, "n_cells": 8}

    def train(path: Any, _: bool) -> None:
        TahoeST(cells, size=SMALL, set_size=4).train(max_steps=1, batch_size=2, progress=False, save_dir=path)

    return {
        "save": (lambda p, o: model.save(p, overwrite=o), ""),
        "export": (lambda p, o: model.export(p, overwrite=o), ""),
        "ensemble": (lambda p, o: TahoeEnsemble([model, model]).save(p, overwrite=o), ""),
        "adapters": (lambda p, o: with_adapters.save_adapters(p), ""),
        "prediction": (lambda p, o: model.predict(path=p, overwrite=o, **some), ".h5ad"),
        "zarr": (lambda p, o: model.predict(path=p, overwrite=o, **some), ".zarr"),
        "store": (lambda p, o: scvi_tahoe.write_store(place / "cells.h5ad", p, **KEYS, overwrite=o), ""),
        "result": (lambda p, o: result.save(p), ""), "page": (lambda p, o: result.to_html(p), ".html"),
        "response": (lambda p, o: fitted.save(p, overwrite=o), ""),
        **{f"table {e}": (lambda p, o: tables.write_table(table, p), e) for e in (".parquet", ".csv", ".tsv", ".npz")},
        "run file": (lambda p, o: run.to_yaml(p), ".yaml"),
        "new run file": (lambda p, o: write_new_run(look_at_screen(place / "cells.h5ad"), p), ".yaml"),
        "submission": (lambda p, o: scvi_tahoe.submission(predicted, p, **submitted), ".h5ad"),
        "figure": (lambda p, o: result.plot("bars", save=p), ".png"),
        "pdf": (lambda p, o: pl.bars(result, save=p), ".pdf"),
        "benchmark": (lambda p, o: evaluate.write_scperturbench(predicted, cells, p, **labelled), ".h5ad"),
        "training": (train, ""), "run": (lambda p, o: finetune(run, p, progress=False, report=lambda _: None), ""),
        "shell predict": (lambda p, o: shell("predict", *modelled, "-o", p, "--n-cells", 8, *flag(o)), ".h5ad"),
        "shell evaluate": (lambda p, o: shell("evaluate", *scored, "-o", p), ""),
        "shell page": (lambda p, o: shell("evaluate", *scored, "--html", p), ".html"),
        "shell convert": (lambda p, o: shell("convert", place / "export", p, *flag(o)), ""),
        "shell store": (lambda p, o: shell("convert", modelled[1], p, *labels, "--no-progress", *flag(o)), ""),
        "shell tables": (lambda p, o: shell("tables", "matrix", place / "table.csv", "-o", p, *flag(o)), ".csv"),
        "shell init": (lambda p, o: shell("init", place / "cells.h5ad", "-o", p), ".yaml"),
        "shell respond": (lambda p, o: shell("respond", *responses, "-o", p, *flag(o)), ".h5ad"),
        "shell plan": (lambda p, o: shell("plan", place / "cells.h5ad", *labels, "-n", 2, "-o", p), ".csv"),
        "shell figure": (lambda p, o: shell("inspect", place / "log.csv", "--figure", p), ".png"),
    }  # fmt: skip


_SLOW = ("run", "training", "shell evaluate", "shell page", "shell plan", "shell respond", "new run file", "shell init")


def odd_targets(part: int, parts: int) -> Counter[str]:
    """Let every so-manieth writer write to every name, and count what it answered, lost or left."""
    found: Counter[str] = Counter()
    here = Path.cwd()
    place = Path(tempfile.mkdtemp(dir=here))
    for name, (write, ending) in [*writers(place).items()][part::parts]:
        inputs = {p: p.stat().st_size for p in place.rglob("*") if p.is_file()}
        for kind, make in targets().items():
            for overwrite in (False,) if name in _SLOW else (False, True):
                os.chdir(here)
                folder = Path(tempfile.mkdtemp(dir=here))
                found["tried"] += 1
                answer = _written(f"{name} to {kind}, {overwrite}", write, make, folder, ending, overwrite)
                found[answer] += 1
                os.chdir(here)
                shutil.rmtree(folder, ignore_errors=True)
        lost = [p for p, size in inputs.items() if not p.exists() or p.stat().st_size != size]
        found["lost"] += len(lost)
        if lost:
            print(f"lost: {name}: {lost[:3]}")
    return found


def _written(label: str, write: Any, make: Any, folder: Path, ending: str, overwrite: bool) -> str:
    """Write once, and say what became of it and of what was there before."""
    path = make(folder, ending)
    before = {p: p.lstat().st_mode for p in folder.rglob("*") if not p.is_symlink()}
    texts = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p.read_bytes() == _OURS]
    around = set(os.listdir("/")) | set(os.listdir("/dev"))

    def alarm(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, alarm)
    signal.alarm(HANG_SECONDS)
    answer = "taken"
    try:
        write(path, overwrite)
    except Hang:
        answer = "hang"
    except Exception as error:  # noqa: BLE001  judged
        said = (
            is_ours(error) if not isinstance(error, ShellError) else error.args[0] == 2 and "Errno" not in error.args[1]
        )
        answer = "refused" if said else "foreign"
        if answer == "foreign":
            print(f"foreign: {label}: {type(error).__name__}: {str(error)[:160]!r}")
    finally:
        signal.alarm(0)
    os.chdir(folder)
    gone = [p.name for p in texts if not p.exists() or p.read_bytes() != _OURS]
    kind = label.split(" to ")[1].split(",")[0]
    may_replace = answer == "taken" and kind in ("foreign file", "hard link", "read-only file", "slash at the end")
    gone = [] if may_replace else gone
    gone += [p.name for p, mode in before.items() if not p.exists() or p.lstat().st_mode >> 12 != mode >> 12]
    left = [p.name for p in folder.rglob(".partial-*") if ".aaaaaaaa-" not in p.name]
    left += sorted((set(os.listdir("/")) | set(os.listdir("/dev"))) - around)
    if answer == "hang":
        print(f"hang: {label}")
    if gone or left:
        answer = "lost" if gone else "left over"
        print(f"{answer}: {label}: {[name[:40] for name in gone or left]}")
    return answer
