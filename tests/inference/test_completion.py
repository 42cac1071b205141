from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, pairwise

import pytest
import torch
from generated import small_gpt
from hypothesis import given
from hypothesis import strategies as st

from gpt_lightning.data.tokenizer import ByteTokenizer
from gpt_lightning.errors import InputError
from gpt_lightning.inference.completion import TextStream, complete_all, in_batches
from gpt_lightning.inference.pretrained import TrainedGPT
from gpt_lightning.inference.sampling import (
    SamplingConfig,
)
from gpt_lightning.models.gpt import GPT

BYTES = ByteTokenizer()
TEXTS = st.text(st.sampled_from("ab\n\u00e9\u20ac\U0001f600"), max_size=12)


@pytest.fixture(scope="module")
def model() -> GPT:
    return small_gpt()


def complete(model: GPT, prompt: str, sampling: SamplingConfig) -> str:
    (one,) = complete_all(model, BYTES, [prompt], sampling)
    return one.completion


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


def test_sampling_leaves_mode_random_state_and_gradients_unchanged(model: GPT) -> None:
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


def test_top_k_of_the_whole_vocabulary_changes_nothing(model: GPT) -> None:
    everything = complete(model, "ab", SamplingConfig(temperature=1.0, top_k=257))

    assert everything == complete(model, "ab", SamplingConfig(temperature=1.0))


def test_sampling_is_checked_against_the_models_vocabulary(model: GPT) -> None:
    with pytest.raises(InputError, match="sampling.top_k must be an int from 1 to 257, got 258"):
        complete(model, "a", SamplingConfig(top_k=258))


def test_an_empty_prompt_is_refused(model: GPT) -> None:
    with pytest.raises(InputError, match=r"prompt is empty; use <\|endoftext\|> to generate without a prompt"):
        TrainedGPT(model, BYTES).complete("")


def test_a_long_prompt_is_cut_to_the_context_with_a_warning(model: GPT, capsys: pytest.CaptureFixture[str]) -> None:
    long = complete(model, "x" * 30 + "hello world!", SamplingConfig(max_new_tokens=3))

    assert capsys.readouterr().err == "gpt_lightning: warning: prompt has 42 tokens; the model sees only the last 12\n"
    assert long == complete(model, "hello world!", SamplingConfig(max_new_tokens=3))


@given(st.lists(st.integers(0, 299), max_size=20))
def test_a_stream_ends_with_the_decoded_text(token_ids: list[int]) -> None:
    stream = TextStream(BYTES)
    for token_id in token_ids:
        stream.add(token_id)
    stream.finish()

    assert stream.text == stream.settled == BYTES.decode(token_ids)


@given(TEXTS, st.lists(TEXTS.filter(bool), max_size=3))
def test_the_settled_text_of_a_stream_grows_to_the_text_before_the_first_stop_string(
    text: str, stops: list[str]
) -> None:
    stream, settled = TextStream(BYTES, stops), [""]
    for token_id in BYTES.encode(text):
        stream.add(token_id)
        settled.append(stream.settled)
        if stream.is_stopped:
            break
    stream.finish()

    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    first = min(ends, default=None)  # end of the stop string that is complete first
    expected = text if first is None else text[: min(text[:first].find(one) for one in stops if one in text[:first])]
    assert stream.text == expected
    assert stream.is_stopped == (first is not None)
    assert all(expected.startswith(one) for one in settled)
    assert all(later.startswith(earlier) for earlier, later in pairwise(settled))


def test_a_stop_string_ends_a_completion_and_is_never_shown_in_part(model: GPT) -> None:
    free = complete(model, "ab", SamplingConfig(max_new_tokens=30, temperature=1.0))
    stop = free[10:12]
    pieces: list[str] = []

    sampling = SamplingConfig(max_new_tokens=30, temperature=1.0, stop_strings=[stop, "never there"])
    (one,) = complete_all(model, BYTES, ["ab"], sampling, show=pieces.append)

    assert one.completion == free[: free.index(stop)] == "".join(pieces)
    assert one.finish_reason == "stop"
    assert BYTES.decode(one.completion_ids).endswith(stop)


def test_a_replacement_character_can_be_a_stop_string(model: GPT) -> None:
    free = complete(model, "ab", SamplingConfig(max_new_tokens=40, temperature=1.0))
    sampling = SamplingConfig(max_new_tokens=len(BYTES.encode("ab")) + 40, temperature=1.0, stop_strings=["\ufffd"])
    (one,) = complete_all(model, BYTES, ["ab"], sampling)

    assert one.completion == free[: free.index("\ufffd")]
    assert one.finish_reason == "stop"


def test_an_invalid_prompt_raises_after_the_completions_of_earlier_prompts(model: GPT) -> None:
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


def test_completions_at_the_beginning_can_be_skipped(model: GPT) -> None:
    sampling = SamplingConfig(max_new_tokens=3, temperature=1.0, num_samples=2)
    everything = list(complete_all(model, BYTES, ["a", "b", "c"], sampling))

    rest = list(complete_all(model, BYTES, ["a", "b", "c"], sampling, skip=3))

    assert [(one.text, one.seed) for one in rest] == [(one.text, one.seed) for one in everything[3:]]
