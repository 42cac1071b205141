"""Losses, ranks and alternatives of tokens, compared with plain forward passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from generated import random_prompt, small_gpt
from hypothesis import given
from hypothesis import strategies as st

from gpt_lightning.data.tokenizer import ByteTokenizer, load_tokenizer
from gpt_lightning.errors import DivergedError, InputError
from gpt_lightning.evaluation import tokens
from gpt_lightning.evaluation.tokens import TokenScores, score_tokens, total
from gpt_lightning.inference.pretrained import TrainedGPT
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT

MODEL = small_gpt()  # a context of 12 bytes
T = 12


def log_probs_after(history: list[int], model: GPT = MODEL) -> torch.Tensor:
    """Return the logarithms of the probabilities of the next token, (V,), from one plain forward pass."""
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([history]))[0, -1]
    model.train(training)
    return torch.log_softmax(logits.double(), -1)


def check(scores: TokenScores, i: int, expected: torch.Tensor, target: int) -> None:
    """Compare prediction i with the logarithms of the probabilities of all tokens, (V,)."""
    assert scores.losses[i] == pytest.approx(-expected[target].item(), abs=1e-5)
    order = expected.argsort(descending=True)
    assert (
        abs(scores.ranks[i] - 1 - order.tolist().index(target))
        <= int((expected - expected[target]).abs().lt(1e-5).sum()) - 1
    )
    assert scores.top_probs[i] == pytest.approx(expected[order[:5]].exp().numpy(), rel=1e-5)
    assert expected[torch.from_numpy(scores.top_ids[i])].numpy() == pytest.approx(expected[order[:5]].numpy(), abs=1e-5)


@given(st.integers(2, T + 1))
def test_a_text_within_the_context_is_predicted_from_all_tokens_before(length: int) -> None:
    ids = random_prompt(length, seed=length)

    scores = score_tokens(MODEL, ids)

    assert scores.losses.shape == scores.ranks.shape == (length - 1,)
    assert scores.top_ids.shape == scores.top_probs.shape == (length - 1, 5)
    for i in range(length - 1):
        check(scores, i, log_probs_after(ids[: i + 1]), ids[i + 1])


@given(st.integers(2, 5 * T), st.sampled_from([(1024, 1 << 24), (1, 1), (2 * T, 3 * 257)]))
def test_a_long_text_has_at_least_half_a_context_of_history(length: int, at_once: tuple[int, int]) -> None:
    """Restated: a token is predicted by the first window that has it, of 0, T / 2, T ..., and the last T tokens."""
    ids = random_prompt(length, seed=length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "TOKENS_AT_ONCE", at_once[0])
        patch.setattr(tokens, "LOGITS_AT_ONCE", at_once[1])

        scores = score_tokens(MODEL, ids)

    assert len(scores.losses) == length - 1
    for target in range(1, length):
        starts = [start for start in range(0, length, T // 2) if start < target <= start + T]
        start = max(0, min(starts[0], length - 1 - T))
        assert start == 0 or target - start >= T // 2
        check(scores, target - 1, log_probs_after(ids[start:target]), ids[target])


@pytest.mark.parametrize("context", [1, 2, 3])
def test_the_shortest_contexts(context: int) -> None:
    torch.manual_seed(1)
    model = GPT(GPTConfig(7, context_length=context, emb_dim=8, n_heads=2, n_layers=1)).eval()

    losses = score_tokens(model, [3, 1, 4, 1, 5, 2, 6]).losses

    assert len(losses) == 6
    assert losses[0] == pytest.approx(-log_probs_after([3], model)[1].item(), abs=1e-5)
    if context == 1:
        assert losses[5] == pytest.approx(-log_probs_after([2], model)[6].item(), abs=1e-5)


def test_equally_likely_tokens_are_ranked_by_their_ids() -> None:
    model = GPT(GPTConfig(4, context_length=8, emb_dim=8, n_heads=2, n_layers=1))
    torch.nn.init.zeros_(model.out_head.weight)

    scores = score_tokens(model, [0, 0, 3, 1, 2])

    assert scores.losses == pytest.approx(math.log(4))
    assert scores.ranks.tolist() == [1, 4, 2, 3]
    assert scores.top_probs == pytest.approx(np.full((4, 4), 0.25))  # a vocabulary of fewer than five


def test_mode_and_random_state_are_left_alone() -> None:
    model = small_gpt().train()
    before = torch.get_rng_state()

    once, again = (score_tokens(model, random_prompt(30, 1)).losses for _ in range(2))

    assert (once == again).all()
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_totals() -> None:
    tokenizer = load_tokenizer("gpt2")
    ids = tokenizer.encode("I HAD always thought")  # the predicted ones have 19 bytes
    scores = TokenScores(np.float32([1, 2, 3, 6]), np.array([1, 2, 1, 9]), np.zeros((4, 5), int), np.zeros((4, 5)))

    totals = total(scores, ids, tokenizer)

    assert (totals.predicted, totals.loss, totals.accuracy) == (4, 3.0, 0.5)
    assert totals.perplexity == pytest.approx(math.e**3)
    assert totals.bits_per_byte == pytest.approx(12 / math.log(2) / 19)


def test_the_mean_loss_of_a_short_text_is_that_of_the_model() -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("Zwölf Uhr.")

    loss = total(score_tokens(MODEL, ids), ids, tokenizer).loss

    assert loss == pytest.approx(TrainedGPT(MODEL, tokenizer).loss("Zwölf Uhr."), abs=1e-5)


@pytest.mark.parametrize("ids", [[], [5]])
def test_a_text_of_one_token_has_no_loss(ids: list[int]) -> None:
    with pytest.raises(InputError, match=f"the loss of a text needs at least 2 tokens, got {len(ids)}"):
        score_tokens(MODEL, ids)


def test_logits_that_are_not_finite() -> None:
    model = small_gpt()
    torch.nn.init.normal_(model.out_head.weight, std=1e38)

    with pytest.raises(DivergedError, match="the model's logits are not finite; its training may have diverged"):
        score_tokens(model, [1, 2, 3])
