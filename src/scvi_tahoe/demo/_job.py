"""The main job from data to scores, as one function that can be stopped and continued."""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scvi_tahoe._arguments import checked
from scvi_tahoe.files import (
    LOCK,
    atomic_write,
    atomic_write_text,
    locked,
    make_folder,
    read_csv,
    read_h5ad,
    read_json,
    remove_partial,
    remove_path,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from matplotlib.figure import Figure

    from scvi_tahoe.datasets import FewShotTask

_LOG = logging.getLogger(__name__)

#: the default of ``TahoeST.train``: nothing in the demo is tuned for its task
DEFAULT_STEPS = 1_000
#: what a finished demo leaves, in the order in which it is written
FILES = ("history.csv", "model", "training_curve.png", "prediction.h5ad", "evaluation", "scores.csv", "deltas.png",
         "report.html")  # fmt: skip
_SETTINGS = "settings.json"


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What :func:`run_demo` leaves in a folder, after so many seconds.

    ``scores`` has one row per predictor and one column per score; means over the held-out targets. ``verdict`` says in
    words what they show.
    """

    folder: Path
    scores: pd.DataFrame
    seconds: float
    verdict: str = ""


@checked(max_steps=(1, None), seed=(0, None))
def run_demo(
    folder: str | Path = "scvi-tahoe-demo",
    *,
    max_steps: int = DEFAULT_STEPS,
    seed: int = 0,
    overwrite: bool = False,
    report: Callable[[str], None] = _LOG.info,
) -> DemoResult:
    """Train `TahoeST` on a real screen, predict held-out perturbations, and score them next to simple predictors.

    The task is :func:`~scvi_tahoe.datasets.papalexi_few_shot`. The folder is left with `model/`, `prediction.h5ad`,
    `scores.csv`, `evaluation/` (every score of every target; :meth:`EvaluationResult.load` reads it), `history.csv`,
    `training_curve.png`, `deltas.png` (predicted against observed changes) and `report.html`. Every file is written
    completely or not at all. A run that was stopped continues when the function is called again with the same
    arguments; a finished one returns its scores at once.

    Parameters
    ----------
    folder
        A new or empty folder, or that of an earlier demo with the same settings.
    max_steps
        Number of optimisation steps.
    seed
        Random seed of the weights, the sampling and the baselines. The same seed on the same machine gives the same
        numbers, with the same number of threads (``OMP_NUM_THREADS``).
    overwrite
        Start over in the folder of an earlier demo.
    report
        Called with a line of text at each step.

    Raises
    ------
    ValueError
        If `max_steps` is below 1, or the folder holds anything but a demo with these settings.
    """
    from scvi_tahoe.datasets import papalexi_few_shot
    from scvi_tahoe.evaluate import EvaluationResult

    start, folder = time.perf_counter(), Path(folder)
    claim_folder(folder, {"max_steps": max_steps, "seed": seed}, overwrite=overwrite)
    if all((folder / name).exists() for name in FILES):
        report(f"{folder} holds a finished demo with these settings; these are its scores. To run it again, overwrite "
               "it or give another folder.")  # fmt: skip
    else:
        with locked(folder):
            _Job(folder, papalexi_few_shot(), max_steps, seed, report).run()
    scores = read_csv(folder / "scores.csv", index_col=0)
    verdict = str(EvaluationResult.load(folder / "evaluation").verdict)
    return DemoResult(folder=folder, scores=scores, seconds=time.perf_counter() - start, verdict=verdict)


def claim_folder(folder: Path, settings: dict[str, object], *, overwrite: bool) -> None:
    """Create the folder, or continue one with the same settings; `overwrite` removes an earlier demo."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the path of a new or empty folder.")
    known = folder / _SETTINGS
    if not known.exists():
        if folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
            raise ValueError(f"{folder} holds files that are not of a demo; give the path of a new or empty folder.")
    elif overwrite:
        for name in (*FILES, "training", _SETTINGS):  # and nothing that somebody else has put there
            remove_path(folder / name)
    elif (earlier := read_json(known)) != settings:
        raise ValueError(f"{folder} holds a demo with other settings ({known.name}: {json.dumps(earlier)}); give "
                         "another folder, or overwrite it.")  # fmt: skip
    make_folder(folder)
    remove_partial(folder)
    if not known.exists():
        atomic_write_text(known, json.dumps(settings) + "\n")


@dataclass(frozen=True)
class _Job:
    """The steps of a run, and what all of them need."""

    folder: Path
    task: FewShotTask
    max_steps: int
    seed: int
    report: Callable[[str], None]

    def run(self) -> None:
        """Run the steps whose files are missing."""
        self.report(
            f"Screen: {self.task.train.n_obs:,} cells and {self.task.train.n_vars} genes to train on; "
            f"{len(self.task.targets)} targets to predict in replicate 3, where none of their cells was seen."
        )
        steps = {
            ("history.csv", "model"): self._train,
            ("training_curve.png",): self._draw_training,
            ("prediction.h5ad",): self._predict,
            ("evaluation", "scores.csv"): self._score,
            ("deltas.png",): self._draw_deltas,
            ("report.html",): self._write_report,
        }
        for names, step in steps.items():
            if not all((self.folder / name).exists() for name in names):
                step()

    def _train(self) -> None:
        import pandas as pd
        import torch

        from scvi_tahoe import TahoeST

        task, scratch = self.task, self.folder / "training"
        TahoeST.setup_anndata(
            task.train, perturbation_key=task.perturbation_key, control=task.control, context_key=task.context_key
        )
        model = TahoeST(task.train, seed=self.seed)
        last = scratch / "last.ckpt"
        resume_from = last if last.exists() else None
        again = ", continued where it was stopped" if resume_from else ""
        self.report(f"Training: {self.max_steps} steps on the {'GPU' if torch.cuda.is_available() else 'CPU'}{again}.")
        # The default split, a tenth of the cells of every condition, chooses the weights: the task's two validation
        # targets have effects so weak that their loss is noise.
        model.train(max_steps=self.max_steps, save_dir=scratch, resume_from=resume_from, seed=self.seed)
        history = pd.concat([model.history[name] for name in ("train_loss", "validation_loss")], axis=1)
        with atomic_write(self.folder / "history.csv") as partial:
            history.sort_index().to_csv(partial, index_label="step")
        model.save(self.folder / "model", overwrite=True)
        shutil.rmtree(scratch, ignore_errors=True)

    def _predict(self) -> None:
        from scvi_tahoe import TahoeST

        self.report("Predicting.")
        task = self.task
        model = TahoeST.load(self.folder / "model", adata=task.train)
        prediction = model.predict(perturbations=list(task.targets), contexts=[task.context], seed=self.seed)
        with atomic_write(self.folder / "prediction.h5ad") as partial:
            prediction.write_h5ad(partial)

    def _score(self) -> None:
        from scvi_tahoe.demo._report import score_beside_baselines

        prediction = read_h5ad(self.folder / "prediction.h5ad")
        scores, result = score_beside_baselines(self.task, prediction, seed=self.seed, report=self.report)
        result.save(self.folder / "evaluation")
        with atomic_write(self.folder / "scores.csv") as partial:
            scores.to_csv(partial)

    def _draw_training(self) -> None:
        from scvi_tahoe.study import log_figure, read_training_log

        log = read_training_log(self.folder / "history.csv", config=self.folder / _SETTINGS)
        self._save(
            log_figure(replace(log, name=f"The weights of step {log.best_step} were kept")), "training_curve.png"
        )

    def _draw_deltas(self) -> None:
        from scvi_tahoe import pl
        from scvi_tahoe.evaluate import EvaluationResult

        result = EvaluationResult.load(self.folder / "evaluation")
        title = (
            f"The six strongest of {len(self.task.targets)} held-out targets, {len(result.effects.genes)} genes each"
        )
        self._save(pl.deltas(result, max_panels=6, n_columns=3, title=title), "deltas.png")

    def _write_report(self) -> None:
        from scvi_tahoe.evaluate import EvaluationResult

        result = EvaluationResult.load(self.folder / "evaluation")
        title = f"Demo: {len(self.task.targets)} targets of replicate 3, in which none of their cells was seen"
        command = f"scvi-tahoe demo --max-steps {self.max_steps} --seed {self.seed}"
        result.to_html(self.folder / "report.html", title=title, command=command)

    def _save(self, figure: Figure, name: str) -> None:
        with atomic_write(self.folder / name) as partial:
            figure.savefig(partial, dpi=150, format="png")
