from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpt_lightning.errors import InputError
from gpt_lightning.generation import (
    Sampling,
    complete,
    evaluation_mode,
    generate,
    keep_top_k,
    next_token_probs,
    sample_next_token,
)
from gpt_lightning.model import GPT
from gpt_lightning.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(7)
    return GPT(257, context_length=12, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.2)


def documents_loop(model: GPT, token_ids: Tensor, sampling: Sampling) -> list[int]:
    """The completion loop of section 5.3.3 for one row, without a cache: the oracle."""
    generator = torch.Generator().manual_seed(sampling.seed)
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
def test_completions_equal_the_documents_uncached_loop(
    model: GPT, prompt_length: int, temperature: float, top_k: int | None
) -> None:
    model.eval()
    token_ids = torch.randint(257, (1, prompt_length), generator=torch.Generator().manual_seed(3))
    sampling = Sampling(max_new_tokens=20, temperature=temperature, top_k=top_k)

    assert generate(model, token_ids, sampling) == [documents_loop(model, token_ids, sampling)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_of_a_batch_equal_single_runs(model: GPT, temperature: float) -> None:
    token_ids = torch.randint(257, (3, 4), generator=torch.Generator().manual_seed(4))
    sampling = Sampling(max_new_tokens=15, temperature=temperature)

    together = generate(model, token_ids, sampling)

    assert together == [generate(model, row[None], sampling)[0] for row in token_ids]


def test_each_row_stops_before_its_own_eos(model: GPT) -> None:
    token_ids = torch.randint(257, (3, 4), generator=torch.Generator().manual_seed(5))
    sampling = Sampling(max_new_tokens=10, temperature=1.0)
    free = generate(model, token_ids, sampling)
    eos_id = free[1][3]

    stopped = generate(model, token_ids, Sampling(max_new_tokens=10, temperature=1.0, eos_id=eos_id))

    for long, short in zip(free, stopped, strict=True):
        expected = long[: long.index(eos_id)] if eos_id in long else long
        assert short == expected


def test_the_same_seed_gives_the_same_text_and_another_seed_another(model: GPT) -> None:
    first = complete(model, BYTES, "ab", Sampling(temperature=1.0, seed=1))

    assert complete(model, BYTES, "ab", Sampling(temperature=1.0, seed=1)) == first
    assert complete(model, BYTES, "ab", Sampling(temperature=1.0, seed=2)) != first


def test_sampling_leaves_mode_random_state_and_gradients_as_they_were(model: GPT) -> None:
    model.train()
    model.trf_blocks[0].eval()
    state = torch.get_rng_state()

    complete(model, BYTES, "ab", Sampling(temperature=1.0))

    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.trf_blocks[0].training
    assert model.trf_blocks[1].training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


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

    probs = next_token_probs(torch.tensor([values]), temperature, k)[0]

    assert probs.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert (probs > 0).sum() <= k
    assert probs[torch.tensor(values).argmax()] == probs.max()


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-7])
def test_a_temperature_near_0_is_greedy(temperature: float) -> None:
    sampling = Sampling(temperature=temperature)

    drawn = sample_next_token(torch.tensor([[1.0, 5.0, 5.0, -math.inf]]), sampling, sampling.generators(1))

    assert drawn.tolist() == [1]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("max_new_tokens", 0, "sampling.max_new_tokens must be an int of at least 1, got 0"),
        ("temperature", -1.0, "sampling.temperature must be a finite number of at least 0, got -1.0"),
        ("temperature", math.nan, "sampling.temperature must be a finite number of at least 0, got nan"),
        ("temperature", math.inf, "sampling.temperature must be a finite number of at least 0, got inf"),
        ("seed", -1, "sampling.seed must be an int from 0 to 9223372036854775807, got -1"),
    ],
)
def test_impossible_sampling_is_refused(setting: str, value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**{setting: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(top_k=0), "sampling.top_k must be an int from 1 to 257, got 0"),
        (Sampling(top_k=258), "sampling.top_k must be an int from 1 to 257, got 258"),
        (Sampling(eos_id=257), "sampling.eos_id must be an int from 0 to 256, got 257"),
    ],
)
def test_sampling_must_fit_the_vocabulary(model: GPT, sampling: Sampling, message: str) -> None:
    with pytest.raises(InputError, match=message):
        complete(model, BYTES, "a", sampling)


def test_top_k_of_the_whole_vocabulary_changes_nothing(model: GPT) -> None:
    everything = complete(model, BYTES, "ab", Sampling(temperature=1.0, top_k=257))

    assert everything == complete(model, BYTES, "ab", Sampling(temperature=1.0))


def test_an_empty_prompt_is_refused(model: GPT) -> None:
    with pytest.raises(InputError, match=r"prompt is empty; to start from nothing give <\|endoftext\|>"):
        complete(model, BYTES, "", Sampling())


def test_a_long_prompt_is_cut_to_the_context_with_a_warning(model: GPT, capsys: pytest.CaptureFixture[str]) -> None:
    long = complete(model, BYTES, "x" * 30 + "hello world!", Sampling(max_new_tokens=3))

    assert capsys.readouterr().err == "gpt_lightning: warning: prompt has 42 tokens; the model reads the last 12\n"
    assert long == complete(model, BYTES, "hello world!", Sampling(max_new_tokens=3))
