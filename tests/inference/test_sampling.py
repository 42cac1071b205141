from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_lightning.errors import InputError
from gpt_lightning.inference.sampling import (
    SamplingConfig,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_token_probs,
    process_logits,
    sample_next_token,
)

CONTROLS = [
    {"temperature": 0.7},
    {"temperature": 1.4, "top_k": 25},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.05},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1, "temperature": 2.0, "top_k": 60},
    {"min_new_tokens": 5, "eos_id": [3, 9], "repetition_penalty": 1.1},
    {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "min_new_tokens": 5,
        "eos_id": 4,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.02,
    },
]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.data())
def test_top_k_keeps_exactly_k_and_the_lowest_ids_of_ties(values: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))

    kept = keep_top_k(torch.tensor([values]).float(), k)[0]

    assert [i for i in range(len(values)) if kept[i] > -math.inf] == sorted(order[:k])


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=9),
    st.floats(1e-3, 1e3),
    st.data(),
)
def test_probabilities_are_a_distribution_over_k_tokens(
    values: list[float], temperature: float, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(values)))

    probs = next_token_probs(torch.tensor([values]), SamplingConfig(temperature=temperature, top_k=k))[0]

    assert probs.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert (probs > 0).sum() <= k
    assert probs[torch.tensor(values).argmax()] == probs.max()


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-7])
def test_a_temperature_near_0_is_greedy(temperature: float) -> None:
    sampling = SamplingConfig(temperature=temperature)

    drawn = sample_next_token(torch.tensor([[1.0, 5.0, 5.0, -math.inf]]), sampling, [sampling.generator()])

    assert drawn.tolist() == [1]


def test_a_temperature_beyond_float32_is_uniform_over_the_top_k() -> None:
    probs = next_token_probs(torch.tensor([[1.0, 5.0, 3.0, -2.0]]), SamplingConfig(temperature=1e300, top_k=2))

    assert probs.tolist() == [[0.0, 0.5, 0.5, 0.0]]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("max_new_tokens", 0, "sampling.max_new_tokens must be an int of at least 1, got 0"),
        ("temperature", -1.0, "sampling.temperature must be a finite number of at least 0, got -1.0"),
        ("temperature", math.nan, "sampling.temperature must be a finite number of at least 0, got nan"),
        ("temperature", math.inf, "sampling.temperature must be a finite number of at least 0, got inf"),
        ("temperature", True, "sampling.temperature must be a finite number of at least 0, got True"),
        ("top_p", 0.0, "sampling.top_p must be above 0 and at most 1, got 0.0"),
        ("top_p", 1.5, "sampling.top_p must be above 0 and at most 1, got 1.5"),
        ("min_p", -0.1, "sampling.min_p must be from 0 to 1, got -0.1"),
        ("repetition_penalty", 0.0, "sampling.repetition_penalty must be from 1e-6 to 1e6, got 0.0"),
        ("no_repeat_ngram_size", 0, "sampling.no_repeat_ngram_size must be an int of at least 1, got 0"),
        ("min_new_tokens", 51, r"sampling.min_new_tokens \(51\) must be at most sampling.max_new_tokens \(50\)"),
        ("stop_strings", ["a", ""], "sampling.stop_strings must be a list of texts, none of them empty"),
        ("stop_strings", "END", "sampling.stop_strings must be a list of texts, none of them empty, got 'END'"),
        ("num_samples", 0, "sampling.num_samples must be an int from 1 to 10000, got 0"),
        ("num_samples", 2, r"sampling.num_samples \(2\) needs a sampling.temperature above 0"),
        ("batch_size", 0, "sampling.batch_size must be an int from 1 to 10000, got 0"),
        ("seed", -1, "sampling.seed must be an int from 0 to 9223372036854775807, got -1"),
    ],
)
def test_impossible_sampling_is_refused(setting: str, value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplingConfig(**{setting: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (SamplingConfig(top_k=0), "sampling.top_k must be an int from 1 to 257, got 0"),
        (SamplingConfig(top_k=258), "sampling.top_k must be an int from 1 to 257, got 258"),
        (SamplingConfig(eos_id=257), "sampling.eos_id must be an int from 0 to 256, got 257"),
        (SamplingConfig(eos_id=[1, -1]), "sampling.eos_id must be an int from 0 to 256, got -1"),
    ],
)
def test_sampling_must_fit_the_vocabulary(sampling: SamplingConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sampling.check_vocabulary(257)


@pytest.mark.parametrize("controls", CONTROLS)
@pytest.mark.parametrize("seed", range(5))
def test_probabilities_equal_those_of_transformers_logits_processors(controls: dict[str, Any], seed: int) -> None:
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    draws = torch.Generator().manual_seed(seed)
    seen = torch.randint(12, (1, 30), generator=draws)  # few ids, so that n-grams repeat
    logits = 3 * torch.randn(1, 97, generator=draws)
    sampling = SamplingConfig(**{"temperature": 1.0, **controls})
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")
    theirs = {name: getattr(sampling, name) for name in names}
    config = GenerationConfig(do_sample=True, eos_token_id=sampling.eos_id, max_new_tokens=50, **theirs)
    config.top_k = sampling.top_k or 0
    config.num_beams = 1
    peer = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=64, n_embd=8, n_layer=1, n_head=1))
    peer._prepare_special_tokens(config)
    processors = peer._get_logits_processor(
        generation_config=config, input_ids_seq_length=27, encoder_input_ids=seen, logits_processor=[]
    )

    ours = next_token_probs(process_logits(logits[0], seen[0].tolist(), 3, sampling)[None], sampling)

    expected = torch.softmax(processors(seen, logits.clone()), -1)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(ours > 0, expected > 0)


@pytest.mark.parametrize("seed", range(5))
def test_top_k_and_temperature_equal_the_order_of_the_reference_notes(seed: int) -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(seed))
    smallest = torch.topk(logits, 7).values[:, -1:]
    expected = torch.softmax(torch.where(logits < smallest, torch.tensor(-math.inf), logits) / 1.4, -1)

    assert torch.equal(next_token_probs(logits, SamplingConfig(temperature=1.4, top_k=7)), expected)


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=9), st.floats(0.05, 1.0))
def test_top_p_keeps_the_fewest_tokens_that_reach_p(values: list[float], top_p: float) -> None:
    probs = torch.softmax(torch.tensor(values), -1).tolist()
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))

    kept = [i for i, value in enumerate(keep_top_p(torch.tensor([values]), top_p)[0].tolist()) if value > -math.inf]

    assert sorted(order[: len(kept)]) == kept
    assert sum(probs[i] for i in kept) >= top_p - 1e-5
    assert sum(probs[i] for i in order[: len(kept) - 1]) < top_p + 1e-5


def test_min_p_is_a_share_of_the_highest_probability() -> None:
    logits = torch.tensor([[math.log(0.5), math.log(0.3), math.log(0.15), math.log(0.05)]])

    kept = keep_min_p(logits, 0.25)[0] > -math.inf

    assert kept.tolist() == [True, True, True, False]
