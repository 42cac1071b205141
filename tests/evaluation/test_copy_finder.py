"""Runs of tokens, compared with a search that tries every sequence of tokens at every position."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_lightning.evaluation import copy_finder
from gpt_lightning.evaluation.copy_finder import CopiedRun, CopyFinder, count_copied, hash_ngrams

Tokens = list[int]


@st.composite
def texts(draw: st.DrawFn) -> tuple[Tokens, Tokens]:
    """A training text over a few tokens, and a text with pieces of it and one more token."""
    size = draw(st.integers(1, 4))
    training = draw(st.lists(st.integers(0, size), max_size=60))
    tokens: Tokens = []
    for _ in range(draw(st.integers(0, 4))):
        begin, length = draw(st.integers(0, 60)), draw(st.integers(0, 30))
        tokens += training[begin : begin + length]
        tokens += draw(st.lists(st.integers(0, size + 1), max_size=4))
    return training, tokens


def find(tokens: Tokens, training: Tokens) -> int | None:
    places = range(len(training) - len(tokens) + 1)
    return next((place for place in places if training[place : place + len(tokens)] == tokens), None)


def all_runs(training: Tokens, tokens: Tokens, at_least: int) -> list[CopiedRun]:
    """The longest run from each start, without those inside of one that starts earlier."""
    runs: list[CopiedRun] = []
    for start in range(len(tokens)):
        length = 0
        while start + length < len(tokens) and find(tokens[start : start + length + 1], training) is not None:
            length += 1
        if length >= at_least and all(start + length > run.start + run.length for run in runs):
            runs.append(CopiedRun(start, length, find(tokens[start : start + length], training) or 0))
    return runs


@pytest.fixture(params=[1, 7, 1 << 17])
def _limits(request: pytest.FixtureRequest) -> Iterator[None]:
    """Scan blocks of these tokens, compare as many pairs of tokens, so that a short text has many of them."""
    names = ("BLOCK", "MOST_PAIRS", "COMPARED")
    with mock.patch.multiple(copy_finder, **dict.fromkeys(names, request.param)):
        yield


@pytest.mark.usefixtures("_limits")
@given(texts(), st.integers(1, 12))
def test_runs_are_those_of_a_search_at_every_position(both: tuple[Tokens, Tokens], at_least: int) -> None:
    training, tokens = both

    assert CopyFinder(np.array(training, np.uint16)).copied_runs(tokens, at_least) == all_runs(*both, at_least)


@pytest.mark.usefixtures("_limits")
@given(texts(), st.integers(1, 20))
def test_the_longest_run_is_found_below_any_length(both: tuple[Tokens, Tokens], more: int) -> None:
    training, tokens = both
    lengths = [run.length for run in all_runs(training, tokens, 1)]

    run = CopyFinder(np.array(training, np.uint16)).longest_short_run(tokens, max(lengths, default=0) + more)

    assert (0 if run is None else run.length) == max(lengths, default=0)
    if run is not None:
        assert find(tokens[run.start : run.start + run.length], training) == run.position


@given(texts(), st.integers(1, 12))
def test_other_sequences_with_the_same_hash_are_no_runs(both: tuple[Tokens, Tokens], at_least: int) -> None:
    training, tokens = both

    with mock.patch.object(copy_finder, "HASH_MIX", 0):  # all hashes are 0
        assert set(hash_ngrams(np.array([1, 2, 3]), 2)) == {0}
        assert CopyFinder(np.array(training)).copied_runs(tokens, at_least) == all_runs(*both, at_least)


@given(st.lists(st.integers(0, 70_000), min_size=1, max_size=20), st.data())
def test_hashes_are_those_of_a_polynomial(tokens: Tokens, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(tokens)))
    base, mix = copy_finder.HASH_BASE, copy_finder.HASH_MIX

    hashes = hash_ngrams(np.array(tokens), n)

    assert hashes.tolist() == [
        mix * sum(one * base ** (n - 1 - place) for place, one in enumerate(tokens[begin : begin + n])) % 2**32
        for begin in range(len(tokens) - n + 1)
    ]


def test_runs_at_both_ends_of_both_texts() -> None:
    training = list(range(100))
    finder = CopyFinder(np.array(training, np.uint16))

    assert finder.copied_runs([*range(10), 7, *range(88, 100)], 8) == [CopiedRun(0, 10, 0), CopiedRun(11, 12, 88)]
    assert finder.copied_runs(training, 8) == [CopiedRun(0, 100, 0)]
    assert finder.copied_runs([5, *training, 5], 8) == [CopiedRun(1, 100, 0)]
    assert finder.copied_runs(training, at_least=101) == []
    assert finder.longest_short_run([3, 99, 0, 1, 2], 8) == CopiedRun(2, 3, 0)
    assert finder.longest_short_run([100, 70_000], 8) is None  # ids beyond those of the training text
    assert finder.longest_short_run([], 8) is None


def test_tokens_in_several_runs_are_counted_once() -> None:
    finder = CopyFinder(np.array([*range(12), 50, *range(4, 20)]))

    runs = finder.copied_runs([*range(20), 60, *range(8), 61], 8)

    assert runs == [CopiedRun(0, 12, 0), CopiedRun(4, 16, 13), CopiedRun(21, 8, 0)]
    assert count_copied(runs) == 28
    assert count_copied([]) == 0
