"""`scvi-tahoe demo`: a demonstration that is over in minutes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from scvi_tahoe.cli._terminal import one_line_errors, program, quiet_frameworks

#: that of :func:`scvi_tahoe.demo.run_demo`, which help texts do not wait for
DEFAULT_STEPS = 1_000


def demo(
    folder: Annotated[Path, typer.Option(help="Folder to write, new or of an earlier demo.")] = Path("scvi-tahoe-demo"),
    max_steps: Annotated[int, typer.Option(min=1, help="Optimisation steps.")] = DEFAULT_STEPS,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over in the folder of an earlier demo.")
    ] = False,
) -> None:
    """Train on a real screen, predict held-out perturbations and score them next to simple predictors.

    It takes less than three minutes on two CPU cores; the same command continues a demo that was stopped. It leaves a
    folder with the model, the prediction, the scores, a report and figures, and prints the scores and a verdict.

    \b
    scvi-tahoe demo
    scvi-tahoe demo --folder first --max-steps 200
    """
    quiet_frameworks()
    again = f"{program()} demo --folder {shlex.quote(str(folder))}"
    again += f" --max-steps {max_steps}" if max_steps != DEFAULT_STEPS else ""
    again += f" --seed {seed}" if seed else ""
    with one_line_errors(f"Stopped. What was finished is in {folder}; continue with: {again}"):
        from scvi_tahoe.demo import run_demo, score_table

        result = run_demo(folder, max_steps=max_steps, seed=seed, overwrite=overwrite, report=typer.echo)
    score = float(result.scores["score"]["TahoeST"])
    others = result.scores["score"].drop("TahoeST").dropna()
    best = str(others.idxmax())
    typer.echo(f"\n{score_table(result.scores)}\n\n{result.verdict}\n")
    typer.echo(f"Score {score:.1f}, best simple predictor {others.max():.1f} "
               f"({best}). Took {result.seconds:.0f} s.")  # fmt: skip
    typer.echo(f"Open {result.folder / 'report.html'}")
    typer.echo(f"Your own screen: {program()} train screen.h5ad --perturbation-key ... --control ...")
