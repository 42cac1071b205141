"""Tabulate and plot the candidates for the next token: their probabilities, and how often each is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gpt_lightning.console import say, table
from gpt_lightning.inference.sampling import SamplingConfig, next_token_probs, sample_next_token
from gpt_lightning.runs.figures import bar_figure, save_figure


def count_draws(logits: Tensor, sampling: SamplingConfig, draws: int) -> list[int]:
    """Return how often each token of the vocabulary is drawn.

    Args:
        logits: (1, V).
        sampling: Settings, with the seed of the draws.
        draws: Number of draws.
    """
    generators = [sampling.generator()]
    drawn = torch.cat([sample_next_token(logits, sampling, generators) for _ in range(draws)])
    return torch.bincount(drawn, minlength=logits.shape[-1]).tolist()


def candidates(
    words: Sequence[str], logits: Tensor, settings: Sequence[SamplingConfig], draws: int, ids: Sequence[int]
) -> str:
    """Return a table with a row per token: its logit, and its probability and number of draws with each setting.

    Args:
        words: Names of the tokens to show.
        logits: (1, V).
        settings: Sampling settings to compare, with temperatures above 0.
        draws: Number of draws with each setting.
        ids: Ids of the tokens to show.
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
    """Draw the probabilities as a bar chart like that of the reference notes, as PDF and PNG, and print the paths.

    Args:
        words: Names of the tokens to show.
        logits: (1, V).
        settings: Sampling settings to compare, with temperatures above 0.
        path: The chart's path without an ending.
        ids: Ids of the tokens to show.
    """
    series = {_describe(one): next_token_probs(logits, one)[0, list(ids)].tolist() for one in settings}
    for written in save_figure(bar_figure(words, series), path):
        say(f"  {written}")


def _describe(sampling: SamplingConfig) -> str:
    top = "" if sampling.top_k is None else f", top {sampling.top_k}"
    return f"T = {sampling.temperature:g}{top}"
