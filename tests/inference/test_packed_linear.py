"""Packed matrices give the model's logits; torch's private operations behave as assumed."""

from __future__ import annotations

import copy

import pytest
import torch
from generated import generated_ids
from torch import nn

from gpt_lightning.inference.packed_linear import PackedLinear, is_packable, pack
from gpt_lightning.inference.sampling import SamplingConfig
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (3, 24), (2, 5, 24), (1, 300, 24)])
def test_a_packed_layer_computes_the_same_linear_function(shape: tuple[int, ...], bias: bool) -> None:
    linear, x = nn.Linear(24, 40, bias=bias), torch.randn(shape)

    expected = x @ linear.weight.T + (linear.bias if bias else 0)
    torch.testing.assert_close(PackedLinear(linear, 8)(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_a_packed_model_gives_the_same_completions(tie_weights: bool) -> None:
    torch.manual_seed(4)
    model = GPT(
        GPTConfig(257, context_length=12, emb_dim=16, n_heads=2, n_layers=2, qkv_bias=True, tie_weights=tie_weights)
    )
    packed = copy.deepcopy(model)
    pack(packed, 3)

    sampling = SamplingConfig(max_new_tokens=20, temperature=1.0)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
    assert generated_ids(packed, prompts, sampling) == generated_ids(model, prompts, sampling)
    assert not any(isinstance(module, nn.Linear) for module in packed.modules())


def test_layers_that_cannot_be_packed_are_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_packable(torch.ones(2, 2))
    assert not is_packable(torch.ones(2, 2, dtype=torch.float64))
    assert not is_packable(torch.ones(2, 2, device="meta"))
    assert is_packable(torch.ones(2, 2).bfloat16()) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = nn.Sequential(nn.Linear(2, 2))

    pack(model, 1)

    assert isinstance(model[0], nn.Linear)
