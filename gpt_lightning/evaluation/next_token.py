"""Candidates for the next token: their probabilities and how often each is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gpt_lightning.console import table
from gpt_lightning.inference.sampling import SamplingConfig, next_token_probs, sample_next_token
from gpt_lightning.runs.figures import bar_figure, save_figure


def count_draws(logits: Tensor, sampling: SamplingConfig, draws: int) -> list[int]:
    """How often each token is chosen, drawn again and again from one generator.

    Args:
        logits: (1, V).
        sampling: Its seed is where the draws start.
        draws: Number of draws.
    """
    generators = [sampling.generator()]
    drawn = torch.cat([sample_next_token(logits, sampling, generators) for _ in range(draws)])
    return torch.bincount(drawn, minlength=logits.shape[-1]).tolist()


def candidates(
    words: Sequence[str], logits: Tensor, settings: Sequence[SamplingConfig], draws: int, ids: Sequence[int]
) -> str:
    """A row per token: its logit and, for each setting, its probability and how often it was drawn.

    Args:
        words: Of the tokens that are shown.
        logits: (1, V).
        settings: With temperatures above 0.
        draws: Of each.
        ids: Of the tokens that are shown.
    """
    header, columns = ["", "logit"], [list(words), [f"{logits[0, i].item():.4f}" for i in ids]]
    for one in settings:
        probs, counts = next_token_probs(logits, one)[0, list(ids)], count_draws(logits, one, draws)
        header += [_describe(one), "drawn"]
        columns += [[f"{prob:.4e}" if 0 < prob < 1e-3 else f"{prob:.4f}" for prob in probs.tolist()]]
        columns += [[str(counts[i]) for i in ids]]
    return table("<" + ">" * (len(header) - 1), header, list(zip(*columns, strict=True)))


def draw_bars(
    words: Sequence[str], logits: Tensor, settings: Sequence[SamplingConfig], path: Path, ids: Sequence[int]
) -> None:
    """The documents' bar figure of tokens under settings, as PDF and PNG; prints where. Arguments as `candidates`."""
    series = {_describe(one): next_token_probs(logits, one)[0, list(ids)].tolist() for one in settings}
    for written in save_figure(bar_figure(words, series), path):
        print(f"  {written}")


def _describe(sampling: SamplingConfig) -> str:
    top = "" if sampling.top_k is None else f", top {sampling.top_k}"
    return f"T = {sampling.temperature:g}{top}"
