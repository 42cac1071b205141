from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gpt_lightning.checkpoints.loading import open_checkpoint
from gpt_lightning.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from gpt_lightning.data.windows import Windows
from gpt_lightning.errors import DivergedError
from gpt_lightning.evaluation.perplexity import WindowScores, difference, score_windows, summarize
from gpt_lightning.models.gpt import GPT

TEXT = "Das Öl brennt, die Lampe flackert, und der Fluß steht tief. " * 4


@pytest.fixture
def model(trained: Path) -> GPT:
    return open_checkpoint(str(trained / "checkpoints/best.ckpt")).build()


def ids_of(text: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(ByteTokenizer().encode(text))


def losses_of(model: GPT, ids: list[int]) -> list[float]:
    """Losses of all tokens but the first, from one forward pass of PyTorch's own functions."""
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]]))[0]
    return F.cross_entropy(logits.double(), torch.tensor(ids[1:]), reduction="none").tolist()


def test_windows_as_in_training(model: GPT) -> None:
    ids = ids_of(TEXT)
    windows = Windows(ids, 64, 48)

    scores = score_windows(model, windows, ByteTokenizer(), each_token_once=False)

    pieces = [ids[start : start + 65].tolist() for start in range(0, len(ids) - 64, 48)]
    assert scores.losses == pytest.approx([sum(losses_of(model, piece)) for piece in pieces], rel=1e-5)
    assert scores.tokens.tolist() == scores.sizes.tolist() == [64] * len(pieces)
    characters = [sum(byte & 0xC0 != 0x80 for byte in piece[1:]) for piece in pieces]
    assert scores.characters.tolist() == characters
    assert any(count < 64 for count in characters)


@pytest.mark.parametrize("stride", [1, 16, 64])
def test_each_token_once_with_its_history(model: GPT, stride: int) -> None:
    ids = ids_of(TEXT).tolist()
    windows = Windows(np.array(ids), 64, stride)

    scores = score_windows(model, windows, ByteTokenizer(), each_token_once=True)

    expected = losses_of(model, ids[:65])
    for start in range(stride, len(ids) - 64, stride):
        expected += losses_of(model, ids[start : start + 65])[-stride:]
    assert scores.losses.sum() == pytest.approx(sum(expected), rel=1e-5)
    assert scores.tokens.sum() == len(expected) == 64 + (len(windows) - 1) * stride


def test_measures_from_their_definitions(model: GPT) -> None:
    ids = ids_of(TEXT)
    scores = score_windows(model, Windows(ids, 64, 64), ByteTokenizer(), each_token_once=False)
    bits = scores.losses.sum() / math.log(2)

    found = summarize(scores)

    text = bytes(int(one) for one in ids[1 : 1 + found.tokens]).decode(errors="ignore")
    assert found.bytes == found.tokens == 64 * len(scores.losses)
    assert found.loss == pytest.approx(scores.losses.sum() / found.tokens)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_byte == pytest.approx(bits / found.bytes)
    assert found.bits_per_character == pytest.approx(bits / len(text), rel=0.01)
    with torch.no_grad():
        first = model(torch.from_numpy(ids[None, :64])).argmax(-1)[0].numpy()
    assert scores.correct[0] == (first == ids[1:65]).sum()
    assert (found.windows, found.loss_interval) == (3, None)


def test_bytes_of_tokens_that_are_longer_than_one(model: GPT) -> None:
    class Doubled(ByteTokenizer):
        def token_bytes(self, token_id: int) -> bytes:
            return 2 * super().token_bytes(token_id)

    tokenizer: Tokenizer = Doubled()
    windows = Windows(ids_of(TEXT), 64, 64)

    found = summarize(score_windows(model, windows, tokenizer, each_token_once=False))

    single = summarize(score_windows(model, windows, load_tokenizer("bytes"), each_token_once=False))
    assert (found.bytes, found.tokens) == (2 * single.bytes, single.tokens)
    assert found.bits_per_byte == pytest.approx(single.bits_per_byte / 2)


def scores_of(losses: list[float], sizes: list[float]) -> WindowScores:
    ones = np.ones(len(losses))
    return WindowScores(np.array(losses), 0 * ones, ones, np.array(sizes), np.array(sizes))


def test_intervals_contain_the_value_and_differences_pair_the_windows() -> None:
    generator = np.random.default_rng(1)
    easy = generator.uniform(2, 6, 40)
    sizes = generator.integers(2, 6, 40).astype(float)
    one, other = scores_of(easy.tolist(), sizes.tolist()), scores_of((easy + 0.1 * sizes).tolist(), sizes.tolist())

    found = summarize(one)
    mean, interval = difference(other, one)

    assert found.loss_interval is not None
    assert found.loss_interval[0] < found.loss < found.loss_interval[1]
    assert found.perplexity_interval == pytest.approx(tuple(math.exp(end) for end in found.loss_interval))
    # A difference of 0.1 nats in every byte has no spread, although the losses of the windows have.
    assert mean == pytest.approx(0.1 / math.log(2))
    assert interval == pytest.approx((mean, mean))


def test_losses_that_are_not_finite_are_refused(model: GPT) -> None:
    with torch.no_grad():
        model.out_head.weight[0] = math.nan

    with pytest.raises(DivergedError, match="the model's logits are not finite; its training may have diverged"):
        score_windows(model, Windows(ids_of(TEXT), 64, 64), ByteTokenizer(), each_token_once=False)
