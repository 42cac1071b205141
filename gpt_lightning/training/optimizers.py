"""The optimizer, its learning-rate schedule and the gradient norm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from gpt_lightning.errors import InputError
from gpt_lightning.models.config import BYTES_PER_WEIGHT, GPTConfig
from gpt_lightning.models.gpt import GPT
from gpt_lightning.training.muon import CombinedOptimizer, Muon
from gpt_lightning.validation import require, require_integer, require_number

OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class OptimizerConfig:
    """How training changes the weights: its loss, the optimizer and the learning-rate schedule.

    Args:
        sampled_softmax: Number of tokens drawn from the vocabulary for each batch, from which, with the targets of the
            batch, the training loss is estimated; null computes it exactly.
        optimizer: adamw, or muon for the matrices of the blocks and adamw for the rest.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay, on all parameters.
        beta2: Share of the previous mean of squared gradients that a step of AdamW keeps.
        warmup_steps: Optimizer steps over which the learning rate rises from 0.
        min_learning_rate: Learning rate at the end of a cosine decay; null keeps it constant.
        decay_steps: Optimizer steps of the cosine decay, at the end of the run; null: all steps after the warm-up.
        decay_matrices_only: Whether weight_decay leaves out biases, norms and embeddings. The head, a matrix, decays
            unless it is tied.

    Raises:
        InputError: A value is out of range; the message names the setting `model.<name>`.
    """

    sampled_softmax: int | None = None
    optimizer: str = "adamw"
    learning_rate: float = 4e-4
    weight_decay: float = 0.1
    beta2: float = 0.999
    warmup_steps: int = 0
    min_learning_rate: float | None = None
    decay_steps: int | None = None
    decay_matrices_only: bool = False

    def __post_init__(self) -> None:
        if self.sampled_softmax is not None:
            require_integer("model.sampled_softmax", self.sampled_softmax, 1)
        require(self.optimizer in OPTIMIZERS, "model.optimizer", f"be one of {', '.join(OPTIMIZERS)}", self.optimizer)
        require_number("model.learning_rate", self.learning_rate, "be a finite number above 0", lambda rate: rate > 0)
        must = "be a finite number of at least 0"
        require_number("model.weight_decay", self.weight_decay, must, lambda decay: decay >= 0)
        require_number("model.beta2", self.beta2, "be at least 0 and below 1", lambda beta: 0 <= beta < 1)
        require_integer("model.warmup_steps", self.warmup_steps, 0)
        if self.min_learning_rate is not None:
            must = f"be between 0 and model.learning_rate ({self.learning_rate})"
            fits = lambda rate: 0 <= rate <= self.learning_rate  # noqa: E731  used in the next line only
            require_number("model.min_learning_rate", self.min_learning_rate, must, fits)
        if self.decay_steps is not None:
            require_integer("model.decay_steps", self.decay_steps, 1)
            if self.min_learning_rate is None:
                raise InputError(f"model.decay_steps ({self.decay_steps}) needs model.min_learning_rate")

    def flops_per_token(self, model: GPTConfig) -> int:
        """Return the FLOPs of a training step per token; of a sampled softmax, only the drawn tokens' logits count."""
        logits = min(self.sampled_softmax or model.vocab_size, model.vocab_size)
        return model.flops_per_token - 6 * model.emb_dim * (model.vocab_size - logits)

    @property
    def is_constant(self) -> bool:
        """Whether every optimizer step has the same learning rate."""
        return self.warmup_steps == 0 and self.min_learning_rate is None


def make_optimizer(model: GPT, config: OptimizerConfig, learning_rate: float) -> torch.optim.Optimizer:
    """Return the optimizer of a model: AdamW over all parameters, or with Muon for the matrices of the blocks.

    Adam (Kingma and Ba 2015) keeps a running mean of each weight's gradients and one of their squares (its moments),
    and changes the weight by -learning_rate * mean / sqrt(mean of squares): about the same size for all weights,
    however small their gradients. AdamW (Loshchilov and Hutter 2019) decouples weight decay from the gradients: each
    step also shrinks every weight by the fraction learning_rate * weight_decay. Both moments are saved in checkpoints;
    if a resumed run started them at zero, its first steps would differ.

    Args:
        model: The network, with its weights.
        config: The optimizer, its weight decay, and which parameters that applies to.
        learning_rate: The peak; not the config's, because a LearningRateFinder may have replaced it.
    """
    matrices = block_matrices(model) if config.optimizer == "muon" else {}
    others = [one for one in model.parameters() if one not in matrices]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        parameter_groups(model, others, config.decay_matrices_only),
        learning_rate,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )
    if matrices:
        groups = [
            {"params": [one for one in matrices if matrices[one] == count], "matrices": count}
            for count in sorted(set(matrices.values()))
        ]
        optimizer = CombinedOptimizer(Muon(groups, learning_rate, config.weight_decay), optimizer)
    # Frees the gradients, which Lightning would keep until after the next forward pass.
    optimizer.register_step_post_hook(lambda one, *_: one.zero_grad())
    return optimizer


def optimizer_bytes(model: GPTConfig, optimizer: OptimizerConfig) -> int:
    """Return the bytes of an optimizer's state: two moments per weight, or one where Muon changes the weight."""
    return 2 * model.weight_bytes - (BYTES_PER_WEIGHT * model.num_block_weights if optimizer.optimizer == "muon" else 0)


def block_matrices(model: GPT) -> dict[Parameter, int]:
    """Return the weight matrices of the transformer blocks, and how many matrices each of them consists of."""
    matrices = {}
    for block in model.trf_blocks:
        for name, parameter in block.named_parameters():
            if parameter.dim() == 2:
                matrices[parameter] = 3 if name == "att.qkv.weight" else 1  # query, key and value
    return matrices


def parameter_groups(model: GPT, parameters: list[Parameter], decay_matrices_only: bool) -> list[dict[str, object]]:
    """Return one parameter group, or one with weight decay and one without if only matrices decay.

    Args:
        model: The network.
        parameters: Those of its parameters that belong to the groups.
        decay_matrices_only: See `OptimizerConfig`.
    """
    if not decay_matrices_only:
        return [{"params": parameters}]
    embeddings = {model.tok_emb.weight, model.pos_emb.weight}  # a tied head shares tok_emb.weight
    decayed = [one for one in parameters if one.dim() >= 2 and one not in embeddings]
    others = [one for one in parameters if one.dim() < 2 or one in embeddings]
    groups: list[dict[str, object]] = [{"params": decayed}] if decayed else []
    return [*groups, {"params": others, "weight_decay": 0.0}]


def learning_rate_factor(
    steps: int, warmup_steps: int, total_steps: float, least: float | None, decay_steps: int | None = None
) -> float:
    """Return the factor on the peak learning rate for the next optimizer step.

    It rises linearly to 1 at step `warmup_steps`. After that it stays at 1, or follows half a cosine down to `least` at
    step `total_steps`, over the last `decay_steps`.

    Args:
        steps: Optimizer steps taken so far.
        warmup_steps: Optimizer steps of the linear rise; 0 for none.
        total_steps: Optimizer steps of the whole run; used for the cosine only.
        least: Factor at the end of the cosine; None keeps the factor at 1.
        decay_steps: Optimizer steps of the cosine; None for all after the warm-up.
    """
    step = steps + 1
    if step <= warmup_steps:
        return step / warmup_steps
    if least is None:
        return 1.0
    start = warmup_steps if decay_steps is None else max(warmup_steps, total_steps - decay_steps)
    progress = min(1.0, max(0, step - start) / max(1, total_steps - start))
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
