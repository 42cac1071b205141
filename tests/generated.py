"""What `generate` yields, collected."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_lightning.inference.generate import NewToken, generate
from gpt_lightning.inference.sampling import SamplingConfig
from gpt_lightning.models.gpt import GPT


def generated(
    model: GPT, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, samples: Sequence[int] | None = None
) -> list[list[NewToken]]:
    """The tokens of each row."""
    rows: list[list[NewToken]] = [[] for _ in prompts]
    for step in generate(model, prompts, sampling, samples):
        for token in step:
            rows[token.row].append(token)
    return rows


def generated_ids(
    model: GPT, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, samples: Sequence[int] | None = None
) -> list[list[int]]:
    """The new token ids of each row."""
    rows = generated(model, prompts, sampling, samples)
    return [[token.token_id for token in row if token.token_id is not None] for row in rows]
