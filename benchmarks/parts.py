"""Measure each part of a bf16-mixed optimizer step of GPT-2 small alone: its matrix products, and all others.

    python benchmarks/parts.py [--rounds 15]

The sizes are those of configs/verdict.yaml: two windows of 256 tokens. The parts take turns; times are medians. The sum
is that of all parts but the products. It is not the time of a step without products (`training.py --without_products`),
which leaves out those of attention, too, and in which each part finds less of its data in the processor's cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from peers import LEARNING_RATE, VOCABULARY, WEIGHT_DECAY, Shape, our_gpt
from torch.nn import functional as F

from gpt_lightning.models.layers import causal_attention, dropout_mask
from gpt_lightning.models.loss import cross_entropy
from gpt_lightning.training.hardware import keep_freed_memory
from gpt_lightning.training.optimizers import total_norm

SHAPE = Shape()
PRODUCTS = "matrix products, without attention"


def parts() -> dict[str, Callable[[], object]]:
    """Return a function for each part, which runs it as often as a step does."""
    torch.manual_seed(123)
    model = our_gpt(SHAPE)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    multiplied = [one for name, one in model.named_parameters() if one.dim() == 2 and "emb" not in name]
    halves = [one.detach().bfloat16() for one in multiplied]
    B, T, D, H = SHAPE.batch_size, SHAPE.context_length, SHAPE.emb_dim, SHAPE.n_heads
    half = torch.bfloat16
    wide = torch.randn(B, T, 4 * D, dtype=half, requires_grad=True)
    narrow = torch.randn(B, T, D, requires_grad=True)
    heads = [torch.randn(B, H, T, D // H, dtype=half, requires_grad=True) for _ in range(3)]
    logits = torch.randn(VOCABULARY, B * T, dtype=half).T.unflatten(0, (B, T)).requires_grad_()
    ids = torch.randint(VOCABULARY, (B, T))
    factors = [
        (one, torch.randn(B * T, one.shape[1], dtype=half), torch.randn(one.shape[0], B * T, dtype=half))
        for one in halves
    ]

    def casts() -> None:
        for one in multiplied:
            one.detach().bfloat16()

    def gradient_casts() -> None:
        for one in halves:
            one.float()

    def gelus() -> None:
        for _ in range(SHAPE.n_layers):
            F.gelu(wide, approximate="tanh").backward(wide.detach())

    def norms() -> None:
        for _ in range(2 * SHAPE.n_layers + 1):
            F.layer_norm(narrow, (D,), *(torch.ones(D), torch.zeros(D))).backward(narrow.detach())

    def dropouts() -> None:
        for _ in range(2 * SHAPE.n_layers + 1):
            mask, scale = dropout_mask(narrow.shape, SHAPE.drop_rate)
            dropped = narrow * mask * scale
            dropped.backward(narrow.detach())

    def attentions() -> None:
        for _ in range(SHAPE.n_layers):
            causal_attention(*(one.float() for one in heads), SHAPE.drop_rate).sum().backward()

    def products() -> None:
        for weight, features, gradients in factors:
            weight @ features.T  # (out, B T)
            gradients @ features  # of the weights
            gradients.T @ weight  # of the features

    def embeddings() -> None:
        model.tok_emb(ids).backward(narrow.detach())

    return {
        PRODUCTS: products,
        "AdamW": optimizer.step,
        "weights to bfloat16": casts,
        "gradients to float32": gradient_casts,
        "norm of the gradients": lambda: total_norm([one.grad for one in parameters if one.grad is not None]),
        "loss": lambda: cross_entropy(logits * 1, ids).mean().backward(),
        "GELU": gelus,
        "dropout outside attention": dropouts,
        "attention, with products in float32": attentions,
        "layer norms": norms,
        "gradient of the token embedding": embeddings,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    keep_freed_memory()  # as in `fit`
    measured = parts()
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for number in range(2 + options.rounds):
        for name, part in measured.items():
            start = time.perf_counter()
            part()
            if number >= 2:
                seconds[name].append(time.perf_counter() - start)
    for name, rounds in seconds.items():
        print(f"{name:<38}{1000 * median(rounds):8.1f} ms")
    others = sum(median(rounds) for name, rounds in seconds.items() if name != PRODUCTS)
    print(f"{'sum without products':<38}{1000 * others:8.1f} ms")


if __name__ == "__main__":
    main()
