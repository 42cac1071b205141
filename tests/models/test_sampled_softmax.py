"""Sampled softmax: which tokens are candidates, and what the estimated loss and its gradient are."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT
from gpt_lightning.models.loss import cross_entropy
from gpt_lightning.models.sampled_softmax import draw_candidates


@given(st.integers(1, 300), st.integers(1, 400), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_candidates_are_the_targets_and_a_sample_of_the_other_tokens(
    vocab_size: int, samples: int, tokens: int, seed: int
) -> None:
    torch.manual_seed(seed)
    targets = torch.randint(vocab_size, (1, tokens))

    drawn = draw_candidates(targets, vocab_size, samples)

    certain, ids = set(targets[0].tolist()), drawn.token_ids.tolist()
    assert len(set(ids)) == len(ids) == min(len(certain) + samples, vocab_size)
    assert set(ids[: len(certain)]) == certain
    assert torch.equal(drawn.token_ids[drawn.targets], targets)
    # Together, the candidates count as many times as there are tokens, and the targets once each.
    assert drawn.log_weights.exp().sum().item() == pytest.approx(vocab_size, rel=1e-5)
    assert drawn.log_weights[: len(certain)].count_nonzero() == 0


@pytest.mark.parametrize("tie_weights", [False, True])
def test_with_all_tokens_as_candidates_the_loss_is_exact(tie_weights: bool) -> None:
    torch.manual_seed(1)
    model = GPT(GPTConfig(60, 8, 16, 2, 1, 0.0, tie_weights=tie_weights))
    inputs, targets = torch.randint(60, (2, 3, 8))
    exact = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    exact.backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()

    drawn = draw_candidates(targets, 60, 60)
    logits = model(inputs, candidates=drawn.token_ids) + drawn.log_weights
    assert logits.shape == (3, 8, 60)
    loss = cross_entropy(logits, drawn.targets).mean()
    loss.backward()

    torch.testing.assert_close(loss, exact)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


def test_weights_are_float32_in_a_half_precision_run() -> None:
    """Lightning makes bfloat16 the default type during a training step of bf16-true."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        drawn = draw_candidates(torch.tensor([[1, 2]]), 100, 40)
    finally:
        torch.set_default_dtype(torch.float32)

    assert drawn.log_weights[-1].item() == pytest.approx(math.log(98 / 40), rel=1e-6)


def test_the_estimate_of_the_sum_over_all_tokens_is_unbiased() -> None:
    torch.manual_seed(2)
    vocab_size, samples, draws = 500, 50, 4000
    logits = torch.randn(vocab_size, dtype=torch.float64) * 2
    targets = torch.tensor([[3, 3, 400]])

    estimates = []
    for _ in range(draws):
        drawn = draw_candidates(targets, vocab_size, samples)
        estimates.append((logits[drawn.token_ids] + drawn.log_weights).exp().sum().item())

    found = torch.tensor(estimates)
    error = found.std().item() / math.sqrt(draws)
    assert abs(found.mean().item() - logits.exp().sum().item()) < 4 * error
    assert found.std().item() > 0.01 * found.mean().item()  # it is an estimate
