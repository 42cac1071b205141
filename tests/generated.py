"""Helpers for tests of generation: a small network, random prompts, and the tokens that `generate` yields."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gpt_lightning.inference.generate import NewToken, generate
from gpt_lightning.inference.sampling import SamplingConfig
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT


def small_gpt() -> GPT:
    """Return a network of two layers with dropout and a context of 12 bytes; its weights are always the same."""
    torch.manual_seed(7)
    return GPT(GPTConfig(257, context_length=12, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.2))


def random_prompt(length: int, seed: int) -> list[int]:
    """Return random byte ids that depend only on the seed."""
    return torch.randint(257, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def generated(
    model: GPT, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, samples: Sequence[int] | None = None
) -> list[list[NewToken]]:
    """Return the new tokens of each row."""
    rows: list[list[NewToken]] = [[] for _ in prompts]
    for step in generate(model, prompts, sampling, samples):
        for token in step:
            rows[token.row].append(token)
    return rows


def generated_ids(
    model: GPT, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, samples: Sequence[int] | None = None
) -> list[list[int]]:
    """Return the new token ids of each row."""
    rows = generated(model, prompts, sampling, samples)
    return [[token.token_id for token in row if token.token_id is not None] for row in rows]
