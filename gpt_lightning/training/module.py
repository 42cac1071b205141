"""The LightningModule: loss, perplexity, optimizer and schedule of a GPT."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from gpt_lightning.data.windows import Batch
from gpt_lightning.errors import DivergedError
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT
from gpt_lightning.models.loss import cross_entropy, perplexity
from gpt_lightning.training.optimizers import OptimizerConfig, learning_rate_factor, make_adamw, total_norm

EVALUATED = ("val", "train_eval")  # by the data module's loaders


class GPTModule(LightningModule):
    """Trains and evaluates a GPT on windows of token ids.

    Args:
        config: The architecture of the network.
        optimizer: AdamW and its schedule.
        compile: Whether to run the network through `torch.compile`.
        activation_checkpointing: See `GPT`; for a new network.
        total_steps: Optimizer steps of the whole run, where the cosine ends.
        network: A network with weights to start from; None builds one with random weights when training starts.
    """

    def __init__(
        self,
        config: GPTConfig,
        optimizer: OptimizerConfig | None = None,
        *,
        compile: bool = False,  # noqa: A002  torch's word
        activation_checkpointing: bool = False,
        total_steps: float = math.inf,
        network: GPT | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.optimizer_config = optimizer or OptimizerConfig()
        switches = {"compile": compile, "activation_checkpointing": activation_checkpointing}
        # The settings model.* of a checkpoint. A LearningRateFinder replaces the learning rate here.
        self.save_hyperparameters({**asdict(config), **asdict(self.optimizer_config), **switches}, logger=False)
        self.total_steps = total_steps
        self.evaluated: dict[str, float] = {}  # the last evaluation's losses and perplexities
        self.evaluated_tokens: dict[str, int] = {}  # over how many tokens each loss is the mean
        self.gradient_norm = math.nan  # of the last optimizer step, before clipping
        self._nll_sums: dict[str, list[float]] = {}  # name -> [sum of losses, number of tokens]
        if network is not None:
            self._set_network(network)

    @property
    def peak_learning_rate(self) -> float:
        """The highest learning rate of the schedule: the setting, or what a LearningRateFinder has found."""
        return float(self.hparams["learning_rate"])

    @property
    def flops_per_batch(self) -> int:
        """Floating-point operations of a training batch on one device, for Lightning's ThroughputMonitor."""
        batch_size: int = self.trainer.datamodule.hparams["batch_size"]  # type: ignore[attr-defined]
        return batch_size * self.config.context_length * self.config.flops_per_token

    def configure_model(self) -> None:
        """Build the network: late, so that all settings have been checked before."""
        if not hasattr(self, "model"):
            checkpointing = self.hparams["activation_checkpointing"]
            self._set_network(GPT(self.config, activation_checkpointing=checkpointing))

    def _set_network(self, network: GPT) -> None:
        self.model = network
        if self.hparams["compile"]:
            self.model.compile()  # in place: the names of the weights stay

    def forward(self, token_ids: Tensor) -> Tensor:
        """(B, T) int64 -> logits (B, T, V)."""
        return self.model(token_ids)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss of one batch: the first of the four parts of an optimizer step; Lightning does the others.

        1. forward: the loss of the batch, and with it the graph of how every weight took part in it;
        2. the old gradients are set to zero, or the new ones would be added to them (which is what
           `accumulate_grad_batches` makes use of: it sums over several batches before it goes on);
        3. backward: the gradient, for each weight, of how much the loss would rise with it;
        4. the optimizer moves every weight against its gradient (`configure_optimizers`).
        """
        inputs, targets = batch
        loss = cross_entropy(self(inputs), targets).mean()
        train_loss = loss.detach()
        # For callbacks; the metrics table and the loggers get them once per optimizer step (callbacks/metrics.py).
        self.log_dict({"train_loss": train_loss, "train_perplexity": train_loss.exp()}, logger=False)
        return {"loss": loss, "train_loss": train_loss}

    def on_validation_epoch_start(self) -> None:
        self._nll_sums = {}

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._add_losses(EVALUATED[dataloader_idx], batch)

    def on_validation_epoch_end(self) -> None:
        self.evaluated = {}
        for name in EVALUATED[: len(self.trainer.num_val_batches)]:  # also where this rank got no window of it
            loss = self._mean_loss(name)
            self.evaluated |= {f"{name}_loss": loss, f"{name}_perplexity": perplexity(loss)}
        self.log_dict(self.evaluated, logger=False)

    def on_test_epoch_start(self) -> None:
        self._nll_sums = {}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._add_losses("test", batch)

    def on_test_epoch_end(self) -> None:
        loss = self._mean_loss("test")
        self.evaluated = {"test_loss": loss, "test_perplexity": perplexity(loss)}
        self.log_dict(self.evaluated, logger=False)

    def _add_losses(self, name: str, batch: Batch) -> None:
        inputs, targets = batch
        losses = cross_entropy(self(inputs), targets)
        sums = self._nll_sums.setdefault(name, [0.0, 0.0])
        sums[0] += losses.cpu().double().sum().item()
        sums[1] += targets.numel()

    def _mean_loss(self, name: str) -> float:
        """Mean over all tokens of all ranks, in float64: never a mean of means."""
        sums = torch.tensor(self._nll_sums.get(name, [0.0, 0.0]), dtype=torch.float64)
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum")
        self.evaluated_tokens[name] = int(sums[1])
        return (sums[0] / sums[1]).item()

    def configure_optimizers(self) -> Any:
        """AdamW over all parameters, its learning rate set for each optimizer step."""
        optimizer = make_adamw(self.model, self.optimizer_config, self.peak_learning_rate)
        if self.optimizer_config.is_constant:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _learning_rate_factor(self, steps: int) -> float:
        least = self.optimizer_config.min_learning_rate
        share = None if least is None else least / self.peak_learning_rate
        return learning_rate_factor(steps, self.optimizer_config.warmup_steps, self.total_steps, share)

    def on_train_start(self) -> None:
        """Set the schedule again: a resumed run may have been given another end, a new one another learning rate."""
        schedule, rate = self.lr_schedulers(), self.peak_learning_rate
        if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
            schedule.base_lrs = [rate] * len(schedule.base_lrs)
            for group in schedule.optimizer.param_groups:
                group["initial_lr"], group["lr"] = rate, rate * self._learning_rate_factor(schedule.last_epoch)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Measure the gradient norm, stop if it is not finite, clip if asked to.

        Lightning's own clipping refuses a fused optimizer under mixed precision
        (https://github.com/Lightning-AI/pytorch-lightning/issues/21435).

        Raises:
            DivergedError: The norm is infinite or not a number; the weights are still those before.
        """
        parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
        norm = total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        self.gradient_norm = norm.item()
        if not math.isfinite(self.gradient_norm) and getattr(self.trainer.precision_plugin, "scaler", None) is None:
            raise DivergedError(
                f"non-finite gradient at step {self.trainer.global_step + 1}; stopped before the update"
            )
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val or math.inf)
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
