"""Odd values of every argument and option of every command, for ``hardening.py``."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import typer
import yaml
from hardening_formats import RIGHT, judged
from hardening_inputs import ARC, KEYS, RUN, SLOW_SECONDS, SMALL
from typer.testing import CliRunner

from scvi_tahoe import TahoeST, datasets
from scvi_tahoe.cli import app

#: Values that somebody may type, by mistake or not.
ODD = (
    "", " ", "zz", "0", "-1", "1e5", "0.5", "nan", "inf", "9" * 30, "9" * 400, "²", "all", "none", "auto", "=", "a=",
    "=b", "a=zz.csv", "a,b", "--", "-", ".", "..", "/", "~", "/dev/null", "/dev/zero", "pipe", "circle", "folder",
    "empty", "text.txt", "table.csv", "cells.h5ad", "export", "model", "no/such/place", "x" * 300, "x/" * 3000, "a\nb",
    "漢🧬", "$HOME", "%s", "file:///etc/passwd", "https://example.invalid/x", "\u202e", "../../../../etc/passwd",
    "cells.h5ad/x", "\udc80",
)  # fmt: skip
_LABELS = [word for name, value in KEYS.items() for word in (f"--{name.replace('_', '-')}", value)]
#: A command line of each command that is right and short.
BASE: dict[str, list[str]] = {
    "predict": ["predict", "export", "cells.h5ad", "-o", "out.h5ad", "--n-cells", "4", "--overwrite"],
    "evaluate": ["evaluate", "predicted.h5ad", "cells.h5ad", *_LABELS, "--preset", "quick", "--no-baselines"],
    "train": ["train", "cells.h5ad", *_LABELS, "--dry-run"], "init": ["init", "cells.h5ad", "-o", "new.yaml"],
    "finetune": ["finetune", "run.yaml", "--dry-run"], "study": ["study", "case_study", "--dry-run"],
    "check": ["check", "arc.yaml"], "inspect": ["inspect", "log.csv"],
    "convert": ["convert", "export", "converted", "--overwrite"],
    "tables": ["tables", "matrix", "table.csv", "-o", "out.csv", "--overwrite"],
    "respond": [*"respond changes.h5ad --perturbation-key perturbation --quiet -o responses.h5ad --overwrite".split()],
    "plan": ["plan", "cells.h5ad", *_LABELS, "-n", "2"],
    "embed": ["embed", "cells.h5ad", "nothing", "-o", "embedded.h5ad"],
}  # fmt: skip
_TOUCHED = ("text.txt", "empty")  # by a command that is told to replace them


def make_inputs() -> None:
    """Write what the commands read into this folder."""
    cells = datasets.simulate_screen(2, 4, n_genes=40, n_cells=12, n_control_cells=30)
    cells.uns.clear()
    cells.write_h5ad("cells.h5ad")
    TahoeST.setup_anndata(cells, **KEYS)
    model = TahoeST(cells, size=SMALL, set_size=4)
    model.train(max_steps=2, batch_size=2, progress=False)
    model.save("model")
    model.export("export")
    model.predict(n_cells=8, progress=False).write_h5ad("predicted.h5ad")
    model.predict_effects(as_adata=True).write_h5ad("changes.h5ad")
    for name, text in (("table.csv", RIGHT["csv"]), ("log.csv", RIGHT["log"]), ("text.txt", "hello\n"), ("empty", "")):
        Path(name).write_text(text)
    Path("run.yaml").write_text(yaml.safe_dump(RUN))
    Path("arc.yaml").write_text(yaml.safe_dump(ARC))
    Path("folder").mkdir()
    os.mkfifo("pipe")
    Path("circle").symlink_to("circle")


def tries() -> list[tuple[str, list[str]]]:
    """Return command lines, each with one odd value, and which it is."""
    found = []
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, base in BASE.items():
        n_given = next((i for i, word in enumerate(base) if word.startswith("-")), len(base))
        for place in range(1, n_given):
            found += [(f"{name} {base[place]}={odd!r}", [*base[:place], odd, *base[place + 1 :]]) for odd in ODD]
        for option in commands[name].params:
            if option.param_type_name == "option" and option.name != "help" and not option.is_flag:
                flag = max(option.opts, key=len)
                found += [(f"{name} {flag}={odd!r}", [*base, flag, odd]) for odd in ODD]
    return found


def wrong_commands(n: int, part: int, parts: int) -> Counter[str]:
    """Give every command an odd value at a time, and count what it answered, and inputs that are not what they were."""
    found: Counter[str] = Counter()
    make_inputs()
    kept = {p: p.stat().st_size for p in Path().rglob("*") if p.is_file()}
    every = tries()
    random.Random(0).shuffle(every)
    for label, words in every[:n][part::parts]:
        found["tried"] += 1
        begin = time.process_time()
        answer = judged(label[:110], lambda words=words: _run(words))
        found[answer] += 1
        if time.process_time() - begin > SLOW_SECONDS and answer != "slow":
            found["slow"] += 1
        for path, size in kept.items():
            if not path.exists() or (path.stat().st_size != size and path.name not in _TOUCHED):
                found["lost"] += 1
                print(f"lost: {path} by {label[:110]}")
                kept[path] = path.stat().st_size if path.exists() else -1
        kept = {path: size for path, size in kept.items() if size >= 0}
    return found


def _run(words: list[str]) -> None:
    """Run a command; a RuntimeError, which counts as foreign, if it does not end as a command does."""
    answer = CliRunner().invoke(app, words)
    if answer.exception is not None and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    if answer.exit_code not in (0, 1, 2) or (answer.exit_code == 2 and not answer.output.strip()):
        raise RuntimeError(f"exit code {answer.exit_code}: {answer.output[-200:]}")
