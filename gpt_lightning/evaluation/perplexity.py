"""The loss of a model on a text, in nats per token, in bits per byte and in bits per character.

Losses per token of models with different tokenizers cannot be compared, because their tokens differ in length. Bits per
byte can: the sum of the losses, in bits, is the length of the text as an arithmetic coder would compress it with the
model's predictions, and the bytes of the text do not depend on the tokenizer.

Shapes: W windows, T context_length, N tokens of the text, P predictions.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.data.windows import Windows
from gpt_lightning.errors import not_finite
from gpt_lightning.evaluation.intervals import FEWEST, bootstrap_interval
from gpt_lightning.inference.generate import evaluation_mode
from gpt_lightning.models.gpt import GPT
from gpt_lightning.models.loss import cross_entropy, perplexity

TOKENS_AT_ONCE = 1024  # inputs of a forward pass

Interval = tuple[float, float]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class WindowScores:
    """The predictions of a model in each window of a text.

    Attributes:
        losses: (W,) sum of the losses, in nats.
        correct: (W,) number of predictions whose most likely token was the actual one.
        tokens: (W,) number of predictions.
        sizes: (W,) UTF-8 bytes of the predicted tokens.
        characters: (W,) characters that begin in the predicted tokens.
    """

    losses: Floats
    correct: Floats
    tokens: Floats
    sizes: Floats
    characters: Floats


@dataclass(frozen=True)
class TextScores:
    """Measures of a model on a text, each with its 95 % interval, or None for fewer than 10 windows.

    Attributes:
        tokens: Number of predictions.
        bytes: UTF-8 bytes of the predicted tokens.
        loss: Mean loss in nats per token.
        perplexity: exp(loss).
        bits_per_byte: Sum of the losses in bits, divided by the bytes.
        bits_per_character: The same, divided by the characters.
        accuracy: Share of the predictions whose most likely token was the actual one.
        windows: Number of windows.
    """

    tokens: int
    bytes: int
    loss: float
    loss_interval: Interval | None
    perplexity: float
    perplexity_interval: Interval | None
    bits_per_byte: float
    bits_per_byte_interval: Interval | None
    bits_per_character: float
    bits_per_character_interval: Interval | None
    accuracy: float
    accuracy_interval: Interval | None
    windows: int


def score_windows(model: GPT, windows: Windows, tokenizer: Tokenizer, *, each_token_once: bool) -> WindowScores:
    """Evaluate a model on all windows of a text.

    Args:
        model: The model, in training or evaluation mode.
        windows: At least one window.
        tokenizer: The model's tokenizer.
        each_token_once: Whether a window scores only the tokens that the windows before it do not predict. With a
            stride below T, every token after the first window then has at least T - stride tokens of history.

    Raises:
        DivergedError: A loss is not finite.
    """
    T, device = windows.context_length, model.tok_emb.weight.device
    at_once = max(1, TOKENS_AT_ONCE // T)
    stride = windows.stride
    ids = np.unique(np.asarray(windows.token_ids))
    sizes = np.array([len(tokenizer.token_bytes(int(token_id))) for token_id in ids])
    starting = np.array([tokenizer.characters_begun(int(token_id)) for token_id in ids])
    rows: list[tuple[float, ...]] = []
    bar: tqdm[Any] = tqdm(total=len(windows), unit="window", delay=2, leave=False, file=sys.stderr, disable=None)
    with evaluation_mode(model), bar:
        for first in range(0, len(windows), at_once):
            batch = [windows[i] for i in range(first, min(first + at_once, len(windows)))]
            inputs, targets = (torch.stack(column).to(device) for column in zip(*batch, strict=True))
            logits = model(inputs)
            losses = cross_entropy(logits, targets).cpu().double().numpy()  # MPS has no float64
            correct = (logits.argmax(-1) == targets).cpu().numpy()
            for i, row in enumerate(targets.cpu().numpy()):
                used = slice(T - min(stride, T) if each_token_once and first + i else 0, T)
                places = np.searchsorted(ids, row[used])
                values = (losses[i, used], correct[i, used], np.ones(T)[used], sizes[places], starting[places])
                rows.append(tuple(float(one.sum()) for one in values))
            bar.update(len(batch))
    scores = WindowScores(*np.array(rows).T)
    if not np.isfinite(scores.losses).all():
        raise not_finite()
    return scores


def summarize(scores: WindowScores) -> TextScores:
    """Return the measures of a text, with intervals by resampling its windows."""

    def ratio(values: Floats, counts: Floats) -> tuple[float, Interval | None]:
        enough = len(values) >= FEWEST and bool(counts.all())
        interval = bootstrap_interval(values / counts, counts) if enough else None
        return float(values.sum() / counts.sum()), interval

    bits = scores.losses / math.log(2)
    loss, loss_interval = ratio(scores.losses, scores.tokens)
    low_high = None if loss_interval is None else (perplexity(loss_interval[0]), perplexity(loss_interval[1]))
    return TextScores(
        int(scores.tokens.sum()),
        int(scores.sizes.sum()),
        loss,
        loss_interval,
        perplexity(loss),
        low_high,
        *ratio(bits, scores.sizes),
        *ratio(bits, scores.characters),
        *ratio(scores.correct, scores.tokens),
        windows=len(scores.tokens),
    )


def difference(one: WindowScores, other: WindowScores) -> tuple[float, Interval | None]:
    """Return the mean difference of two models' losses in bits per byte on the same windows, and its 95 % interval.

    Args:
        one: Scores of the first model.
        other: Scores of the second model, on the same windows.
    """
    assert (one.sizes == other.sizes).all()
    values = (one.losses - other.losses) / math.log(2) / one.sizes
    mean = float(values @ one.sizes / one.sizes.sum())
    return mean, bootstrap_interval(values, one.sizes) if len(values) >= FEWEST else None
