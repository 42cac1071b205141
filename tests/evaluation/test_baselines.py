from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result
from hypothesis import given
from hypothesis import strategies as st

from gpt_lightning.data.corpus import split_text
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.data.windows import Windows
from gpt_lightning.evaluation import baselines
from gpt_lightning.evaluation.baselines import NGrams, measure_baselines
from gpt_lightning.runs.figures import loss_figure, read_curve
from gpt_lightning.runs.records import BASELINE_MODELS

Command = Callable[..., Result]
VOCAB = 5
tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40)


def witten_bell(training: list[int], history: tuple[int, ...], token: int) -> float:
    """The formula of the module's docstring, with dictionaries."""
    following: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for order in range(3):
        for i in range(order, len(training)):
            following[tuple(training[i - order : i])][training[i]] += 1
    prob = 1 / VOCAB
    for length in range(len(history) + 1):
        counts = following[history[len(history) - length :]]
        if counts:
            prob = (counts[token] + len(counts) * prob) / (counts.total() + len(counts))
    return prob


@given(tokens, tokens)
def test_probabilities_equal_the_formula_with_dictionaries(training: list[int], evaluated: list[int]) -> None:
    found = NGrams(np.array(training), VOCAB).probabilities(np.array(evaluated, np.uint16))

    for order, name in enumerate(("unigram", "bigram", "trigram")):
        expected = [
            witten_bell(training, tuple(evaluated[max(0, i - order) : i]), token) for i, token in enumerate(evaluated)
        ]
        assert found[name] == pytest.approx(expected, rel=1e-12)


@given(tokens, tokens)
def test_probabilities_of_all_tokens_sum_to_one(training: list[int], history: list[int]) -> None:
    model = NGrams(np.array(training), VOCAB)
    sums = dict.fromkeys(BASELINE_MODELS, 0.0)
    for token in range(VOCAB):
        for name, probs in model.probabilities(np.array([*history, token])).items():
            sums[name] += probs[-1]

    assert sums == pytest.approx(dict.fromkeys(BASELINE_MODELS, 1.0))


def test_the_verdict(verdict: Path) -> None:
    tokenizer = load_tokenizer("gpt2")
    train, val = (np.array(tokenizer.encode(part)) for part in split_text(verdict.read_text(encoding="utf-8"), 0.9))
    windows = Windows(val, 256, 256)

    found = measure_baselines(train, val[:513], windows.times_predicted(len(windows)), 50257)

    losses = [found.uniform, found.unigram, found.bigram, found.trigram]
    assert losses == pytest.approx([math.log(50257), 6.652, 5.819, 5.947], abs=5e-4)
    assert (found.training_tokens, found.validation_tokens) == (4612, 512)
    assert [name for name, _ in found.by_loss] == ["bigram", "trigram", "unigram"]


@given(st.lists(st.integers(0, VOCAB - 1), min_size=8, max_size=60), st.integers(1, 6), st.integers(1, 7))
def test_the_weights_are_those_of_the_windows(evaluated: list[int], context: int, stride: int) -> None:
    windows = Windows(np.array(evaluated), context, stride)
    count = max(1, len(windows) // 2)
    targets = Counter(int(one) for i in range(count) for one in windows.start(i) + np.arange(1, context + 1))

    weights = windows.times_predicted(count)

    assert weights.tolist() == [targets[i] for i in range(windows.start(count - 1) + context + 1)]


def test_pieces_and_a_limit_of_the_training_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    training, evaluated = generator.integers(0, VOCAB, 500), generator.integers(0, VOCAB, 100)
    weights = np.ones(100, np.int64)
    whole = measure_baselines(training[:300], evaluated, weights, VOCAB)
    monkeypatch.setattr(baselines, "TOKENS_PER_PIECE", 7)
    monkeypatch.setattr(baselines, "MOST_TRAINING_TOKENS", 300)

    found = measure_baselines(training, evaluated, weights, VOCAB)

    assert found.training_tokens == whole.training_tokens == 300
    assert vars(found) == pytest.approx(vars(whole), rel=1e-12)


@pytest.mark.parametrize(("most", "words"), [(18_412, "first 18,412 training tokens"), (18_413, "training text")])
def test_fit_says_if_only_the_first_training_tokens_are_counted(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch, most: int, words: str
) -> None:
    monkeypatch.setattr(baselines, "MOST_TRAINING_TOKENS", most)

    result = command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=1")

    assert f"(validation loss of counting the {words})" in result.out
    assert json.loads(Path("run/baselines.json").read_text())["training_tokens"] == most


def test_fit_prints_stores_and_draws_the_baselines(command: Command, config: Path) -> None:
    result = command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=2")

    stored = json.loads(Path("run/baselines.json").read_text())
    names = sorted(("unigram", "bigram", "trigram"), key=lambda name: stored[name])
    losses = ", ".join(f"{name} {stored[name]:.3f}" for name in names)
    assert f"baselines   {losses} (validation loss of counting the training text)" in result.out
    assert stored["uniform"] == pytest.approx(math.log(257))
    content = torch.load("run/checkpoints/best.ckpt", weights_only=True)
    assert content["gpt_lightning"]["baselines"] == stored
    curve = read_curve("run")
    assert curve.baseline == (names[0], stored[names[0]])
    lines = loss_figure([curve]).axes[0].lines
    assert [stored[names[0]]] * 2 in [list(line.get_ydata()) for line in lines]  # type: ignore[arg-type]
