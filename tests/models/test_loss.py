"""The loss equals PyTorch's in value and gradient, and reuses the memory of the logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gpt_lightning.models import loss
from gpt_lightning.models.loss import cross_entropy


def theirs(logits: Tensor, targets: Tensor) -> Tensor:
    """PyTorch's cross-entropy in float64."""
    return F.cross_entropy(logits.flatten(0, 1).double(), targets.flatten(), reduction="none").view(targets.shape)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 40), st.sampled_from([0.1, 1, 50, 1e4]))
def test_losses_and_gradients_equal_pytorchs(rows: int, tokens: int, vocab: int, block: int, size: float) -> None:
    logits = (torch.randn(rows, tokens, vocab) * size).requires_grad_()
    by_vocabulary = logits.flatten(0, 1).T.contiguous().T.unflatten(0, (rows, tokens))  # column-major
    targets = torch.randint(vocab, (rows, tokens))
    scales = torch.randn(rows, tokens)
    expected = theirs(logits, targets)
    (gradient,) = torch.autograd.grad(expected, logits, scales.double())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CPU_BLOCK", block)
        for given in (logits, by_vocabulary):
            found = cross_entropy(given * 1, targets)
            (ours,) = torch.autograd.grad(found, logits, scales, retain_graph=True)
            torch.testing.assert_close(found.double(), expected, rtol=2e-7, atol=1e-6)
            torch.testing.assert_close(ours, gradient, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("block", [7, 1 << 20])
@pytest.mark.parametrize("by_vocabulary", [True, False])
def test_losses_of_bf16_logits_are_float32_and_only_gradients_are_rounded(
    by_vocabulary: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CPU_BLOCK", block)
    logits = torch.randn(2, 8, 99, dtype=torch.bfloat16)
    if by_vocabulary:
        logits = logits.flatten(0, 1).T.contiguous().T.unflatten(0, (2, 8))
    logits.requires_grad_()
    targets = torch.randint(99, (2, 8))
    losses = cross_entropy(logits * 1, targets)
    (ours,) = torch.autograd.grad(losses.mean(), logits)
    (gradient,) = torch.autograd.grad(theirs(logits, targets).mean(), logits)

    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), theirs(logits, targets), rtol=1e-6, atol=1e-6)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, gradient, rtol=2**-7, atol=0)


def test_the_gradient_is_stored_in_the_logits_memory() -> None:
    logits = torch.randn(1, 4, 7, requires_grad=True) * 1
    addresses = [logits.data_ptr()]
    logits.register_hook(lambda gradient: addresses.append(gradient.data_ptr()))

    cross_entropy(logits, torch.zeros(1, 4, dtype=torch.long)).sum().backward()

    assert addresses[0] == addresses[1]


def test_a_second_backward_pass_fails() -> None:
    loss = cross_entropy(torch.randn(1, 4, 7, requires_grad=True) * 1, torch.zeros(1, 4, dtype=torch.long)).sum()
    loss.backward(retain_graph=True)

    with pytest.raises(AttributeError):
        loss.backward()


def test_logits_without_gradients_are_not_overwritten() -> None:
    logits = torch.randn(1, 4, 7)
    before = logits.clone()

    cross_entropy(logits, torch.zeros(1, 4, dtype=torch.long))

    assert torch.equal(logits, before)
