"""Muon for the matrices of the transformer blocks, combined with AdamW for all other weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Coefficients of the quintic Newton-Schulz iteration (Jordan 2024, https://kellerjordan.github.io/posts/muon/).
# They raise small singular values fast and bring all of them near 1, between about 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
RMS_OF_ADAMW = 0.2  # typical root mean square of AdamW's steps, divided by the learning rate (Liu et al. 2025)


class Muon(Optimizer):
    """Muon (Jordan et al. 2024): momentum, whose sum is replaced by the nearest orthogonal matrix in each step.

    A step changes a matrix by the same amount in all directions, also in those whose gradients are small. Each step
    also shrinks the matrix by the fraction learning rate * weight decay, as AdamW does. Its size is that of AdamW's
    steps, so that learning rate and weight decay mean the same for both (Liu et al. 2025, "Muon is scalable for LLM
    training").

    `torch.optim.Muon` computes in bfloat16, which CPUs without instructions for it emulate 25 to 150 times more
    slowly than float32. This one computes in float32, except on CUDA, and takes matrices that contain several, as a
    fused projection does.

    Args:
        groups: Parameter groups; "matrices" is the number of equal matrices, one above another, in each parameter.
        learning_rate: Learning rate.
        weight_decay: Weight decay.
        momentum: Share of the previous sum of gradients that a step keeps.
    """

    def __init__(
        self, groups: list[dict[str, Any]], learning_rate: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(groups, {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change each weight that has a gradient."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
                direction = parameter.grad.lerp(state["momentum_buffer"], momentum)  # Nesterov's momentum
                stack = direction.reshape(group["matrices"], -1, direction.shape[1])
                size = RMS_OF_ADAMW * math.sqrt(max(stack.shape[1:]))
                parameter.mul_(1 - rate * group["weight_decay"])
                parameter.add_(orthogonalize(stack).view_as(parameter), alpha=-rate * size)


def orthogonalize(stack: Tensor) -> Tensor:
    """Return about U V^T for each matrix U S V^T of a stack (N, rows, columns), in the same dtype.

    Five Newton-Schulz iterations bring the singular values near 1, without a singular value decomposition.
    """
    a, b, c = COEFFICIENTS
    x = stack.bfloat16() if stack.is_cuda else stack.float()
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value is above 1
    for _ in range(ITERATIONS):
        squared = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(squared, squared, squared, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(stack.dtype)


class CombinedOptimizer(Optimizer):
    """Several optimizers of different parameters that Lightning, a schedule and a checkpoint treat as one.

    It shares its parameter groups and its state with them.

    Args:
        optimizers: Optimizers with disjoint parameters, before their first step.
    """

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for one in optimizers for group in one.param_groups], {})
        self._share()
        self.register_load_state_dict_post_hook(lambda *_: self._share())

    def _share(self) -> None:
        """Give each optimizer its part of the groups, and the state of all parameters."""
        start = 0
        for one in self.optimizers:
            end = start + len(one.param_groups)
            one.param_groups, one.state = self.param_groups[start:end], self.state
            start = end

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure, and a step of each optimizer."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for one in self.optimizers:
            one.step()
        return loss
