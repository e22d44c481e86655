"""Time to a result: from h5ad files on disk to scores of held-out targets, with the three commands that a user types.

`scvi-tahoe finetune`, `predict` and `evaluate`, each a process of its own whose start-up counts, on the Papalexi
few-shot task with the default model: what was seen is trained on, the twelve targets that were not seen in replicate 3
are predicted there from its control cells and scored against the observed ones, baselines included. Processor seconds
stand beside those of the clock: on a machine that others use too, only they can be compared.

    python benchmarks/time_to_result.py --folder /tmp/result --figure docs/_static/time_to_result.svg
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from scvi_tahoe.datasets import papalexi_few_shot

COLORS = {"finetune": "#4c78a8", "predict": "#f2a65a", "evaluate": "#72b18b"}


def write_task(folder: Path, max_steps: int | None) -> list[list[str]]:
    """Write what a user has, the files and the run; return the three commands."""
    task = papalexi_few_shot()
    keys = {"perturbation_key": task.perturbation_key, "control": task.control, "context_key": task.context_key}
    here = task.train.obs[task.context_key] == task.context
    controls = task.train[here & (task.train.obs[task.perturbation_key] == task.control)]
    for name, cells in (("train", task.train), ("controls", controls), ("observed", task.held_out)):
        cells.copy().write_h5ad(folder / f"{name}.h5ad")
    # without cells to predict, the run trains only; the split is that of `model.train()`
    run = {"name": "papalexi", "data": {"path": str(folder / "train.h5ad"), **keys}}
    if max_steps is not None:
        run["train"] = {"max_steps": max_steps}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    columns = ["--perturbation-key", task.perturbation_key, "--control", task.control]
    columns += ["--context-key", task.context_key]
    targets = [word for target in task.targets for word in ("--perturbation", target)]
    return [
        ["finetune", str(folder / "run.yaml"), "--folder", str(folder / "run"), "--quiet"],
        ["predict", str(folder / "run" / "model"), str(folder / "controls.h5ad"), "-o", str(folder / "predicted.h5ad")]
        + [*targets, "--context", task.context],
        ["evaluate", str(folder / "predicted.h5ad"), str(folder / "observed.h5ad"), *columns]
        + ["--train", str(folder / "train.h5ad"), "-o", str(folder / "scores")],
    ]


def carry_out(command: list[str]) -> dict[str, float]:
    """Run a command; return its seconds on the clock and of the processor."""
    code = f"import sys; sys.argv = {['scvi-tahoe', *command]!r}; from scvi_tahoe.cli import main; main()"
    start, before = time.perf_counter(), os.times()
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    after = os.times()
    if done.returncode:
        raise SystemExit(f"scvi-tahoe {' '.join(command)}\n{done.stdout}\n{done.stderr}")
    print(done.stdout.strip()[-1500:], flush=True)
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return {"clock": time.perf_counter() - start, "processor": processor}


def draw(seconds: dict[str, dict[str, float]], machine: str, path: Path) -> None:
    """Draw the commands one after the other, on the clock and in processor time."""
    figure = Figure(figsize=(7.2, 1.9), layout="constrained")
    axes = figure.subplots()
    for row, kind in enumerate(("processor", "clock")):
        left = 0.0
        for name, spent in seconds.items():
            axes.barh(row, spent[kind], left=left, color=COLORS[name], label=name if row == 0 else None)
            axes.text(left + spent[kind] / 2, row, f"{spent[kind]:.0f}", ha="center", va="center", color="white")
            left += spent[kind]
        axes.text(left, row, f"  {left:.0f} s", va="center")
    axes.set_yticks([0, 1], ["processor time", "on the clock"])
    axes.set_xlabel(f"seconds, {machine}")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, title="scvi-tahoe ...")
    figure.savefig(path)


def main() -> None:
    """Print the table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="A new folder.")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--max-steps", type=int, help="If None, as many as train() takes by default.")
    parser.add_argument("--machine", default=f"{len(os.sched_getaffinity(0))} cores")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    try:
        seconds = {command[0]: carry_out(command) for command in write_task(args.folder, args.max_steps)}
    finally:
        if args.folder.is_dir():
            shutil.rmtree(args.folder)
    for kind in ("clock", "processor"):
        parts = ", ".join(f"{name} {spent[kind]:.1f}" for name, spent in seconds.items())
        print(f"{kind}: {sum(spent[kind] for spent in seconds.values()):.1f} s ({parts})")
    if args.out:
        args.out.write_text(json.dumps(seconds, indent=1))
    if args.figure:
        draw(seconds, args.machine, args.figure)


if __name__ == "__main__":
    main()
