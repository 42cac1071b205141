"""Measure what it would cost to drop half of the context, instead of its oldest token, when it is full.

    python benchmarks/window.py CHECKPOINT TEXT [--tokens 8192]

Past the context, `predict` moves its window by one token per new token. Positions are learned, so that all cached keys
and values are then wrong and the window is read again. With half a window dropped at once, it would be read again only
every context / 2 tokens, but tokens would be predicted from as little as half a context. For the same tokens of a text,
this prints the mean loss with each, and the mean difference with its standard error over pieces of half a window.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from gpt_lightning.checkpoints.loading import open_checkpoint
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.models.gpt import GPT
from gpt_lightning.models.loss import cross_entropy

ROWS = 16  # windows at a time


def losses(model: GPT, windows: Tensor, positions: slice) -> Tensor:
    """Return the losses at some positions of windows of context_length + 1 tokens."""
    found = []
    for rows in windows.split(ROWS):
        logits = model.out_head(model.hidden_states(rows[:, :-1])[:, positions])
        found.append(cross_entropy(logits, rows[:, 1:][:, positions]))
    return torch.cat(found)


@torch.no_grad()
def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens to predict")
    options = parser.parse_args()
    loaded = open_checkpoint(options.checkpoint)
    model, context = loaded.build(), loaded.config.context_length
    half = context // 2
    ids = torch.tensor(load_tokenizer(loaded.tokenizer).encode(options.text.read_text()))
    pieces = min(options.tokens // half, (len(ids) - 1) // half - 2)
    if pieces < 2:
        raise SystemExit(f"--tokens must be at least {2 * half}, and the text have {4 * half + 1} tokens")
    # Both predict the tokens from context + 1 on. Here each piece has a window that began half a context before it and
    # grows to context tokens; there each token has a window of its own.
    dropped = losses(model, ids.unfold(0, context + 1, half)[1 : pieces + 1], slice(context - half, context))
    moved = losses(model, ids.unfold(0, context + 1, 1)[1 : pieces * half + 1], slice(context - 1, context))
    differences = dropped.mean(1) - moved.view(pieces, half).mean(1)
    error = differences.std().item() / math.sqrt(pieces)
    print(f"{pieces * half:,} tokens of {options.text}, context {context}")
    print(f"window moved by a token         {moved.mean():.4f} nats per token")
    print(f"window dropped by half          {dropped.mean():.4f}")
    print(f"difference                      {differences.mean():.4f} +- {error:.4f}")


if __name__ == "__main__":
    main()
