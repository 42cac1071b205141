"""The LightningModule: loss, perplexity, optimizer and schedule of a GPT."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from gpt_lightning.data.windows import Batch
from gpt_lightning.errors import DivergedError, InputError, MachineError, memory_bytes
from gpt_lightning.models.config import ARCHITECTURE, BYTES_PER_WEIGHT, check_architecture, count_parameters
from gpt_lightning.models.gpt import GPT
from gpt_lightning.models.loss import cross_entropy, perplexity
from gpt_lightning.training.optimizers import learning_rate_factor, total_norm
from gpt_lightning.validation import require_integer, require_number

EVALUATED = ("val", "train_eval")  # by the data module's loaders


class GPTModule(LightningModule):
    """Trains and evaluates a GPT on windows of token ids.

    Args:
        vocab_size: Number of token ids; null takes the tokenizer's.
        context_length: The most tokens the model looks at.
        emb_dim: Width; a multiple of n_heads.
        n_heads: Attention heads per layer.
        n_layers: Number of transformer blocks.
        drop_rate: Share of activations dropped in training, at least 0 and below 1.
        qkv_bias: Whether query, key and value projections have biases.
        tie_weights: Whether the head shares the token embedding's weights.
        init: book (PyTorch's default initialisation) or gpt2.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW, on all parameters.
        warmup_steps: Updates over which the learning rate rises from 0.
        decay_matrices_only: Whether weight_decay leaves out biases, norms and embeddings; the head, a
            matrix, decays unless it is tied.
        compile: Whether `torch.compile` makes the network faster to run, and slower to start.
        activation_checkpointing: Whether a block's activations are computed again for the backward pass
            instead of kept: less memory for the time of another forward pass, and the same weights.
        min_learning_rate: The learning rate of the last update, reached along a cosine; null keeps it
            constant.

    Raises:
        InputError: An argument is out of range, named as the setting `model.<name>`.
    """

    def __init__(
        self,
        vocab_size: int | None = None,
        context_length: int = 256,
        emb_dim: int = 768,
        n_heads: int = 12,
        n_layers: int = 12,
        drop_rate: float = 0.1,
        qkv_bias: bool = False,
        tie_weights: bool = False,
        init: str = "book",
        learning_rate: float = 4e-4,
        weight_decay: float = 0.1,
        warmup_steps: int = 0,
        min_learning_rate: float | None = None,
        decay_matrices_only: bool = False,
        compile: bool = False,  # noqa: A002  torch's word
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_architecture(vocab_size, context_length, emb_dim, n_heads, n_layers, drop_rate, init)
        require_number("model.learning_rate", learning_rate, "be a finite number above 0", lambda rate: rate > 0)
        require_number("model.weight_decay", weight_decay, "be a finite number of at least 0", lambda decay: decay >= 0)
        require_integer("model.warmup_steps", warmup_steps, 0)
        if min_learning_rate is not None:
            between = f"be between 0 and model.learning_rate ({learning_rate})"
            fits = lambda rate: 0 <= rate <= learning_rate  # noqa: E731  said once, read once
            require_number("model.min_learning_rate", min_learning_rate, between, fits)
        self.save_hyperparameters(logger=False)
        self.starts_from: tuple[str, dict[str, Any]] | None = None  # a checkpoint's name and content, see training.py
        self.total_steps = math.inf  # where the cosine ends
        self.evaluated: dict[str, float] = {}  # the last evaluation's losses and perplexities
        self.evaluated_tokens: dict[str, int] = {}  # over how many tokens each loss is the mean
        self.gradient_norm = math.nan  # of the last update, before clipping
        self._nll_sums: dict[str, list[float]] = {}  # name -> [sum of losses, number of tokens]

    def set_vocabulary(self, vocab_size: int) -> None:
        """Fills `vocab_size` from the tokenizer where it was left to it.

        Raises:
            InputError: It was given and is smaller than the tokenizer's.
        """
        given = self.hparams["vocab_size"]
        if given is None:
            self.hparams["vocab_size"] = vocab_size
        elif given < vocab_size:
            raise InputError(f"model.vocab_size ({given}) is smaller than the tokenizer's {vocab_size}")

    def count_parameters(self) -> int:
        """Trainable values of the network, built or not."""
        names = ("vocab_size", "context_length", "emb_dim", "n_layers", "qkv_bias", "tie_weights")
        return count_parameters(**{name: self.hparams[name] for name in names})

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations that training on a token takes.

        6 for each weight of a matrix product, 12 n_layers T D for attention (Chowdhery et al. 2022, appendix B).
        """
        h = self.hparams
        looked_up = (h["vocab_size"] * (not h["tie_weights"]) + h["context_length"]) * h["emb_dim"]
        attention = 12 * h["n_layers"] * h["context_length"] * h["emb_dim"]
        return int(6 * (self.count_parameters() - looked_up) + attention)

    @property
    def flops_per_batch(self) -> int:
        """Those of a training batch on one device, for Lightning's ThroughputMonitor."""
        tokens = self.trainer.datamodule.hparams["batch_size"] * self.hparams["context_length"]  # type: ignore[attr-defined]
        return int(tokens * self.flops_per_token)

    def check_memory(self) -> None:
        """Raises `MachineError` where this machine's memory could not hold the weights alone."""
        parameters = self.count_parameters()
        memory = memory_bytes()
        if BYTES_PER_WEIGHT * parameters > memory:
            raise MachineError(
                f"out of memory: the {parameters:,} weights of model.emb_dim ({self.hparams['emb_dim']}) and "
                f"model.n_layers ({self.hparams['n_layers']}) take {BYTES_PER_WEIGHT * parameters / 1e9:,.1f} GB, "
                f"this machine has {memory / 1e9:.1f} GB"
            )

    def configure_model(self) -> None:
        """Builds the network: late, so that all settings have been checked before."""
        if not hasattr(self, "model"):
            self.model = GPT(**{name: self.hparams[name] for name in ARCHITECTURE})
            self.model.activation_checkpointing = self.hparams["activation_checkpointing"]
            if self.hparams["compile"]:
                self.model.compile()  # in place: the names of the weights stay

    def forward(self, token_ids: Tensor) -> Tensor:
        """(B, T) int64 -> logits (B, T, V)."""
        return self.model(token_ids)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss of one batch: the first of the four steps of an update, of which Lightning does the rest.

        1. forward: the loss of the batch, and with it the graph of how every weight took part in it;
        2. the old gradients are set to zero, or the new ones would be added to them (which is what
           `accumulate_grad_batches` makes use of: it sums over several batches before it goes on);
        3. backward: the gradient, for each weight, of how much the loss would rise with it;
        4. the optimizer moves every weight against its gradient (`configure_optimizers`).
        """
        inputs, targets = batch
        loss = cross_entropy(self(inputs), targets).mean()
        train_loss = loss.detach()
        # For callbacks; the metrics table and the loggers get them once per optimizer step (callbacks.py).
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
        """AdamW over all parameters, its rate set per update.

        Adam (Kingma and Ba 2015) keeps for each weight a running mean of its gradients and one of their
        squares, and moves it by learning_rate times the first over the root of the second: a step of about
        the same size for all weights, however small their gradients. AdamW (Loshchilov and Hutter 2019)
        takes the weight decay out of that: every weight shrinks by learning_rate * weight_decay of itself,
        whatever its gradients were. Both means are in the checkpoint; without them a run that goes on
        would start them anew and jump.
        """
        rate, decay = self.hparams["learning_rate"], self.hparams["weight_decay"]
        optimizer = torch.optim.AdamW(self._parameter_groups(), lr=rate, weight_decay=decay, fused=True)
        # Frees the gradients, which Lightning keeps until the next forward pass has ended.
        optimizer.register_step_post_hook(lambda one, *_: one.zero_grad())
        warmup_steps, least = self.hparams["warmup_steps"], self.hparams["min_learning_rate"]
        if warmup_steps == 0 and least is None:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _learning_rate_factor(self, updates: int) -> float:
        least = self.hparams["min_learning_rate"]
        share = None if least is None else least / self.hparams["learning_rate"]
        return learning_rate_factor(updates, self.hparams["warmup_steps"], self.total_steps, share)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        if not self.hparams["decay_matrices_only"]:
            return [{"params": list(self.parameters())}]
        embeddings = {self.model.tok_emb.weight, self.model.pos_emb.weight}  # the head's too where it is tied
        decayed = [one for one in self.parameters() if one.dim() >= 2 and one not in embeddings]
        others = [one for one in self.parameters() if one.dim() < 2 or one in embeddings]
        return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]

    def on_train_start(self) -> None:
        """Sets the schedule anew: a run that goes on may have been given another end, a new one another rate."""
        schedule, rate = self.lr_schedulers(), self.hparams["learning_rate"]
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
        """Measures the gradient's norm, stops where it is not a number, clips where asked.

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
