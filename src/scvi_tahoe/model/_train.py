"""Training of a model, and what belongs to it: learning rates, adapters, memory."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from scvi_tahoe._arguments import checked
from scvi_tahoe.data import ConditionIndex, cell_set_dataset
from scvi_tahoe.model._predict import PredictMixin
from scvi_tahoe.prediction import PredictionRequest, arguments_for
from scvi_tahoe.response import (
    FEWEST_CONDITIONS,
    NOTHING,
    ResponseStart,
    judging_conditions,
    learn_prior,
    observed_likeness,
    shrinkage_factor,
    wanted_means,
)
from scvi_tahoe.training import (
    UNUSED_OPTIONS,
    TrainingRun,
    TrainOptions,
    begin_adapters,
    end_adapters,
    read_adapters,
    run_learning_rate_test,
    training_data,
    write_adapters,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from lightning.pytorch.loggers import Logger

    from scvi_tahoe.data import Condition, Output, Screen, Split, StoreKind
    from scvi_tahoe.training import LearningRateTest, MemoryPlan, Recipe, TrainingData

logger = logging.getLogger(__name__)


class TrainMixin(PredictMixin):
    """``train``, ``find_learning_rate``, ``memory_plan`` and the adapters of ``recipe='lora'``."""

    @checked(
        max_steps=(1, None),
        lr=(0, None),
        batch_size=(1, None),
        validate_every=(1, None),
        patience=(1, None),
        save_steps=(1, None),
        seed=(0, None),
    )
    def train(  # type: ignore[override]  # noqa: PLR0913
        self,
        max_steps: int | None = None,
        *,
        recipe: Recipe = "freeze_then_unfreeze",
        freeze_backbone: bool | int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        split: Split | None = None,
        validate_every: int | None = None,
        monitor: str = "validation_loss",
        patience: int | None = None,
        save_steps: int | None = None,
        save_dir: str | Path | None = None,
        resume_from: str | Path | None = None,
        logger: str | Logger | Sequence[Logger] | None = "csv",
        store: StoreKind = "auto",
        precision: str | int = "auto",
        compile: bool | Literal["auto", "record"] = "auto",
        shrink_correction: bool = True,
        seed: int = 0,
        progress: bool = True,
        plan_kwargs: Mapping[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model and keep the weights with the best validation.

        Parameters
        ----------
        max_steps
            Optimizer steps. If None, 1,000.
        recipe
            Which parts train when, see :func:`~scvi_tahoe.training.resolve_recipe`. Only tensors with pretrained values
            are ever frozen: a model from scratch trains all of its parts, and refuses ``'heads'``.
        freeze_backbone
            True keeps the pretrained backbone frozen, False trains it from the start, a step unfreezes it at that step.
            If None, the recipe decides. True and a step are refused for a model without pretrained backbone.
        lr
            Peak learning rate. If None, 1e-4 with a prior where perturbations were seen in several contexts or most
            combinations have measured components, else 2e-4 for pretrained weights and 1e-3 from scratch.
        batch_size
            Cell *sets* in a minibatch. If None, 8.
        split
            Split into training, validation and test cells, e.g.
            ``FewShotContext(context="A549", validation=("STAT1",))``. If None, a tenth of the cells of every condition
            is the validation set, or with a prior a tenth of the conditions, if enough perturbations are in several
            contexts; with ``prior='response'`` at least three conditions or perturbations, wherever others say
            something about them.
        validate_every
            Optimizer steps between validations. If None, there are 20 validations.
        monitor
            Metric that decides which weights are kept: ``'validation_loss'``, one of its terms such as
            ``'validation_delta_mse'``, or a score computed at every validation, ``'validation_pds'``,
            ``'validation_pearson_delta'``, ``'validation_overlap'`` (of the genes that change most; a proxy for DES).
        patience
            Stop after this many validations without improvement of ``monitor``. If None, never stop early, but with
            ``prior='response'`` after 5 validations in which the gain on held-out conditions did not grow.
        save_steps
            Steps between checkpoints that are kept in ``save_dir`` in addition to the best and the last, named
            ``step=000400.ckpt``; a multiple of ``validate_every``.
        save_dir
            Folder for ``best.ckpt``, ``last.ckpt`` and ``metrics.csv``. If None, nothing is written.
        resume_from
            Checkpoint of an interrupted run: optimizer, schedule and step continue as if nothing had happened. Nothing
            else ever restores them. If the run was complete, its result is loaded.
        logger
            Loggers in addition to ``model.history``: ``'csv'`` (a file in ``save_dir``), ``'tensorboard'``,
            ``'wandb'``, None, or Lightning loggers.
        store
            Where expression is stored: ``'auto'``, ``'device'``, ``'host'`` or ``'disk'``.
        precision
            As in Lightning, e.g. ``'bf16-mixed'`` or ``'32-true'``; ``'auto'`` is the first on CUDA devices with
            native bfloat16 and the second elsewhere. Weights, norms and losses are float32 in both.
        compile
            How training steps are made fast on GPUs. ``'auto'`` records a step after the third and replays it (CUDA
            graphs) in bfloat16 without ``ema`` and ``accumulate_grad_batches``, on several GPUs with the strategy
            ``'ddp_sharded'``, and elsewhere compiles if that saves more time than it takes. ``'record'`` demands a
            recording, True compiles, and False does neither.
        shrink_correction
            With a prior: multiply the network's correction by the shrinkage factor, from 0 to 1, that fits the
            validation conditions (``model.training_config_["correction_share"]``), if there are three or more whose
            cells do not train; 0 with ``prior='response'`` unless the correction holds for them
            (``model.training_config_["verdict"]`` is a sentence about it). Not with
            ``recipe='lora'``, which leaves the head as it was, nor if no step improved what training started from.
            False keeps the correction as trained.
        seed
            Random seed for the split, the sets and dropout.
        progress
            Whether to show a table of frozen and trainable parameters and a progress bar.
        plan_kwargs
            Further options of :class:`~scvi_tahoe.training.PlanConfig` by name.
        **trainer_kwargs
            Options of :class:`scvi.train.Trainer` and Lightning's trainer, e.g. ``devices``, ``num_nodes`` or
            ``accumulate_grad_batches``. ``strategy`` is ``'ddp_sharded'`` on several devices (the optimizer state is
            shared out), ``'fsdp2'`` (weights and gradients are, too) or one of Lightning's.

        Raises
        ------
        ValueError
            If an option is unknown or out of range, or ``save_dir`` holds a checkpoint of another run.
        """
        options = TrainOptions.of_call(locals())
        screen = self._training_screen()
        run = self._resolved(options, screen.index)
        with run.threads(self.module):
            self._fit(run, screen)

    def _fit(self, run: TrainingRun, screen: Screen) -> None:
        """Carry out a resolved training."""
        seed = run.options.seed
        data = training_data(self._spec(), screen, run, self.module, self.prior, self.criterion)
        adapters, pretrained = begin_adapters(
            self.module, run.plan, adapters=self.adapters_, pretrained=self.pretrained_parameters_
        )
        previous = self.history_ or {}
        likeness = observed_likeness(
            data.expression, screen.index, data.split.train, run.device, parser=self.keys.parser, seed=seed
        )
        self._adopt(
            adapters_=adapters,
            pretrained_parameters_=pretrained,
            prior_=data.prior,
            observed_cosine_={context: found.pop("cosine") for context, found in likeness.items()},
            observed_noise_=likeness,
            history_=dict(previous),  # a copy, as scvi-tools writes into it
            split_=run.split.to_dict(),
        )
        if data.decoder_weight is not None:
            self.module.objective.decoder_weight = data.decoder_weight
            self._adopt(decoder_weight_=data.decoder_weight)
        run.announce(self.module, pretrained, data.minibatches)
        with run.fitting(self.module):
            super().train(
                datamodule=data.minibatches,
                plan_kwargs={
                    "config": run.plan,
                    "pretrained": pretrained,
                    "setting": run.setting,
                    "compiles": run.compiles(self.module),
                    "records": run.records_steps,
                    "shards": run.shards_weights,
                },
                **run.trainer_kwargs(
                    screen.index.conditions,
                    self.genes,
                    run.held_out_gain(data.minibatches.dataset, data.split, pretrained),
                ),
            )
        history, config = run.outcome(self.trainer, previous)
        factor, verdict = self._shrink_correction(run, data, config["best_step"])
        self._adopt(
            history_=history,
            pretrained_parameters_=[name for name, _ in self.module.named_parameters()],
            training_config_={**config, "correction_share": factor, "verdict": verdict},
        )
        if self.prior != "none":
            # which step is best is decided: the conditions that decided it may now tell what their perturbations do
            rows = np.union1d(data.split.train, data.split.validation)
            learned = learn_prior(
                self.prior, self._spec(), screen, rows, seed=seed, device=run.device, like=data.prior,
                criterion=self.criterion,
            )  # fmt: skip
            if isinstance(learned, ResponseStart) and factor is not None:
                learned = replace(learned, judged=frozenset(self._judging_kinds(data) if factor else ()))
            self._adopt(prior_=learned.to_dict())

    @checked()
    def plan_training(self, max_steps: int | None = None, **options: Any) -> TrainingRun:
        """Check all options of a training and fill in their defaults, without training or writing anything.

        Parameters
        ----------
        max_steps, **options
            As in :meth:`train`.

        Returns
        -------
        The resolved options, e.g. ``plan.lr``, ``split``, ``batch_size``, ``device``.

        Raises
        ------
        ValueError
            If an option is unknown, out of range or without effect.
        """
        given = TrainOptions.from_kwargs({"max_steps": max_steps, **options})
        return self._resolved(given, self._training_screen().index)

    def _resolved(self, options: TrainOptions, index: ConditionIndex) -> TrainingRun:
        return TrainingRun.resolve(
            options, spec=self._spec(), index=index, module=self.module, prior=self.prior,
            pretrained=self.pretrained_parameters_, adapters=self.adapters_,
        )  # fmt: skip

    def _judging_kinds(self, data: TrainingData) -> list[str]:
        """Kinds of question of which at least three conditions judge the network."""
        index, spec = data.split.index, self._spec().with_composed(self._training_screen())
        conditions = [index.conditions[i] for i in judging_conditions(data.split)]
        found = Counter(ResponseStart.from_dict(data.prior or {}).kinds(conditions, spec.table))
        return sorted(kind for kind, n in found.items() if n >= FEWEST_CONDITIONS)

    def _shrink_correction(self, run: TrainingRun, data: TrainingData, best_step: int) -> tuple[float | None, str]:
        """Multiply the correction of the trained network by what holds of it for the validation conditions.

        Returns the factor and a sentence about it. Nothing is done without a prior, with ``recipe='lora'``, which
        leaves the head as it was, or if no step improved the start. The prior of ``data`` does not know the validation
        conditions.
        """
        is_response = self.prior == "response"
        if self.prior == "none" or run.plan.recipe == "lora" or not run.options.shrink_correction:
            return None, ""
        if best_step == 0 and not (is_response and self.pretrained_parameters_):
            if is_response:
                logger.info(NOTHING)
            return None, NOTHING if is_response else ""
        seed, prior = run.plan.seed, data.prior or {}
        if is_response:
            prior = {**prior, "judged": self._judging_kinds(data)}

        def predict(output: Output, sizes: Mapping[Condition, int]) -> AnnData:
            request = PredictionRequest(**arguments_for(sizes), output=output, seed=seed, progress=False)
            return self._predicted(request, prior)

        spec, screen = self._spec().with_composed(self._training_screen()), self._training_screen()
        factor, verdict = shrinkage_factor(
            predict, self.keys, data.split, data.expression, run.device, seed=seed,
            known_start=lambda conditions: wanted_means(prior, spec, screen, conditions),
        )  # fmt: skip
        if factor is None and is_response:
            factor = 0.0
            verdict = (
                f"{NOTHING} No conditions are held out to judge it by; shrink_correction=False keeps what it learned."
            )
        logger.info(verdict)
        if factor is not None and factor < 1:
            with torch.no_grad():
                for parameter in self.module.network.head.project.layers[-1].parameters():
                    parameter.mul_(factor)
        return factor, verdict

    @checked()
    def find_learning_rate(
        self,
        *,
        lowest: float = 1e-6,
        highest: float = 1.0,
        n_steps: int = 100,
        recipe: Recipe = "freeze_then_unfreeze",
        batch_size: int | None = None,
        split: Split | None = None,
        store: StoreKind = "auto",
        precision: str | int = "auto",
        seed: int = 0,
        plan_kwargs: Mapping[str, Any] | None = None,
    ) -> LearningRateTest:
        """Suggest a peak learning rate with Lightning's tuner, which trains a copy with a growing rate.

        Parameters
        ----------
        lowest, highest
            Bounds of the rate.
        n_steps
            Optimizer steps between them.
        recipe, batch_size, split, store, precision, seed, plan_kwargs
            As in :meth:`train`. The test covers the parts that the recipe trains first; those that it freezes at first
            stay frozen. ``plan_kwargs`` may not contain options of the schedule, of averages or of logging.

        Returns
        -------
        Losses and rates, with ``suggestion`` (a peak for ``lr``) and ``plot()``. The model itself does not change.

        Raises
        ------
        ValueError
            If an option is unknown or out of range.
        """
        if not 0 < lowest < highest:
            raise ValueError(f"lowest={lowest!r} and highest={highest!r} must be positive rates, the lower one first.")
        if without_effect := sorted({*UNUSED_OPTIONS} & {*(plan_kwargs or {})}):
            raise ValueError(f"plan_kwargs {without_effect} have no effect while the rate grows; leave them out.")
        options = TrainOptions(
            max_steps=n_steps, recipe=recipe, batch_size=batch_size, split=split, validate_every=n_steps, store=store,
            precision=precision, seed=seed, progress=False, plan_kwargs=plan_kwargs,
        )  # fmt: skip
        screen = self._training_screen()
        run = self._resolved(options, screen.index)
        module = copy.deepcopy(self.module)
        data = training_data(self._spec(), screen, run, module, self.prior, self.criterion)
        _, pretrained = begin_adapters(
            module, run.plan, adapters=self.adapters_, pretrained=self.pretrained_parameters_
        )
        if data.decoder_weight is not None:
            module.objective.decoder_weight = data.decoder_weight
        return run_learning_rate_test(module, pretrained, run, data.minibatches, lowest=lowest, highest=highest)

    @checked()
    def save_adapters(self, folder: str | Path) -> None:
        """Write the adapters of ``recipe='lora'`` alone, about a hundredth of a model, for :meth:`load_adapters`.

        Parameters
        ----------
        folder
            Folder for ``adapters.safetensors`` and ``adapters.json``. Tensors that were not loaded from pretrained
            weights, which train together with the adapters, are included.

        Raises
        ------
        ValueError
            If the model carries no adapters.
        """
        write_adapters(self.module, self.adapters_, Path(folder))

    @checked()
    def load_adapters(self, folder: str | Path) -> None:
        """Attach saved adapters to a model with the weights that they were trained on.

        Parameters
        ----------
        folder
            Folder written by :meth:`save_adapters`.

        Raises
        ------
        FileNotFoundError
            If the folder holds no adapters.
        ValueError
            If the model has other weights, or carries adapters already.
        """
        adapters, pretrained = read_adapters(
            self.module, Path(folder), adapters=self.adapters_, pretrained=self.pretrained_parameters_
        )
        self._adopt(adapters_=adapters, pretrained_parameters_=pretrained, is_trained_=True)

    def merge_adapters(self) -> None:
        """Add the adapters to the weights, so that all of the model can train; :meth:`export` does so by itself.

        Raises
        ------
        ValueError
            If the model carries no adapters.
        """
        pretrained = end_adapters(self.module, adapters=self.adapters_, pretrained=self.pretrained_parameters_)
        self._adopt(adapters_=None, pretrained_parameters_=pretrained)

    @checked()
    def memory_plan(
        self, *, batch_size: int | None = None, store: StoreKind = "auto", precision: str | int = "auto",
        **trainer_kwargs: Any,
    ) -> MemoryPlan:  # fmt: skip
        """Estimate the device memory that :meth:`train` needs; training logs it at the start, too.

        Parameters
        ----------
        batch_size, store, precision, **trainer_kwargs
            As in :meth:`train`.

        Returns
        -------
        How many bytes each part takes, such as those that weights and gradients need, and how many are free.
        """
        options = TrainOptions(batch_size=batch_size, store=store, precision=precision, trainer_kwargs=trainer_kwargs)
        screen = self._training_screen()
        run = self._resolved(options, screen.index)
        dataset = cell_set_dataset(
            self._spec().with_composed(screen), screen, run.device, store=store, full_precision=run.full_precision
        )
        return run.memory(self.module, self.pretrained_parameters_, dataset)
