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
        InputError: A value is out of range; the message names the setting `model.<name>`.
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
            fits = lambda rate: 0 <= rate <= self.learning_rate  # noqa: E731  used in the next line only
            require_number("model.min_learning_rate", self.min_learning_rate, must, fits)

    @property
    def is_constant(self) -> bool:
        """Whether every optimizer step has the same learning rate."""
        return self.warmup_steps == 0 and self.min_learning_rate is None


def make_adamw(model: GPT, config: OptimizerConfig, learning_rate: float) -> torch.optim.AdamW:
    """Return AdamW over all parameters of a model.

    Adam (Kingma and Ba 2015) keeps a running mean of each weight's gradients and one of their squares (its moments),
    and changes the weight by -learning_rate * mean / sqrt(mean of squares): about the same size for all weights,
    however small their gradients. AdamW (Loshchilov and Hutter 2019) decouples weight decay from the gradients: each
    step also shrinks every weight by the fraction learning_rate * weight_decay. Both moments are saved in checkpoints;
    if a resumed run started them at zero, its first steps would differ.

    Args:
        model: The network, with its weights.
        config: Weight decay, and which parameters it applies to.
        learning_rate: The peak; not the config's, because a LearningRateFinder may have replaced it.
    """
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.decay_matrices_only), learning_rate, weight_decay=config.weight_decay, fused=True
    )
    # Frees the gradients, which Lightning would keep until after the next forward pass.
    optimizer.register_step_post_hook(lambda one, *_: one.zero_grad())
    return optimizer


def parameter_groups(model: GPT, decay_matrices_only: bool) -> list[dict[str, object]]:
    """Return one parameter group, or one with weight decay and one without if only matrices decay."""
    if not decay_matrices_only:
        return [{"params": list(model.parameters())}]
    embeddings = {model.tok_emb.weight, model.pos_emb.weight}  # a tied head shares tok_emb.weight
    decayed = [one for one in model.parameters() if one.dim() >= 2 and one not in embeddings]
    others = [one for one in model.parameters() if one.dim() < 2 or one in embeddings]
    return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]


def learning_rate_factor(steps: int, warmup_steps: int, total_steps: float, least: float | None) -> float:
    """Return the factor on the peak learning rate for the next optimizer step.

    It rises linearly to 1 at step `warmup_steps`. After that it stays at 1, or follows half a cosine down to `least` at
    step `total_steps`.

    Args:
        steps: Optimizer steps taken so far.
        warmup_steps: Optimizer steps of the linear rise; 0 for none.
        total_steps: Optimizer steps of the whole run; used for the cosine only.
        least: Factor at the end of the cosine; None keeps the factor at 1.
    """
    step = steps + 1
    if step <= warmup_steps:
        return step / warmup_steps
    if least is None:
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress))


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients together, as a scalar tensor.

    The norm of each row is taken first, then the norm of these. `torch.nn.utils.get_total_norm` accumulates the squares
    of a whole matrix in float32; for the 38 million elements of GPT-2's embedding the result is 0.1 % too small on a
    CPU, and slower to compute. `sum` adds pairwise.
    """
    norms = []
    for gradient in gradients:
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        norms.append(torch.linalg.vector_norm(gradient, dim=-1, dtype=dtype).flatten())
    return torch.cat(norms).square().sum().sqrt()
