"""The LightningModule: loss, perplexity, optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from gpt_lightning.data.windows import Batch
from gpt_lightning.errors import DivergedError
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT
from gpt_lightning.models.loss import cross_entropy, perplexity
from gpt_lightning.models.sampled_softmax import draw_candidates
from gpt_lightning.training.distributed import FullyShardedStrategy, own_part
from gpt_lightning.training.optimizers import OptimizerConfig, learning_rate_factor, make_optimizer, total_norm

EVALUATED = ("val", "train_eval")  # in the order of the data module's evaluation loaders


class GPTModule(LightningModule):
    """A GPT that Lightning trains and evaluates on windows of token ids.

    Args:
        config: The architecture of the network.
        optimizer: The training loss, the optimizer and its learning-rate schedule.
        compile: Whether to run the network through `torch.compile`.
        activation_checkpointing: See `GPT`; ignored if `network` is given.
        total_steps: Optimizer steps of the whole run; the cosine ends there.
        network: A network with initial weights; None builds one with random weights when training starts.
    """

    def __init__(
        self,
        config: GPTConfig,
        optimizer: OptimizerConfig | None = None,
        *,
        compile: bool = False,  # noqa: A002  as in torch.compile
        activation_checkpointing: bool = False,
        total_steps: float = math.inf,
        network: GPT | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.optimizer_config = optimizer or OptimizerConfig()
        switches = {"compile": compile, "activation_checkpointing": activation_checkpointing}
        # Saved in checkpoints as the settings model.*. A LearningRateFinder replaces the learning rate here.
        self.save_hyperparameters({**asdict(config), **asdict(self.optimizer_config), **switches}, logger=False)
        self.total_steps = total_steps
        self.evaluated: dict[str, float] = {}  # losses and perplexities of the last evaluation
        self.evaluated_tokens: dict[str, int] = {}  # number of tokens that each loss is the mean over
        self.val_window_losses: list[float] = []  # mean loss of each validation window of this rank, in order
        self.gradient_norm = math.nan  # of the last optimizer step, before clipping
        self._nll_sums: dict[str, list[float]] = {}  # name -> [sum of losses, number of tokens]
        if network is not None:
            self._set_network(network)

    @property
    def peak_learning_rate(self) -> float:
        """The peak of the learning-rate schedule: the setting, or the result of a LearningRateFinder."""
        return float(self.hparams["learning_rate"])

    @property
    def flops_per_batch(self) -> int:
        """FLOPs of a training batch on one device; Lightning's ThroughputMonitor reads this name."""
        batch_size: int = self.trainer.datamodule.hparams["batch_size"]  # type: ignore[attr-defined]
        return batch_size * self.config.context_length * self.flops_per_token

    @property
    def flops_per_token(self) -> int:
        """FLOPs of a training step per token."""
        return self.optimizer_config.flops_per_token(self.config)

    def configure_model(self) -> None:
        """Build the network when training starts, after all settings have been checked."""
        if not hasattr(self, "model"):
            checkpointing = self.hparams["activation_checkpointing"]
            self._set_network(GPT(self.config, activation_checkpointing=checkpointing))

    def _set_network(self, network: GPT) -> None:
        self.model = network
        if self.hparams["compile"]:
            self.model.compile()  # in place, so that the names of the weights do not change

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return logits (B, T, V) for token ids (B, T)."""
        return self.model(token_ids)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss of one batch, the first of the four parts of an optimizer step; Lightning runs the others.

        1. Forward: compute the loss of the batch, and record the operations for the backward pass.
        2. Set the gradients to zero. With `accumulate_grad_batches` this is left out between batches, so that their
           gradients add up.
        3. Backward: compute the gradient of the loss with respect to each weight.
        4. Optimizer: change each weight against its gradient (`configure_optimizers`).

        Returns:
            "loss" to differentiate and "train_loss", the same value detached; means over tokens, in nats. With
            `sampled_softmax` it is an estimate.
        """
        inputs, targets = batch
        samples = self.optimizer_config.sampled_softmax
        if samples is None:
            loss = cross_entropy(self(inputs), targets).mean()
        else:
            drawn = draw_candidates(targets, self.config.vocab_size, samples)
            logits = self.model(inputs, candidates=drawn.token_ids) + drawn.log_weights
            loss = cross_entropy(logits, drawn.targets).mean()
        train_loss = loss.detach()
        # For callbacks that monitor them; callbacks/metrics.py logs them, once per optimizer step.
        self.log_dict({"train_loss": train_loss, "train_perplexity": train_loss.exp()}, logger=False)
        return {"loss": loss, "train_loss": train_loss}

    def on_validation_epoch_start(self) -> None:
        self._nll_sums = {}
        self.val_window_losses = []

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        loader = self.trainer.val_dataloaders[dataloader_idx]  # type: ignore[index]
        losses = self._add_losses(EVALUATED[dataloader_idx], batch, loader, batch_idx)
        if EVALUATED[dataloader_idx] == "val":
            self.val_window_losses += losses.mean(1).tolist()

    def on_validation_epoch_end(self) -> None:
        self.evaluated = {}
        for name in EVALUATED[: len(self.trainer.num_val_batches)]:
            loss = self._mean_loss(name)
            self.evaluated |= {f"{name}_loss": loss, f"{name}_perplexity": perplexity(loss)}
        self.log_dict(self.evaluated, logger=False)

    def on_test_epoch_start(self) -> None:
        self._nll_sums = {}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._add_losses("test", batch, self.trainer.test_dataloaders, batch_idx)  # type: ignore[arg-type]

    def on_test_epoch_end(self) -> None:
        loss = self._mean_loss("test")
        self.evaluated = {"test_loss": loss, "test_perplexity": perplexity(loss)}
        self.log_dict(self.evaluated, logger=False)

    def _add_losses(self, name: str, batch: Batch, loader: DataLoader[Batch], batch_idx: int) -> Tensor:
        """Add the losses of a batch to the sums of a split, and return them: (B, T) float64, on the CPU.

        Windows that only fill up this rank's batches are left out.
        """
        inputs, targets = batch
        new: int = self.trainer.datamodule.count_new(loader, batch_idx)  # type: ignore[attr-defined]
        losses = cross_entropy(self(inputs), targets)[:new].cpu().double()
        sums = self._nll_sums.setdefault(name, [0.0, 0.0])
        sums[0] += losses.sum().item()
        sums[1] += losses.numel()
        return losses

    def _mean_loss(self, name: str) -> float:
        """Return the mean loss over all tokens of all ranks, summed in float64; not a mean of batch means."""
        sums = torch.tensor(self._nll_sums.get(name, [0.0, 0.0]), dtype=torch.float64)
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum")
        self.evaluated_tokens[name] = int(sums[1])
        return (sums[0] / sums[1]).item()

    def configure_optimizers(self) -> Any:
        """Return the optimizer and, unless the learning rate is constant, its schedule, which each step applies."""
        optimizer = make_optimizer(self.model, self.optimizer_config, self.peak_learning_rate)
        if self.optimizer_config.is_constant:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _learning_rate_factor(self, steps: int) -> float:
        config = self.optimizer_config
        least = None if config.min_learning_rate is None else config.min_learning_rate / self.peak_learning_rate
        return learning_rate_factor(steps, config.warmup_steps, self.total_steps, least, config.decay_steps)

    def on_train_start(self) -> None:
        """Reapply the schedule: a resumed run may have a new length, a LearningRateFinder may have set a new rate."""
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
        """Measure the gradient norm, stop the run if it is not finite, and clip the gradients if requested.

        Lightning's own clipping refuses a fused optimizer under mixed precision
        (https://github.com/Lightning-AI/pytorch-lightning/issues/21435).

        Raises:
            DivergedError: The norm is infinite or NaN; the weights have not been changed.
        """
        parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
        norm = total_norm([own_part(parameter.grad) for parameter in parameters if parameter.grad is not None])
        if isinstance(self.trainer.strategy, FullyShardedStrategy):
            norm = self.trainer.strategy.reduce(norm.square(), reduce_op="sum").sqrt()
        self.gradient_norm = norm.item()
        if not math.isfinite(self.gradient_norm) and getattr(self.trainer.precision_plugin, "scaler", None) is None:
            raise DivergedError(
                f"non-finite gradient at step {self.trainer.global_step + 1}; the weights were not changed"
            )
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val or math.inf)
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
