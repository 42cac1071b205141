"""AdamW, the learning-rate schedule and the gradient norm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_lightning.models.gpt import GPT
from gpt_lightning.validation import require_integer, require_number


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule.

    Args:
        learning_rate: Peak learning rate.
        weight_decay: Weight decay of AdamW, on all parameters.
        warmup_steps: Optimizer steps over which the learning rate rises from 0.
        min_learning_rate: Learning rate at the end of a cosine decay; null keeps it constant.
        decay_matrices_only: Whether weight_decay leaves out biases, norms and embeddings. The head, a matrix, decays
            unless it is tied.

    Raises:
        InputError: A value is out of range; it is named as the setting `model.<name>`.
    """

    learning_rate: float = 4e-4
    weight_decay: float = 0.1
    warmup_steps: int = 0
    min_learning_rate: float | None = None
    decay_matrices_only: bool = False

    def __post_init__(self) -> None:
        require_number("model.learning_rate", self.learning_rate, "be a finite number above 0", lambda rate: rate > 0)
        must = "be a finite number of at least 0"
        require_number("model.weight_decay", self.weight_decay, must, lambda decay: decay >= 0)
        require_integer("model.warmup_steps", self.warmup_steps, 0)
        if self.min_learning_rate is not None:
            must = f"be between 0 and model.learning_rate ({self.learning_rate})"
            fits = lambda rate: 0 <= rate <= self.learning_rate  # noqa: E731  said once, read once
            require_number("model.min_learning_rate", self.min_learning_rate, must, fits)

    @property
    def is_constant(self) -> bool:
        """Whether every optimizer step has the same learning rate."""
        return self.warmup_steps == 0 and self.min_learning_rate is None


def make_adamw(model: GPT, config: OptimizerConfig, learning_rate: float) -> torch.optim.AdamW:
    """Return AdamW over all parameters of a model.

    Adam (Kingma and Ba 2015) keeps for each weight a running mean of its gradients and one of their squares, and moves
    it by learning_rate times the first over the root of the second: a step of about the same size for all weights,
    however small their gradients. AdamW (Loshchilov and Hutter 2019) takes the weight decay out of that: every weight
    shrinks by learning_rate * weight_decay of itself, whatever its gradients were. Both means are in the checkpoint;
    without them a resumed run would start them from zero and jump.

    Args:
        model: Built.
        config: Of the run.
        learning_rate: Of the run; a LearningRateFinder may have replaced the config's.
    """
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.decay_matrices_only), learning_rate, weight_decay=config.weight_decay, fused=True
    )
    # Frees the gradients, which Lightning keeps until the next forward pass has ended.
    optimizer.register_step_post_hook(lambda one, *_: one.zero_grad())
    return optimizer


def parameter_groups(model: GPT, decay_matrices_only: bool) -> list[dict[str, object]]:
    """Return the parameters in one group, or in one with weight decay and one without."""
    if not decay_matrices_only:
        return [{"params": list(model.parameters())}]
    embeddings = {model.tok_emb.weight, model.pos_emb.weight}  # the head's too where it is tied
    decayed = [one for one in model.parameters() if one.dim() >= 2 and one not in embeddings]
    others = [one for one in model.parameters() if one.dim() < 2 or one in embeddings]
    return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]


def learning_rate_factor(steps: int, warmup_steps: int, total_steps: float, least: float | None) -> float:
    """Return the share of the learning rate that the optimizer step after `steps` steps uses.

    Rises linearly to 1 at step `warmup_steps`, then stays, or falls along half a cosine to `least` at step
    `total_steps`.

    Args:
        steps: Optimizer steps taken so far.
        warmup_steps: 0 starts at 1.
        total_steps: Optimizer steps of the whole run; used for the cosine only.
        least: Where the cosine ends, as a share; None for no cosine.
    """
    step = steps + 1
    if step <= warmup_steps:
        return step / warmup_steps
    if least is None:
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress))


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Return the root of the sum of all squares, from the norms of the rows.

    `torch.nn.utils.get_total_norm` adds up the squares of a whole matrix at once, in float32: with the 38 million of
    GPT-2's embedding its norm is a thousandth too small on a CPU, and takes longer. `sum` sums pairwise.
    """
    norms = []
    for gradient in gradients:
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        norms.append(torch.linalg.vector_norm(gradient, dim=-1, dtype=dtype).flatten())
    return torch.cat(norms).square().sum().sqrt()
