"""The command that scores predicted cells against observed ones."""

from __future__ import annotations

import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from scvi_tahoe.cli._terminal import Json, one_line_errors, verify_output


class Policy(StrEnum):
    """What :func:`~scvi_tahoe.evaluate.evaluate` does about a failed check."""

    ERROR = "error"
    WARN = "warn"
    OFF = "off"


def evaluate(  # noqa: PLR0913
    prediction: Annotated[Path, typer.Argument(help="h5ad of predicted cells.")],
    reference: Annotated[Path, typer.Argument(help="h5ad of observed cells, controls included.")],
    perturbation_key: Annotated[str, typer.Option(help="Column of obs with the perturbations.")],
    control: Annotated[str, typer.Option(help="Label of control cells.")],
    context_key: Annotated[str | None, typer.Option(help="Column of obs with the contexts.")] = None,
    combination_separator: Annotated[
        str | None, typer.Option(help="Text between the perturbations of a combination, such as +.")
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="h5ad of the training data, from which most baselines are computed.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Which scores to compute.")] = "vcc2025",
    baseline: Annotated[
        str,
        typer.Option(
            help="Baseline that scores are scaled from: auto (train_mean with --train, control without), train_mean, "
            "control, context_transfer, deviation, additive, cells_quantile, ..., or none."
        ),
    ] = "auto",
    baselines: Annotated[
        bool,
        typer.Option(help="Score every baseline that applies, and print a verdict; each takes as long again."),
    ] = True,
    match_cells: Annotated[
        bool, typer.Option(help="Score as many cells of each condition as were observed, with exact means.")
    ] = True,
    n_draws: Annotated[int, typer.Option(help="Number of random choices of cells over which scores are averaged.")] = 3,
    allow_train: Annotated[
        bool, typer.Option("--allow-train", help="Accept held-out conditions that are also in the training data.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    representation_check: Annotated[
        Policy, typer.Option(help="What to do about a prediction on another scale than the reference.")
    ] = Policy.ERROR,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write the scores to.")] = None,
    html: Annotated[Path | None, typer.Option(help="HTML file to write a report to.")] = None,
    json: Json = False,
) -> None:
    """Score predicted cells against observed ones with cell-eval.

    \b
    scvi-tahoe evaluate predicted.h5ad observed.h5ad --perturbation-key gene --control ctrl
    scvi-tahoe evaluate predicted.h5ad observed.h5ad --perturbation-key gene --control ctrl --train train.h5ad --json
    scvi-tahoe evaluate predicted.h5ad observed.h5ad --perturbation-key gene --control ctrl --train train.h5ad \\
        --baseline deviation --html report.html
    """
    with one_line_errors(), warnings.catch_warnings():
        from scvi_tahoe.evaluate import EvaluationWarning
        from scvi_tahoe.evaluate import evaluate as score
        from scvi_tahoe.study import read_cells

        for path in (output, html):
            verify_output(path, prediction, reference, train)

        # shown with the scores, without the line of code that comes with a warning
        warnings.simplefilter("ignore", EvaluationWarning)
        result = score(
            read_cells(prediction), read_cells(reference), perturbation_key=perturbation_key, control=control,
            context_key=context_key, combination_separator=combination_separator,
            train=read_cells(train) if train else None, preset=preset,
            baseline=None if baseline == "none" else baseline, representation_check=representation_check.value,
            baselines=baselines, match_cells=match_cells, n_draws=n_draws, allow_train=allow_train, seed=seed,
        )  # fmt: skip
        if output:
            result.save(output)
        if html:
            result.to_html(
                html, title=f"Evaluation of {prediction.name}", command=" ".join(["scvi-tahoe", *sys.argv[1:]])
            )
    if json:
        for line in [] if representation_check is Policy.OFF else result.findings:
            typer.echo(line, err=True)
        typer.echo(result.summary.to_json(orient="index", indent=1))
        return
    typer.echo(repr(result))
    if output:
        typer.echo(f"Scores: {output}")
    if html:
        typer.echo(f"Report: {html}")
