from __future__ import annotations

import math

import pytest
import torch
from generated import generated, generated_ids, random_prompt, small_gpt
from hypothesis import given
from hypothesis import strategies as st

from gpt_lightning.errors import DivergedError, InputError
from gpt_lightning.inference.generate import evaluation_mode, generate
from gpt_lightning.inference.sampling import (
    SamplingConfig,
)
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT


@pytest.fixture(scope="module")
def model() -> GPT:
    return small_gpt()


def uncached_loop(model: GPT, prompt: list[int], sampling: SamplingConfig, sample: int = 0) -> list[int]:
    """Complete one row with the loop of the book's section 5.3.3, without a cache, as the oracle."""
    token_ids = torch.tensor([prompt])
    generator = torch.Generator().manual_seed(sampling.seed + sample)
    completion: list[int] = []
    for _ in range(sampling.max_new_tokens):
        with torch.no_grad():
            logits = model(token_ids[:, -model.context_length :])[:, -1, :]
        if sampling.top_k is not None:
            smallest = torch.topk(logits, sampling.top_k).values[:, -1:]
            logits = torch.where(logits < smallest, torch.tensor(-math.inf), logits)
        if sampling.temperature > 0:
            new_id = torch.multinomial(torch.softmax(logits / sampling.temperature, -1), 1, generator=generator)
        else:
            new_id = torch.argmax(logits, -1, keepdim=True)
        if new_id.item() == sampling.eos_id:
            break
        completion.append(int(new_id.item()))
        token_ids = torch.cat((token_ids, new_id), 1)
    return completion


@pytest.mark.parametrize("prompt_length", [1, 5, 12, 20])
@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, None), (1.0, None), (0.7, 5), (1.4, 25)])
def test_completions_equal_the_uncached_loop_of_the_reference_notes(
    model: GPT, prompt_length: int, temperature: float, top_k: int | None
) -> None:
    model.eval()
    prompt = random_prompt(prompt_length, 3)
    sampling = SamplingConfig(max_new_tokens=20, temperature=temperature, top_k=top_k)

    assert generated_ids(model, [prompt], sampling) == [uncached_loop(model, prompt, sampling)]


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    temperature=st.sampled_from([0.0, 0.8, 1.5]),
    seed=st.integers(0, 99),
)
def test_each_row_of_a_ragged_batch_equals_the_row_alone_without_a_cache(
    model: GPT, lengths: list[int], temperature: float, seed: int
) -> None:
    """For rows shorter than the context (12), growing past it, and longer, which finish at different steps."""
    model.eval()
    prompts = [random_prompt(length, seed + i) for i, length in enumerate(lengths)]
    samples = list(range(len(prompts)))
    sampling = SamplingConfig(max_new_tokens=15, temperature=temperature, seed=seed, eos_id=seed)

    together = generated_ids(model, prompts, sampling, samples)

    assert together == [uncached_loop(model, *row) for row in zip(prompts, [sampling] * 9, samples, strict=False)]


def test_each_row_stops_before_its_own_eos(model: GPT) -> None:
    prompts = [random_prompt(4, seed) for seed in (5, 6, 7)]
    free = generated_ids(model, prompts, SamplingConfig(max_new_tokens=10, temperature=1.0))
    eos_ids = [free[1][3], free[2][5]]

    stopped = generated(model, prompts, SamplingConfig(max_new_tokens=10, temperature=1.0, eos_id=eos_ids))

    for long, short in zip(free, stopped, strict=True):
        end = next((i for i, token_id in enumerate(long) if token_id in eos_ids), len(long))
        ends_early = end < len(long)
        assert [token.token_id for token in short] == long[:end] + [None] * ends_early
        assert [token.finish_reason for token in short[:-1]] == [""] * (len(short) - 1)
        assert short[-1].finish_reason == ("eos" if ends_early else "length")


def test_eos_cannot_end_a_completion_before_min_new_tokens(model: GPT) -> None:
    prompt = random_prompt(4, 8)
    (free,) = generated_ids(model, [prompt], SamplingConfig(max_new_tokens=10))

    (late,) = generated_ids(model, [prompt], SamplingConfig(max_new_tokens=10, min_new_tokens=3, eos_id=free[0]))

    assert len(late) >= 3
    assert free[0] not in late


def test_log_probabilities_are_those_before_sampling_settings(model: GPT) -> None:
    model.eval()
    prompt = random_prompt(4, 9)

    (tokens,) = generated(model, [prompt], SamplingConfig(max_new_tokens=12, temperature=1.7, top_k=9))

    text = prompt
    for token in tokens:
        with torch.no_grad():
            logits = model(torch.tensor([text[-12:]]))[0, -1]
        assert token.token_id is not None
        assert token.log_prob == pytest.approx(torch.log_softmax(logits, -1)[token.token_id].item(), abs=1e-5)
        text = [*text, token.token_id]


def test_a_completion_ends_when_no_token_is_allowed() -> None:
    torch.manual_seed(3)
    small = GPT(GPTConfig(4, context_length=9, emb_dim=8, n_heads=1, n_layers=1))
    for temperature in (0.0, 1.0):
        sampling = SamplingConfig(max_new_tokens=9, temperature=temperature, no_repeat_ngram_size=1)

        (tokens,) = generated(small, [[2]], sampling)

        assert sorted(token.token_id for token in tokens[:-1] if token.token_id is not None) == [0, 1, 3]
        assert (tokens[-1].token_id, tokens[-1].finish_reason) == (None, "exhausted")


def test_mode_and_gradients_are_restored_between_steps_and_when_abandoned(model: GPT) -> None:
    model.train()
    model.trf_blocks[0].eval()
    modes = [module.training for module in model.modules()]
    steps = generate(model, [[1, 2], [3]], SamplingConfig(temperature=1.0))
    for _ in range(3):
        next(steps)

        assert [module.training for module in model.modules()] == modes
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert model(torch.tensor([[1]])).requires_grad
    steps.close()

    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_computations_of_the_caller_between_steps_change_no_token(model: GPT) -> None:
    prompts, sampling = [[1, 2], [3]], SamplingConfig(max_new_tokens=20, temperature=1.0)
    expected = generated_ids(model, prompts, sampling)
    model.train()
    found: list[list[int | None]] = [[], []]

    for step in generate(model, prompts, sampling):
        torch.randn(3)
        model(torch.tensor([[7, 8, 9]]))  # with dropout
        for token in step:
            found[token.row].append(token.token_id)

    assert found == expected


def test_a_caller_can_end_a_row_without_changing_the_others(model: GPT) -> None:
    prompts, sampling = [[1, 2], [3], [4, 5, 6]], SamplingConfig(max_new_tokens=6, temperature=1.0)
    free = generated_ids(model, prompts, sampling)
    found: list[list[int | None]] = [[], [], []]

    for step in generate(model, prompts, sampling):
        for token in step:
            found[token.row].append(token.token_id)
            if token.row == 1 and len(found[1]) == 2:
                token.finish_reason = "stop"

    assert found == [free[0], free[1][:2], free[2]]


def test_the_mode_is_restored_after_an_error(model: GPT) -> None:
    model.train()

    with pytest.raises(InputError, match="do not fit"), evaluation_mode(model):
        model(torch.zeros(1, 13, dtype=torch.int64))

    assert model.training


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(temperature: float) -> None:
    """Weights may be finite and too large to compute with."""
    model = small_gpt()
    with torch.no_grad():
        model.final_norm.weight.fill_(3e38)
        model.out_head.weight.mul_(1000)
    sampling = SamplingConfig(max_new_tokens=2, temperature=temperature)

    with pytest.raises(DivergedError, match="the model's logits are not finite; its training may have diverged"):
        list(generate(model, [[1, 2]], sampling))
