from __future__ import annotations

import copy

import pytest
import torch
from generated import random_prompt, small_gpt

from gpt_lightning.inference.kv_cache import KVCache
from gpt_lightning.models.gpt import GPT


@pytest.fixture(scope="module")
def model() -> GPT:
    return small_gpt()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_logits_of_a_ragged_batch_equal_those_of_its_rows_up_to_rounding(
    model: GPT, dtype: torch.dtype, bound: float
) -> None:
    """Tokens are equal if the candidates' logits differ by more than this bound, relative to the largest logit."""
    model = copy.deepcopy(model).eval().to(dtype)
    prompts = [random_prompt(length, length) for length in (3, 7, 5)]
    padded, cache = torch.zeros(3, 7, dtype=torch.int64), KVCache(12)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = torch.tensor(prompt)
    with torch.no_grad():
        model(padded, cache)
        cache.lengths = [3, 7, 5]
        together = model(torch.tensor([[1], [2], [3]]), cache)[:, 0]
        alone = [model(torch.tensor([[*prompt, i]]))[0, -1] for i, prompt in enumerate(prompts, start=1)]

    for one, other in zip(together, alone, strict=True):
        assert (one - other).abs().max() <= bound * other.abs().max()


def test_kept_rows_of_the_cache_are_unchanged(model: GPT) -> None:
    model.eval()
    token_ids = torch.tensor([random_prompt(5, seed) for seed in (1, 2, 3)])
    cache, single = KVCache(8), KVCache(8)
    with torch.no_grad():
        model(token_ids, cache)
        cache.keep([2])
        model(token_ids[2:], single)

        kept, alone = (model(torch.tensor([[7]]), one) for one in (cache, single))

    assert cache.lengths == [6]
    torch.testing.assert_close(kept, alone, rtol=1e-5, atol=1e-6)
