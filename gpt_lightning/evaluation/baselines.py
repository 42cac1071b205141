"""Baselines: the losses of models that only count the training tokens.

    uniform    every token of the vocabulary is equally likely: ln V
    unigram    how often a token occurs
    bigram     how often it follows the token before it
    trigram    how often it follows the two tokens before it

Each model is interpolated with the next simpler one by Witten and Bell's method C ("The zero-frequency problem", IEEE
Transactions on Information Theory 37(4), 1991):

    p(w | h) = (c(h, w) + d(h) p(w | h')) / (c(h) + d(h))

c counts in the training tokens, d(h) is the number of distinct tokens that follow the history h, and h' is h without
its first token. The unigram model has the empty history, and is interpolated with the uniform one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_lightning.runs.records import BASELINE_MODELS

MOST_TRAINING_TOKENS = 20_000_000  # about 2 GB of memory while trigrams are counted
TOKENS_PER_PIECE = 1_000_000  # evaluated at a time, to bound the memory
LARGEST = np.iinfo(np.int64).max

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def counted_tokens(training_tokens: int) -> int:
    """Return how many of a number of training tokens are counted: the first `MOST_TRAINING_TOKENS`."""
    return min(training_tokens, MOST_TRAINING_TOKENS)


@dataclass(frozen=True)
class _Counts:
    """The n-grams of one order, and their histories, each with its n - 1 first tokens.

    Attributes:
        keys: (K + 1,) the n-grams, sorted. A key is the number of the n-gram's history times V plus its last token. The
            last key is larger than any n-gram's.
        counts: (K + 1,) how often each occurs; 0 for the last key.
        totals: (H + 1,) c(h) of each history, by its number; 0 for the last one, that of all unknown histories.
        kinds: (H + 1,) d(h), likewise.
    """

    keys: Ints
    counts: Ints
    totals: Ints
    kinds: Ints


class NGrams:
    """N-gram models of orders 1 to 3, counted from training tokens.

    Args:
        token_ids: (N,) training tokens of any integer type; only the first `MOST_TRAINING_TOKENS` are counted.
        vocab_size: V, larger than every token id.

    Attributes:
        vocab_size: V.
        counted: Number of tokens counted.
    """

    def __init__(self, token_ids: NDArray[Any], vocab_size: int) -> None:
        tokens = np.asarray(token_ids[: counted_tokens(len(token_ids))]).astype(np.int64)
        self.vocab_size = vocab_size
        self.counted = len(tokens)
        self._orders: list[_Counts] = []
        histories = np.zeros(len(tokens), np.int64)  # the empty history has number 0
        number_of_histories = 1
        for order in range(3):
            # histories[i] is the number of the history of tokens[i + order]
            keys, numbers, counts = np.unique(
                histories * vocab_size + tokens[order:], return_inverse=True, return_counts=True
            )
            owners = keys // vocab_size
            totals = np.bincount(owners, counts, number_of_histories + 1).astype(np.int64)
            kinds = np.bincount(owners, minlength=number_of_histories + 1)
            self._orders.append(_Counts(np.append(keys, LARGEST), np.append(counts, 0), totals, kinds))
            histories, number_of_histories = numbers[:-1], len(keys)

    def probabilities(self, token_ids: NDArray[Any]) -> dict[str, Floats]:
        """Return the probability that each model gives to each token, given the tokens before it.

        Args:
            token_ids: (M,) tokens, in order; the history of a token is at most what precedes it here.

        Returns:
            (M,) probabilities by the name of the model; the first tokens use the longest history that they have.
        """
        tokens = np.asarray(token_ids).astype(np.int64)
        probs = np.full(len(tokens), 1 / self.vocab_size)
        found = {BASELINE_MODELS[0]: probs}
        histories = np.zeros(len(tokens), np.int64)  # number of each token's history; -1 if it is unknown
        for name, counts in zip(BASELINE_MODELS[1:], self._orders, strict=True):
            keys = histories * self.vocab_size + tokens  # negative if the history is unknown
            places = np.searchsorted(counts.keys, keys)
            is_known = counts.keys[places] == keys
            count = np.where(is_known, counts.counts[places], 0)
            total, kinds = counts.totals[histories], counts.kinds[histories]
            probs = np.where(total > 0, (count + kinds * probs) / np.maximum(total + kinds, 1), probs)
            found[name] = probs
            # An n-gram of this order is a history of the next: that of the following token.
            histories = np.concatenate([[-1], np.where(is_known, places, -1)[:-1]])
        return found


@dataclass(frozen=True)
class Baselines:
    """Losses of the baselines on the tokens that a model is evaluated on, in nats per token.

    Attributes:
        uniform: ln V.
        unigram: Loss of the unigram model.
        bigram: Loss of the bigram model.
        trigram: Loss of the trigram model.
        training_tokens: Number of training tokens counted.
        validation_tokens: Number of predictions evaluated.
    """

    uniform: float
    unigram: float
    bigram: float
    trigram: float
    training_tokens: int
    validation_tokens: int

    @property
    def by_loss(self) -> list[tuple[str, float]]:
        """Names and losses of the n-gram models, the best first."""
        return sorted(((name, getattr(self, name)) for name in BASELINE_MODELS[1:]), key=lambda pair: pair[1])


def measure_baselines(
    training_ids: NDArray[Any], token_ids: NDArray[Any], weights: NDArray[np.int64], vocab_size: int
) -> Baselines:
    """Count the training tokens, and evaluate each baseline on the predictions that a model is evaluated on.

    Args:
        training_ids: (N,) training tokens, at least one.
        token_ids: (M,) tokens of the evaluated split; the history of a token may begin before its window.
        weights: (M,) how often a model predicts each token, see `Windows.times_predicted`.
        vocab_size: V.
    """
    model = NGrams(training_ids, vocab_size)
    sums = dict.fromkeys(BASELINE_MODELS, 0.0)
    for start in range(0, len(token_ids), TOKENS_PER_PIECE):
        first = max(0, start - (len(BASELINE_MODELS) - 2))  # with the history of the piece's first token
        found = model.probabilities(token_ids[first : start + TOKENS_PER_PIECE])
        for name, probs in found.items():
            used = weights[start : start + TOKENS_PER_PIECE]
            sums[name] -= float(np.log(probs[start - first :]) @ used)
    predictions = int(weights.sum())
    losses = {name: total / predictions for name, total in sums.items()}
    return Baselines(**losses, training_tokens=model.counted, validation_tokens=predictions)
