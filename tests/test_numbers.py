"""The numbers printed in the reference notes A and B, and in the book that they follow.

Sections are those of chapter 5 of "Build a Large Language Model From Scratch". The notes were computed on a laptop's
GPU: their probabilities are reproduced within a relative 5e-4, everything else exactly.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from generated import generated_ids
from torch.nn import functional as F

from gpt_lightning.data.corpus import split_text
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.data.text import read_text, remove_empty_lines
from gpt_lightning.data.tokenizer import load_tokenizer, text_to_token_ids, token_ids_to_text
from gpt_lightning.data.windows import ResumableSampler, Windows
from gpt_lightning.inference.sampling import SamplingConfig, keep_top_k, next_token_probs, sample_next_token
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT
from gpt_lightning.models.loss import cross_entropy, perplexity
from gpt_lightning.training.module import GPTModule

GPT2 = load_tokenizer("gpt2")
INPUTS = torch.tensor([[16833, 3626, 6100], [40, 1107, 588]])  # "every effort moves", "I really like"
TARGETS = torch.tensor([[3626, 6100, 345], [1107, 588, 11311]])  # " effort moves you", " really like chocolate"


@pytest.fixture(scope="module")
def untrained() -> GPT:
    """Return GPT-2 small with context 256, untrained, initialized with seed 123."""
    torch.manual_seed(123)
    return GPT(GPTConfig(50257, context_length=256)).eval()


@pytest.fixture(scope="module")
def logits(untrained: GPT) -> torch.Tensor:
    with torch.no_grad():
        return untrained(INPUTS)


# ---- 5.1.1 text and token ids


@pytest.mark.parametrize(
    ("text", "token_ids"),
    [
        ("Hello, I am", [15496, 11, 314, 716]),
        ("Every effort moves you", [6109, 3626, 6100, 345]),
        ("every effort moves you", [16833, 3626, 6100, 345]),
        ("I really like chocolate", [40, 1107, 588, 11311]),
        ("World War I or the First", [10603, 1810, 314, 393, 262, 3274]),
        ("At the start of the", [2953, 262, 923, 286, 262]),
        ("at the start of the", [265, 262, 923, 286, 262]),
        ("a<|endoftext|>b", [64, 50256, 65]),
    ],
)
def test_text_is_encoded_and_decoded_as_in_the_notes(text: str, token_ids: list[int]) -> None:
    encoded = text_to_token_ids(text, GPT2)

    assert encoded.shape == (1, len(token_ids))
    assert encoded[0].tolist() == token_ids
    assert token_ids_to_text(encoded, GPT2) == text


@pytest.mark.parametrize(
    ("token_ids", "text"),
    [
        ([16657, 339, 42826], " Armed heNetflix"),
        (
            [15496, 11, 314, 716, 13240, 11381, 4307, 7640, 16620, 34991, 6842, 37891, 19970, 47477],
            "Hello, I am Laur inhab DistrinetalkQueue bear confidentlyggyenium",
        ),
        ([38491, 2448, 36069, 24862], " constants Per Rebels myriad"),
        ([36397, 15489, 10460, 18747], " Gathering bay 800array"),
        ([21345], " Treaty"),
        ([4141], " French"),
    ],
)
def test_token_ids_are_decoded_as_in_the_notes(token_ids: list[int], text: str) -> None:
    assert token_ids_to_text(torch.tensor(token_ids), GPT2) == text


def test_the_vocabulary_ends_with_endoftext() -> None:
    assert GPT2.vocab_size == 50257
    assert GPT2.encode("<|endoftext|>") == [50256]


def test_the_untrained_model_continues_hello_as_in_note_a(untrained: GPT) -> None:
    prompt_ids = text_to_token_ids("Hello, I am", GPT2)

    (completion,) = generated_ids(untrained, prompt_ids.tolist(), SamplingConfig(max_new_tokens=10))

    assert completion == [13240, 11381, 4307, 7640, 16620, 34991, 6842, 37891, 19970, 47477]
    assert len(prompt_ids[0]) + len(completion) == 14
    assert GPT2.decode(completion) == " Laur inhab DistrinetalkQueue bear confidentlyggyenium"


def test_the_untrained_model_continues_every_effort_as_in_note_a(untrained: GPT) -> None:
    (completion,) = generated_ids(untrained, [GPT2.encode("Every effort moves you")], SamplingConfig(max_new_tokens=10))

    assert GPT2.decode(completion) == " rentingetic wasnم refres RexMeCHicular stren"


@pytest.mark.parametrize(
    ("context_length", "tied", "parameters"),
    [
        (1024, False, 163_009_536),
        (256, False, 162_419_712),
        (128, False, 162_321_408),
        (1024, True, 124_412_160),
        (256, True, 123_822_336),
    ],
)
def test_parameter_counts_of_gpt2_small(context_length: int, tied: bool, parameters: int) -> None:
    config = GPTConfig(50257, context_length=context_length, tie_weights=tied)
    with torch.device("meta"):
        model = GPT(config)

    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert config.num_parameters == parameters


@pytest.mark.parametrize(
    ("emb_dim", "n_layers", "n_heads", "parameters"),
    [
        (768, 12, 12, 124_439_808),
        (1024, 24, 16, 354_823_168),
        (1280, 36, 20, 774_030_080),
        (1600, 48, 25, 1_557_611_200),
    ],
)
def test_parameter_counts_of_the_published_gpt2(emb_dim: int, n_layers: int, n_heads: int, parameters: int) -> None:
    config = GPTConfig(50257, 1024, emb_dim, n_heads, n_layers, qkv_bias=True, tie_weights=True)
    with torch.device("meta"):
        model = GPT(config)

    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert config.num_parameters == parameters


# ---- 5.1.2 the loss


def test_most_likely_tokens_of_the_untrained_model(logits: torch.Tensor) -> None:
    assert logits.shape == (2, 3, 50257)
    assert logits.argmax(-1).tolist() == [[16657, 339, 42826], [49906, 29669, 41751]]


def test_target_probabilities_of_the_untrained_model(logits: torch.Tensor) -> None:
    probs = torch.softmax(logits, dim=-1).gather(-1, TARGETS[..., None]).squeeze(-1)

    expected = torch.tensor([[7.4534e-05, 3.1060e-05, 1.1564e-05], [1.0337e-05, 5.6776e-05, 4.7559e-06]])
    torch.testing.assert_close(probs, expected, rtol=5e-4, atol=0)
    cpu = torch.tensor([7.4540e-05, 3.1061e-05, 1.1563e-05])
    torch.testing.assert_close(probs[0], cpu, rtol=2e-5, atol=0)
    log_probs = torch.tensor([-9.5042, -10.3796, -11.3677, -11.4798, -9.7764, -12.2561])
    torch.testing.assert_close(probs.log().flatten(), log_probs, rtol=0, atol=2e-4)


def test_loss_and_perplexity_of_the_untrained_model(logits: torch.Tensor) -> None:
    loss = cross_entropy(logits, TARGETS).mean().item()

    assert loss == pytest.approx(10.793964385986328, abs=2e-6)
    log_probs = torch.log_softmax(logits, dim=-1)
    by_hand = -sum(log_probs[b, t, TARGETS[b, t]].item() for b in range(2) for t in range(3)) / 6
    assert loss == pytest.approx(by_hand, abs=1e-5)
    assert F.cross_entropy(logits.flatten(0, 1), TARGETS.flatten()).item() == loss
    assert logits.flatten(0, 1).shape == (6, 50257)
    assert perplexity(loss) == pytest.approx(48726.6094, rel=2e-5)


def test_log_probabilities_of_note_a_average_to_its_loss() -> None:
    log_probs = [-9.5043, -10.3796, -11.3676, -11.4798, -9.7765, -12.2561]

    assert sum(log_probs) / 6 == pytest.approx(-10.793983, abs=1e-6)


def test_target_probabilities_of_note_b_give_its_loss_and_perplexity() -> None:
    probs = torch.tensor(
        [[9.9453e-06, 1.9495e-05, 1.4662e-05, 1.8303e-05], [1.6926e-05, 2.1331e-05, 1.0184e-05, 1.8939e-05]]
    ).double()
    losses = -probs.log()

    expected = torch.tensor([[11.5184, 10.8454, 11.1303, 10.9084], [10.9867, 10.7553, 11.4947, 10.8743]]).double()
    torch.testing.assert_close(losses, expected, rtol=0, atol=6e-5)
    assert losses.mean().item() == pytest.approx(11.064181, abs=1e-6)
    assert perplexity(losses.mean().item()) == pytest.approx(63842.93, abs=0.01)


def test_bounds_of_loss_and_perplexity() -> None:
    assert perplexity(0.0) == 1.0
    assert math.log(50257) == pytest.approx(10.8249, abs=5e-5)
    assert perplexity((1 + 3) / 2) == pytest.approx(7.389, abs=1e-3)  # not the mean of exp: 11.402
    assert perplexity(1000.0) == math.inf


# ---- 5.1.3 the data


def verdict_data(path: Path, **settings: object) -> TextDataModule:
    data = TextDataModule(text=str(path), **settings)  # type: ignore[arg-type]
    data.setup("fit")
    return data


def test_counts_of_the_verdict(verdict: Path) -> None:
    data = verdict_data(verdict)
    train, val = data.splits["training"], data.splits["validation"]

    assert data.source is not None
    assert data.source.sha256 == "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"
    assert (data.source.characters, data.total_tokens) == (20479, 5145)
    assert (train.characters, val.characters) == (18431, 2048)
    assert (train.tokens, val.tokens) == (4612, 534)
    assert (len(train.windows), len(val.windows)) == (18, 2)
    assert (train.windows.unused_tokens, val.windows.unused_tokens) == (3, 21)
    assert (data.count_train_batches(), data.count_val_batches()) == (9, 1)
    batches = list(data.train_dataloader())
    assert [tuple(inputs.shape) for inputs, _ in batches] == [(2, 256)] * 9
    assert sum(inputs.numel() for inputs, _ in batches) == 4608
    assert sum(inputs.numel() for inputs, _ in data.val_dataloader()[0]) == 512
    assert all(torch.equal(targets[:, :-1], inputs[:, 1:]) for inputs, targets in batches)


@pytest.mark.parametrize(
    ("context_length", "train_ratio", "windows", "batches"),
    [(128, 0.9, (36, 4), (18, 2)), (64, 0.9, (72, 8), (36, 4)), (256, 0.95, (19, 1), (9, 1))],
)
def test_windows_and_batches_at_other_settings(
    verdict: Path, context_length: int, train_ratio: float, windows: tuple[int, int], batches: tuple[int, int]
) -> None:
    data = verdict_data(verdict, context_length=context_length, train_ratio=train_ratio)

    assert (len(data.splits["training"].windows), len(data.splits["validation"].windows)) == windows
    assert (data.count_train_batches(), data.count_val_batches()) == batches


def test_the_verdict_has_no_validation_window_of_context_1024(verdict: Path) -> None:
    with pytest.raises(ValueError, match=r"split has 534 tokens, but one window needs 1,025"):
        verdict_data(verdict, context_length=1024)


@pytest.mark.slow
def test_losses_of_the_untrained_model_on_the_verdict(verdict: Path, untrained: GPT) -> None:
    text = read_text(verdict).content
    losses = []
    for part in split_text(text, 0.9):
        windows = Windows(torch.tensor(GPT2.encode(part)), 256, 256)
        with torch.no_grad():
            nll = [cross_entropy(untrained(x[None]), y[None]).double() for x, y in windows]
        losses.append(torch.cat(nll).mean().item())

    assert losses == pytest.approx([10.987584, 10.981107], abs=1e-5)


def test_splits_and_steps_of_note_b() -> None:
    assert len(split_text("x" * 88775, 0.8)[0]) == 71020
    assert len(split_text("x" * 88775, 0.8)[1]) == 17755
    # Context 1024: about 14,507 and 3,627 tokens give 7 training batches and 2 validation batches.
    assert len(ResumableSampler(Windows(torch.zeros(14507), 1024, 1024), 2, seed=123)) // 2 == 7
    assert len(Windows(torch.zeros(3627), 1024, 1024)) == 3
    # Context 128: 56 steps an epoch, 560 in ten, 256 tokens each.
    assert len(ResumableSampler(Windows(torch.zeros(14507), 128, 128), 2, seed=123)) // 2 == 56
    assert 560 * 256 == 143_360


def test_first_batch_of_note_b_with_stride_1() -> None:
    windows = Windows(torch.tensor(GPT2.encode("World War I or the First")), 4, 1)

    inputs, targets = zip(*(windows[i] for i in range(len(windows))), strict=True)

    assert torch.stack(inputs).tolist() == [[10603, 1810, 314, 393], [1810, 314, 393, 262]]
    assert torch.stack(targets).tolist() == [[1810, 314, 393, 262], [314, 393, 262, 3274]]


def test_cleaning_of_note_b() -> None:
    assert remove_empty_lines("  a \n\n\n b\n") == "a\nb"


def test_optimizer_of_note_a() -> None:
    module = GPTModule(GPTConfig(vocab_size=5, context_length=4, emb_dim=4, n_heads=1, n_layers=1))
    module.configure_model()

    optimizer = module.configure_optimizers()

    assert isinstance(optimizer, torch.optim.AdamW)
    assert len(optimizer.param_groups) == 1
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (4e-4, 0.1)
    assert len(optimizer.param_groups[0]["params"]) == len(list(module.parameters()))


# ---- 5.3 decoding

# tokens: closer every effort forward inches moves pizza toward you
TOY = torch.tensor([[4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79]])
FORWARD, PIZZA = 3, 6


def draws(logits: torch.Tensor, times: int, **settings: object) -> list[int]:
    """Return how often each token is drawn by one generator seeded with 123."""
    sampling = SamplingConfig(**{"temperature": 1.0, **settings})  # type: ignore[arg-type]
    generators = [sampling.generator()]
    sampled = [sample_next_token(logits, sampling, generators).item() for _ in range(times)]
    return torch.bincount(torch.tensor(sampled), minlength=logits.shape[-1]).tolist()


def test_probabilities_of_the_toy_logits() -> None:
    expected = [6.0907e-02, 1.6313e-03, 1.0019e-04, 5.7212e-01, 3.4190e-03]
    expected += [1.3257e-04, 1.0120e-04, 3.5758e-01, 4.0122e-03]

    assert next_token_probs(TOY, SamplingConfig(temperature=1.0))[0].tolist() == pytest.approx(expected, rel=5e-5)
    assert draws(TOY, 1, temperature=0.0).index(1) == FORWARD
    assert draws(TOY, 1).index(1) == FORWARD


@pytest.mark.parametrize(
    ("temperature", "counts"),
    [
        (1.0, [73, 0, 0, 582, 2, 0, 0, 343, 0]),
        (0.1, [0, 0, 0, 985, 0, 0, 0, 15, 0]),
        (5.0, [165, 75, 42, 239, 71, 46, 32, 227, 103]),
    ],
)
def test_counts_of_a_thousand_draws_at_three_temperatures(temperature: float, counts: list[int]) -> None:
    assert draws(TOY, 1000, temperature=temperature) == counts


def test_exercise_5_1_how_often_pizza_is_drawn() -> None:
    assert next_token_probs(TOY, SamplingConfig(temperature=5.0))[0, PIZZA].item() == pytest.approx(0.0430, abs=5e-5)
    assert draws(TOY, 1000, temperature=5.0)[PIZZA] == 32


def test_top_3_of_the_toy_logits() -> None:
    kept = keep_top_k(TOY, 3)

    inf = math.inf
    assert kept[0].tolist() == pytest.approx([4.51, -inf, -inf, 6.75, -inf, -inf, -inf, 6.28, -inf])
    probs = next_token_probs(TOY, SamplingConfig(temperature=1.0, top_k=3))[0].tolist()
    assert probs == pytest.approx([0.0615, 0, 0, 0.5775, 0, 0, 0, 0.3610, 0], abs=5e-5)
    assert draws(TOY, 1000, top_k=3) == [73, 0, 0, 583, 0, 0, 0, 344, 0]


def test_toy_logits_of_note_b() -> None:
    # tokens: war battle revolution novel experiment day journey movement
    torch.manual_seed(123)
    logits = torch.normal(0.0, 4.0, (1, 8))

    expected = [-0.4459, 0.4815, -1.4785, -0.9617, -4.7877, 0.8371, -3.8894, -3.0202]
    assert logits[0].tolist() == pytest.approx(expected, abs=5e-5)
    assert draws(logits, 1, temperature=0.0).index(1) == 5
    assert draws(logits, 100) == [11, 31, 7, 4, 0, 46, 1, 0]
    top_3 = [0.1402, 0.3543, 0, 0, 0, 0.5056, 0, 0]
    assert next_token_probs(logits, SamplingConfig(temperature=1.0, top_k=3))[0].tolist() == pytest.approx(
        top_3, abs=5e-5
    )
    assert draws(logits, 100, top_k=3) == [13, 34, 0, 0, 0, 53, 0, 0]
    cold = [0.0105, 0.2311, 0.0003, 0.0019, 0, 0.7562, 0, 0]
    assert next_token_probs(logits, SamplingConfig(temperature=0.3))[0].tolist() == pytest.approx(cold, abs=6e-5)
    hot = [0.148, 0.2747, 0.0744, 0.105, 0.0082, 0.3482, 0.0149, 0.0266]
    assert next_token_probs(logits, SamplingConfig(temperature=1.5))[0].tolist() == pytest.approx(hot, abs=6e-5)


def test_exercise_5_3_temperature_0_equals_top_k_1(untrained: GPT) -> None:
    prompt_ids = text_to_token_ids("Every effort moves you", GPT2)

    greedy = generated_ids(untrained, prompt_ids.tolist(), SamplingConfig(max_new_tokens=5))

    assert (
        generated_ids(untrained, prompt_ids.tolist(), SamplingConfig(max_new_tokens=5, temperature=1.0, top_k=1))
        == greedy
    )
    assert generated_ids(untrained, prompt_ids.tolist(), SamplingConfig(max_new_tokens=5)) == greedy
