from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from generated import generated, generated_ids
from hypothesis import given
from hypothesis import strategies as st

from gpt_lightning.data.tokenizer import ByteTokenizer
from gpt_lightning.errors import InputError
from gpt_lightning.inference.completion import TextStream, complete_all, in_batches
from gpt_lightning.inference.generate import evaluation_mode, generate
from gpt_lightning.inference.kv_cache import KVCache
from gpt_lightning.inference.pretrained import TrainedGPT
from gpt_lightning.inference.sampling import (
    SamplingConfig,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_token_probs,
    process_logits,
    sample_next_token,
)
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT

BYTES = ByteTokenizer()


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(7)
    return GPT(GPTConfig(257, context_length=12, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.2))


def complete(model: GPT, prompt: str, sampling: SamplingConfig) -> str:
    (one,) = complete_all(model, BYTES, [prompt], sampling)
    return one.completion


def documents_loop(model: GPT, prompt: list[int], sampling: SamplingConfig, sample: int = 0) -> list[int]:
    """The completion loop of section 5.3.3 for one row, without a cache: the oracle."""
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


def random_prompt(length: int, seed: int) -> list[int]:
    return torch.randint(257, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("prompt_length", [1, 5, 12, 20])
@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, None), (1.0, None), (0.7, 5), (1.4, 25)])
def test_completions_equal_the_documents_uncached_loop(
    model: GPT, prompt_length: int, temperature: float, top_k: int | None
) -> None:
    model.eval()
    prompt = random_prompt(prompt_length, 3)
    sampling = SamplingConfig(max_new_tokens=20, temperature=temperature, top_k=top_k)

    assert generated_ids(model, [prompt], sampling) == [documents_loop(model, prompt, sampling)]


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    temperature=st.sampled_from([0.0, 0.8, 1.5]),
    seed=st.integers(0, 99),
)
def test_each_row_of_a_ragged_batch_gets_what_it_gets_alone_without_a_cache(
    model: GPT, lengths: list[int], temperature: float, seed: int
) -> None:
    """Within the context (12), across its end and beyond it, with rows that leave at different times."""
    model.eval()
    prompts = [random_prompt(length, seed + i) for i, length in enumerate(lengths)]
    samples = list(range(len(prompts)))
    sampling = SamplingConfig(max_new_tokens=15, temperature=temperature, seed=seed, eos_id=seed)

    together = generated_ids(model, prompts, sampling, samples)

    assert together == [documents_loop(model, *row) for row in zip(prompts, [sampling] * 9, samples, strict=False)]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_logits_of_a_ragged_batch_are_those_of_its_rows_up_to_rounding(
    model: GPT, dtype: torch.dtype, bound: float
) -> None:
    """The condition for equal tokens: candidates further apart than this, relative to the logits' size."""
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


def test_rows_that_the_cache_keeps_stay_as_they_are(model: GPT) -> None:
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


def test_no_eos_comes_too_early(model: GPT) -> None:
    prompt = random_prompt(4, 8)
    (free,) = generated_ids(model, [prompt], SamplingConfig(max_new_tokens=10))

    (late,) = generated_ids(model, [prompt], SamplingConfig(max_new_tokens=10, min_new_tokens=3, eos_id=free[0]))

    assert len(late) >= 3
    assert free[0] not in late


def test_log_probabilities_are_the_models_own(model: GPT) -> None:
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


def test_a_completion_ends_where_no_token_is_left() -> None:
    torch.manual_seed(3)
    small = GPT(GPTConfig(4, context_length=9, emb_dim=8, n_heads=1, n_layers=1))
    for temperature in (0.0, 1.0):
        sampling = SamplingConfig(max_new_tokens=9, temperature=temperature, no_repeat_ngram_size=1)

        (tokens,) = generated(small, [[2]], sampling)

        assert sorted(token.token_id for token in tokens[:-1] if token.token_id is not None) == [0, 1, 3]
        assert (tokens[-1].token_id, tokens[-1].finish_reason) == (None, "exhausted")


def test_the_same_seed_gives_the_same_text_and_another_seed_another(model: GPT) -> None:
    first = complete(model, "ab", SamplingConfig(temperature=1.0, seed=1))

    assert complete(model, "ab", SamplingConfig(temperature=1.0, seed=1)) == first
    assert complete(model, "ab", SamplingConfig(temperature=1.0, seed=2)) != first


def test_sample_n_of_a_prompt_draws_from_seed_plus_n(model: GPT) -> None:
    sampling = SamplingConfig(max_new_tokens=6, temperature=1.0, seed=40, num_samples=3, batch_size=2)

    completed = list(complete_all(model, BYTES, ["ab", "x"], sampling))

    assert [(one.prompt, one.seed) for one in completed] == [(p, s) for p in ("ab", "x") for s in (40, 41, 42)]
    for one in completed:
        alone = SamplingConfig(max_new_tokens=6, temperature=1.0, seed=one.seed)
        assert one.completion == complete(model, one.prompt, alone)


def test_sampling_leaves_mode_random_state_and_gradients_as_they_were(model: GPT) -> None:
    model.train()
    model.trf_blocks[0].eval()
    state = torch.get_rng_state()

    complete(model, "ab", SamplingConfig(temperature=1.0))

    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.trf_blocks[0].training
    assert model.trf_blocks[1].training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_between_steps_and_when_abandoned_mode_and_gradients_are_as_they_were(model: GPT) -> None:
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


def test_what_the_caller_computes_between_steps_changes_no_token(model: GPT) -> None:
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


def test_a_caller_ends_a_row_and_the_others_stay_as_they_are(model: GPT) -> None:
    prompts, sampling = [[1, 2], [3], [4, 5, 6]], SamplingConfig(max_new_tokens=6, temperature=1.0)
    free = generated_ids(model, prompts, sampling)
    found: list[list[int | None]] = [[], [], []]

    for step in generate(model, prompts, sampling):
        for token in step:
            found[token.row].append(token.token_id)
            if token.row == 1 and len(found[1]) == 2:
                token.finish_reason = "stop"

    assert found == [free[0], free[1][:2], free[2]]


def test_the_mode_comes_back_after_an_error(model: GPT) -> None:
    model.train()

    with pytest.raises(InputError, match="do not fit"), evaluation_mode(model):
        model(torch.zeros(1, 13, dtype=torch.int64))

    assert model.training


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.data())
def test_top_k_keeps_exactly_k_of_equal_logits_the_lowest_ids(values: list[int], data: st.DataObject) -> None:
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
def test_sampling_must_fit_the_vocabulary(model: GPT, sampling: SamplingConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        complete(model, "a", sampling)


def test_top_k_of_the_whole_vocabulary_changes_nothing(model: GPT) -> None:
    everything = complete(model, "ab", SamplingConfig(temperature=1.0, top_k=257))

    assert everything == complete(model, "ab", SamplingConfig(temperature=1.0))


def test_an_empty_prompt_is_refused(model: GPT) -> None:
    with pytest.raises(InputError, match=r"prompt is empty; to start from nothing give <\|endoftext\|>"):
        TrainedGPT(model, BYTES).complete("")


def test_a_long_prompt_is_cut_to_the_context_with_a_warning(model: GPT, capsys: pytest.CaptureFixture[str]) -> None:
    long = complete(model, "x" * 30 + "hello world!", SamplingConfig(max_new_tokens=3))

    assert capsys.readouterr().err == "gpt_lightning: warning: prompt has 42 tokens; the model reads the last 12\n"
    assert long == complete(model, "hello world!", SamplingConfig(max_new_tokens=3))


# ---- the order of what changes the logits


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


@pytest.mark.parametrize("controls", CONTROLS)
@pytest.mark.parametrize("seed", range(5))
def test_probabilities_equal_those_of_transformers_logits_processors(controls: dict[str, Any], seed: int) -> None:
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    draws = torch.Generator().manual_seed(seed)
    seen = torch.randint(12, (1, 30), generator=draws)  # few ids, so that runs come again
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
def test_top_k_and_temperature_equal_the_documents_order(seed: int) -> None:
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


# ---- text as it comes


TEXTS = st.text(st.sampled_from("ab\n\u00e9\u20ac\U0001f600"), max_size=12)


@given(st.lists(st.integers(0, 299), max_size=20))
def test_a_stream_ends_with_the_decoded_text(token_ids: list[int]) -> None:
    stream = TextStream(BYTES)
    for token_id in token_ids:
        stream.add(token_id)
    stream.finish()

    assert stream.text == stream.settled == BYTES.decode(token_ids)


@given(TEXTS, st.lists(TEXTS.filter(bool), max_size=3))
def test_what_a_stream_settles_grows_to_the_text_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    stream, settled = TextStream(BYTES, stops), [""]
    for token_id in BYTES.encode(text):
        stream.add(token_id)
        settled.append(stream.settled)
        if stream.is_stopped:
            break
    stream.finish()

    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    first = min(ends, default=None)  # the stop string that is complete first
    expected = text if first is None else text[: min(text[:first].find(one) for one in stops if one in text[:first])]
    assert stream.text == expected
    assert stream.is_stopped == (first is not None)
    assert all(expected.startswith(one) for one in settled)
    assert all(later.startswith(earlier) for earlier, later in pairwise(settled))


def test_a_stop_string_ends_a_completion_and_no_piece_of_it_is_shown(model: GPT) -> None:
    free = complete(model, "ab", SamplingConfig(max_new_tokens=30, temperature=1.0))
    stop = free[10:12]
    pieces: list[str] = []

    sampling = SamplingConfig(max_new_tokens=30, temperature=1.0, stop_strings=[stop, "never there"])
    (one,) = complete_all(model, BYTES, ["ab"], sampling, show=pieces.append)

    assert one.completion == free[: free.index(stop)] == "".join(pieces)
    assert one.finish_reason == "stop"
    assert BYTES.decode(one.completion_ids).endswith(stop)


def test_a_broken_prompt_comes_behind_those_before_it(model: GPT) -> None:
    def prompts() -> Iterator[str]:
        yield from ("a", "b")
        raise InputError("prompt is empty")

    completed = complete_all(model, BYTES, prompts(), SamplingConfig(max_new_tokens=2, batch_size=4))

    assert [next(completed).prompt, next(completed).prompt] == ["a", "b"]
    with pytest.raises(InputError, match="prompt is empty"):
        next(completed)


def test_batches_take_no_more_than_they_need() -> None:
    taken: list[int] = []

    first = next(in_batches((taken.append(i) or i for i in range(10**9)), 3))  # type: ignore[func-returns-value]

    assert first == taken == [0, 1, 2]
    assert list(chain.from_iterable(in_batches(range(7), 3))) == list(range(7))


def test_completions_at_the_beginning_can_be_left_out(model: GPT) -> None:
    sampling = SamplingConfig(max_new_tokens=3, temperature=1.0, num_samples=2)
    everything = list(complete_all(model, BYTES, ["a", "b", "c"], sampling))

    rest = list(complete_all(model, BYTES, ["a", "b", "c"], sampling, skip=3))

    assert [(one.text, one.seed) for one in rest] == [(one.text, one.seed) for one in everything[3:]]


def test_a_temperature_beyond_float32_draws_evenly_from_what_top_k_keeps() -> None:
    probs = next_token_probs(torch.tensor([[1.0, 5.0, 3.0, -2.0]]), SamplingConfig(temperature=1e300, top_k=2))

    assert probs.tolist() == [[0.0, 0.5, 0.5, 0.0]]


def test_half_a_character_can_be_a_stop_string(model: GPT) -> None:
    free = complete(model, "ab", SamplingConfig(max_new_tokens=40, temperature=1.0))
    sampling = SamplingConfig(max_new_tokens=len(BYTES.encode("ab")) + 40, temperature=1.0, stop_strings=["\ufffd"])
    (one,) = complete_all(model, BYTES, ["ab"], sampling)

    assert one.completion == free[: free.index("\ufffd")]
    assert one.finish_reason == "stop"
