"""The training plan: optimizer, mode, logging, averaged weights. No data, no freezing rules."""

from __future__ import annotations

import gc
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from scvi_tahoe._compat import ask_for_sigterm_seldom, begin_next_epoch
from scvi_tahoe.nn import have_triton
from scvi_tahoe.training._acceleration import Acceleration
from scvi_tahoe.training._graphed_step import GraphedStep
from scvi_tahoe.training._recipe import (
    Freezing,
    PartSchedule,
    count_parts,
    depth_of,
    learning_rate_share,
    never_trained,
    part_in_run,
    resolve_recipe,
)
from scvi_tahoe.training._rounded_optimizer import RoundedAdamW
from scvi_tahoe.training._sharded_optimizer import ShardedAdamW, ShardedOptimizerStrategy
from scvi_tahoe.training._sharded_weights import copy_to_shard, whole_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn
    from torch.nn import Parameter

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.training._recipe import PlanConfig


class AsyncScalar:
    """A number being copied from the device; reading it later does not make the device wait."""

    def __init__(self, value: Tensor) -> None:
        self._value, self._arrived = value.detach(), None
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def __float__(self) -> float:
        if self._arrived is not None:
            self._arrived.synchronize()
        return float(self._value)


class AveragedWeights:
    """Exponential moving average of a module's parameters.

    After step ``t`` each average moves by ``1 - min(decay, (1 + t) / (10 + t))`` towards its weight, faster at first
    so that initial weights do not remain part of it for long. What is frozen equals its average to the bit.

    Parameters
    ----------
    module
        Module whose parameters are averaged.
    decay
        Fraction of itself that an average keeps at a step, once the run is long enough.

    Notes
    -----
    Polyak & Juditsky 1992, *Acceleration of stochastic approximation by averaging*.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module = module
        self._decay = decay
        self._averages: dict[str, Tensor] = {}
        self._step = 0

    def begin(self, step: int, averages: Mapping[str, Tensor] | None = None) -> None:
        """Start from the weights, or from the averages of the run that is resumed."""
        weights = dict(self._module.named_parameters())
        start = weights if averages is None else averages
        self._averages = {n: start[n].detach().to(p.device, copy=True) for n, p in weights.items()}
        self._step = step

    def update(self, step: int) -> None:
        """Follow the weights, once for each optimizer step."""
        if step == self._step:
            return
        self._step = step
        decay = min(self._decay, (1 + step) / (10 + step))
        weights = [p.detach() for p in self._module.parameters()]
        get_ema_multi_avg_fn(decay)(list(self._averages.values()), weights, step)

    def swap(self) -> None:
        """Exchange weights and averages, without copying."""
        for name, parameter in self._module.named_parameters():
            parameter.data, self._averages[name] = self._averages[name], parameter.data

    @property
    def values(self) -> dict[str, Tensor]:
        """Averages by the names of their parameters."""
        return self._averages


class TahoeTrainingPlan(LightningModule):
    """Trains a :class:`~scvi_tahoe.TahoeSTModule`.

    Parameters
    ----------
    module
        What is trained.
    config
        How.
    pretrained
        Names of the module's parameters that hold pretrained values; only these can be frozen.
    setting
        What else decides the course of the run, in plain values; kept in checkpoints, so that a resumed run can be
        compared with the one it continues.
    compiles
        Compile the network for training steps.
    records
        Record a training step on a GPU in bfloat16, and replay it.
    shards
        Train a copy whose weights are sharded over processes; the module itself gets the result.

    Raises
    ------
    ValueError
        If ``layer_decay`` or ``dropout`` is given and has no effect on this module.
    """

    def __init__(
        self,
        module: TahoeSTModule,
        config: PlanConfig,
        pretrained: Iterable[str] = (),
        setting: Mapping[str, Any] | None = None,
        compiles: bool = False,
        records: bool = False,
        shards: bool = False,
    ) -> None:
        super().__init__()
        # not a submodule
        self._whole = (module.cpu(),) if shards else ()
        self.module: TahoeSTModule = copy_to_shard(module) if shards else module
        module = self.module
        self.config = config
        self.setting = dict(setting or {})
        self.pretrained = frozenset(pretrained)
        self.parts = resolve_recipe(config.recipe, freeze_backbone=config.freeze_backbone, max_steps=config.max_steps)
        config.reject_ineffective(module, self.pretrained)
        self.freezing = Freezing(module, self.parts, self.pretrained)
        self.acceleration = Acceleration(module, compiles=compiles)
        self.average = None if config.ema is None else AveragedWeights(module, config.ema)
        self._averages: dict[str, Tensor] | None = None
        #: the optimizer, if it keeps weights that the module holds rounded
        self._rounding: ShardedAdamW | RoundedAdamW | None = None
        self._graphed: GraphedStep | None = None
        self._records = records
        self._dropout_before: dict[torch.nn.Dropout, float] = {}
        self._waiting: tuple[int, dict[str, Any]] | None = None
        # scvi-tools' TrainRunner sets these
        self.n_obs_training: int | None = None
        self.n_obs_validation: int | None = None
        self._running: dict[str, Tensor] = {}
        self._n_running = 0
        self._random_state: dict[str, Any] | None = None
        self._first_step = 0

    # ---------------------------------------------------------------- mode and freezing

    def on_fit_start(self) -> None:
        """Switch dropout on (neither scvi-tools nor Lightning does after a first training), then freeze."""
        late = [part for part, schedule in self.parts.items() if schedule.unfreeze_at]
        if self.pretrained and late and self._is_distributed and not isinstance(self.trainer.strategy, DDPStrategy):
            kind = type(self.trainer.strategy).__name__
            raise ValueError(
                f"parts {late} are unfrozen in the middle of this run, and {kind} fixes at the start what trains; "
                "give strategy='ddp_sharded', 'fsdp2' or 'ddp', or freeze_backbone=True or False."
            )
        if self._is_distributed:
            ask_for_sigterm_seldom(self.trainer)
        self.module.train()
        self.freezing.begin(self._first_step)  # Lightning restores the step of a resumed run only after this
        self._exchange_gradients(begins=True)
        self.acceleration.begin(str(self.trainer.precision), self.device)
        if self.config.dropout is not None:
            for layer in (m for m in self.module.modules() if isinstance(m, torch.nn.Dropout)):
                self._dropout_before[layer], layer.p = layer.p, self.config.dropout
        if self.average is not None:
            self.average.begin(self.global_step, self._averages)

    def configure_callbacks(self) -> list[Callback]:
        """Return a callback that undoes the freezing on an exception, when Lightning calls no hook of a plan."""
        return [LambdaCallback(on_exception=lambda *_: self.undo_changes())]

    def on_train_start(self) -> None:
        """Start dropout from the seed, or from where a resumed run left it."""
        if self._random_state is None:
            torch.manual_seed(self.config.seed)
            return
        begin_next_epoch(self.trainer)
        torch.set_rng_state(self._random_state["cpu"])
        if (states := self._random_state["cuda"]) and self.device.type == "cuda":
            # a run of the first release saved those of all devices, of which there may be fewer now
            torch.cuda.set_rng_state(states[min(self.device.index, len(states) - 1)], self.device)
        self._random_state = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Unfreeze what is due."""
        if self.freezing.update(self.global_step):
            self._exchange_gradients()
        if self._rounding is not None:
            self._rounding.compact()

    def _exchange_gradients(self, *, begins: bool = False) -> None:
        """Let several processes agree on the tensors that train from this step on, whose gradients they exchange."""
        strategy = self.trainer.strategy
        if isinstance(self._rounding, ShardedAdamW):
            (self._rounding.begin if begins else self._rounding.extend)()
        elif self._is_distributed and isinstance(strategy, DDPStrategy):
            for parameter in self.parameters():  # a view into memory of the exchange so far
                parameter.grad = None
            strategy.model = self
            gc.collect()  # what exchanged gradients so far does so until it is gone
            strategy.configure_ddp()

    def on_train_batch_end(self, *args: Any) -> None:
        """Let the average follow the weights."""
        if self.average is not None:
            self.average.update(self.global_step)

    def on_train_end(self) -> None:
        """Leave the average in the model; the best weights replace it later, if anything validated.

        No memory stays taken, as the model keeps its trainer.
        """
        self._complete_weights()
        if self.average is not None:
            self.average.swap()
            self.average = None
        for parameter in self.module.parameters():
            parameter.grad = None
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()
        for module in self._whole:
            module.load_state_dict(whole_state(self.module))
            self.module = module

    def on_fit_end(self) -> None:
        """Leave nothing of this run behind for the next."""
        self.undo_changes()

    def undo_changes(self) -> None:
        """Restore the module's state before training, except its weights."""
        self.freezing.end()
        self.acceleration.end()
        for layer, probability in self._dropout_before.items():
            layer.p = probability
        self._dropout_before = {}
        if self._graphed is not None:
            self._graphed.forget()
        for module in self._whole:  # nothing else keeps the shards
            self.module, self.acceleration = module, Acceleration(module, compiles=False)
            self.freezing = Freezing(module, self.parts, self.pretrained)
        if self._rounding is not None:  # last, as it needs memory
            self._rounding.end()

    def _complete_weights(self) -> None:
        """Let the module hold the weights with nothing rounded."""
        if self._rounding is not None:
            self._rounding.complete()

    def kept_state(self) -> dict[str, Tensor]:
        """Return the weights that validate and are kept: the averaged ones, if there are any."""
        self._complete_weights()
        averages = {} if self.average is None else self.average.values
        state = whole_state(self) if self._whole else self.state_dict()
        return {**state, **{f"module.{name}": value for name, value in averages.items()}}

    def changing_state(self) -> dict[str, Tensor]:
        """Return what of :meth:`kept_state` the run changes: all but the parameters that stay frozen to its end."""
        names = [name for name, _ in self.module.named_parameters()]
        fixed = never_trained(names, self.parts, self.pretrained, self.module.config.n_layers)
        return {n: v for n, v in self.kept_state().items() if n.removeprefix("module.") not in fixed}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what an uninterrupted run would have continued with."""
        # in all processes the same: each draws as often as the first, which writes
        cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        checkpoint["random_state"] = {"cpu": torch.get_rng_state(), "cuda": cuda}
        checkpoint["plan_config"] = self.config.to_kwargs()
        checkpoint["setting"] = self.setting
        if isinstance(self._rounding, RoundedAdamW):
            checkpoint["state_dict"] = self.kept_state()  # nothing rounded, also where no validation came before
        if self.average is not None:
            # readers of a checkpoint get the weights that were validated
            checkpoint["trained_state"], checkpoint["state_dict"] = checkpoint["state_dict"], self.kept_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it."""
        self._random_state, self._first_step = checkpoint["random_state"], int(checkpoint["global_step"])
        if self.average is not None and checkpoint["global_step"] < self.config.max_steps:
            kept = checkpoint["state_dict"]
            self._averages = {name.removeprefix("module."): value for name, value in kept.items()}
            checkpoint["state_dict"] = checkpoint["trained_state"]  # which Lightning loads after this

    # ---------------------------------------------------------------- steps

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a minibatch."""
        graphed = None if self._graphed is None else self._graphed(batch)
        if graphed is not None:
            # its gradients are there; what is returned has none to pass on
            loss, terms = graphed.loss.requires_grad_(), graphed.terms
        else:
            losses = self.module(batch)[-1]
            loss, terms = losses.loss, losses.extra_metrics
        metrics = {"train_loss": loss.detach()} | {f"train_{k}": v for k, v in terms.items()}
        # kept on the device: reading a number at every step would make the device wait
        for name, value in metrics.items():
            self._running[name] = self._running[name] + value if name in self._running else value
        self._n_running += 1
        return loss

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Forget gradients, unless the optimizer did so at its last step: those of a replayed step are there now."""
        if self._rounding is None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Log the loss of held-out cells; returns the predicted cells, for callbacks that score them."""
        _, generated, losses = self.module(batch)
        metrics = {"validation_loss": losses.loss} | {f"validation_{k}": v for k, v in losses.extra_metrics.items()}
        # Lightning (2.6) rounds the mean number of sets of a process down to a whole number, which it is like this
        weight = losses.n_obs_minibatch * self.trainer.world_size
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=weight, sync_dist=self._is_distributed)
        return {"prediction_SNG": generated["prediction_SNG"]}

    def on_validation_start(self) -> None:
        """Log what is pending, as the device is about to synchronise anyway."""
        self._log_waiting()
        self.acceleration.pause()
        self._complete_weights()
        if self.average is not None:
            self.average.swap()

    def on_validation_end(self) -> None:
        """Continue training."""
        self.acceleration.resume()
        if self.average is not None:
            self.average.swap()

    def on_train_epoch_end(self) -> None:
        """Log the means over the epoch."""
        self._log_waiting()
        if self._n_running:
            means = {name: total / self._n_running for name, total in self._running.items()}
            self.log_dict(means, on_step=False, on_epoch=True, sync_dist=self._is_distributed)
        self._running, self._n_running = {}, 0

    @property
    def _is_distributed(self) -> bool:
        return self.trainer.world_size > 1

    # ---------------------------------------------------------------- optimizer

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip by norm, and log the norm and the rates of this step now and then.

        Here, because Lightning refuses to clip for a fused optimizer in bf16.
        """
        limit = float("inf") if self.config.gradient_clip is None else self.config.gradient_clip
        if self._rounding is not None:
            norm = self._rounding.reduce_gradients(limit)
        else:
            norm = torch.nn.utils.clip_grad_norm_([p for p in self.module.parameters() if p.grad is not None], limit)
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self.global_step % self.config.log_every:
            return
        metrics = {f"lr_{g['name']}": g["lr"] for g in optimizer.param_groups}
        metrics |= {"weight_decay": self.config.weight_decay, "gradient_norm": AsyncScalar(norm)}
        self._log_waiting()
        self._waiting = (self.global_step, metrics)

    def _log_waiting(self) -> None:
        """Log the last rates and norm, at least a step after they were computed, so that the device need not wait."""
        if self._waiting is None:
            return
        step, metrics = self._waiting
        self._waiting = None
        for logger in self.trainer.loggers:
            logger.log_metrics({name: float(value) for name, value in metrics.items()}, step=step)

    def configure_optimizers(self) -> dict[str, Any]:
        """Set up AdamW over all parameters, one group for each part, depth and kind, each with its own schedule."""
        groups = self.parameter_groups()
        # a fused optimizer takes scaled gradients of float16, which cannot be clipped
        device = next(self.module.parameters()).device
        fused = device.type in ("cpu", "cuda") and self.trainer.precision != "16-mixed"
        described = [{"params": g["params"], "weight_decay": g["weight_decay"], "name": g["name"]} for g in groups]
        options: dict[str, Any] = {n: getattr(self.config, n) for n in ("lr", "betas", "eps")}
        options |= {"fused": fused, "foreach": None if fused else False}
        optimizer: torch.optim.AdamW
        if isinstance(self.trainer.strategy, ShardedOptimizerStrategy):
            # gradients come from products of 16 bits, so that exchanging them in as many loses next to nothing
            precision = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
            optimizer = self._rounding = ShardedAdamW(
                described, precision=precision, rounded=self._only_in_products() if precision else (), **options
            )
            self._graphed = GraphedStep(self.module) if self._records else None
        elif self._rounds_on_one_gpu(device) and (rounded := self._only_in_products()):
            optimizer = self._rounding = RoundedAdamW(described, precision=torch.bfloat16, rounded=rounded, **options)
            self._graphed = GraphedStep(self.module) if self._records else None
        else:
            optimizer = torch.optim.AdamW(described, **options)
        shapes = [self._shape(g["schedule"], g["rate"]) for g in groups]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, shapes)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rounds_on_one_gpu(self, device: torch.device) -> bool:
        one = isinstance(self.trainer.strategy, SingleDeviceStrategy)
        return one and device.type == "cuda" and self.trainer.precision == "bf16-mixed" and have_triton()

    def _only_in_products(self) -> list[Parameter]:
        """Return the weights that training rounds for its products and uses nowhere else."""
        if self.average is not None or self.trainer.accumulate_grad_batches > 1:
            return []  # averages follow the weights themselves; gradients of 16 bits would not add up
        layers = (layer for layer in self.module.modules() if isinstance(layer, torch.nn.Linear))
        return [cast("Parameter", layer.weight) for layer in layers]

    def _shape(self, schedule: PartSchedule, rate: float) -> Any:
        config = self.config
        start = config.max_steps if schedule.unfreeze_at is None else schedule.unfreeze_at
        share = partial(
            learning_rate_share, schedule=config.schedule, start=start, end=config.max_steps, warmup=config.warmup,
            floor=config.min_lr_ratio,
        )  # fmt: skip
        return lambda step: rate * share(step)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group parameters by what they have in common: part, weight decay, schedule, fraction of the learning rate."""
        n_blocks = self.module.config.n_layers
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in self.module.named_parameters():
            # what holds no pretrained values is never frozen and takes the full rate, wherever it stands
            part = part_in_run(name, self.pretrained, n_blocks)
            schedule = self.parts.get(part, PartSchedule())
            depth = depth_of(name, n_blocks) if self.config.layer_decay < 1 else 0
            decays = parameter.ndim >= 2 and not (name.endswith("token") or ".batch_encoder." in name)
            label = part + (f"_depth{depth}" if depth else "") + ("" if decays else "_no_decay")
            rate, decay = schedule.rate * self.config.layer_decay**depth, self.config.weight_decay if decays else 0.0
            new = {"name": label, "schedule": schedule, "rate": rate, "weight_decay": decay, "params": []}
            groups.setdefault(label, new)["params"].append(parameter)
        return list(groups.values())

    def describe(self) -> str:
        """Return a table of parameters by part: how many are frozen at the start, when they train, at which rate."""
        sizes = {n: p.numel() for n, p in self.module.named_parameters()}
        return count_parts(sizes, self.parts, self.pretrained, self.module.config.n_layers)
