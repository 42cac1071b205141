"""Find runs of tokens that two texts have in common.

A run is a sequence of tokens that occurs verbatim in the training tokens. Lee et al. 2022, "Deduplicating Training Data
Makes Language Models Better", find runs with a suffix array of the whole text. Here the text is scanned once for each
search, which takes about half a second per 100 million tokens and needs no index in memory or on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.data.windows import TokenIds

AT_LEAST, AT_LEAST_BYTES = 8, 32  # tokens, and their usual bytes, in a run; shorter ones are common phrases
MEASURED = 1_000_000  # training tokens whose bytes are counted
BLOCK = 1 << 17  # training tokens that are scanned at a time; the arrays of a block stay in the processor's cache
MOST_PAIRS = 1 << 16  # candidates that are compared at a time
COMPARED = 1 << 16  # tokens that are compared at a time
START_OF_TRAINING, START, LAST = -2, -1, (1 << 32) - 3  # stand for the token before an n-gram: none, none, the largest
HASH_BASE, HASH_MIX = 0x9E3779B1, 0x85EBCA6B  # odd, as multiplication modulo 2^32 requires

Integers = NDArray[np.int64]


class CopiedRun(NamedTuple):
    """Tokens of a text that occur in the training text, too.

    Attributes:
        start: Index of its first token in the text.
        length: Number of tokens.
        position: Index of its first token in the training text, where it occurs first.
    """

    start: int
    length: int
    position: int


class CopyFinder:
    """Find runs of tokens in a training text. Memory use does not depend on its length.

    Args:
        token_ids: (N,) ids of the training text, in memory or memory-mapped.
    """

    def __init__(self, token_ids: TokenIds) -> None:
        self.token_ids: NDArray[Any] = np.asarray(token_ids)

    def copied_runs(self, tokens: Sequence[int] | NDArray[Any], at_least: int) -> list[CopiedRun]:
        """Return the runs that are not part of a longer run, in the order of their starts. They may overlap.

        Args:
            tokens: (M,) ids of the text to look for.
            at_least: Length of the shortest run, at least 1.
        """
        tokens = np.asarray(tokens, np.int64)
        longest, position = np.zeros((2, len(tokens)), np.int64)  # of the runs that start at each token
        for starts, lengths, positions in self._matches(tokens, at_least, longest):
            order = np.lexsort((positions, -lengths, starts))
            best = order[np.diff(starts[order], prepend=-1) > 0]  # the longest of each start
            best = best[lengths[best] > longest[starts[best]]]
            longest[starts[best]], position[starts[best]] = lengths[best], positions[best]
        begins = np.flatnonzero(longest)
        ends = begins + longest[begins]
        begins = begins[np.diff(np.maximum.accumulate(ends), prepend=0) > 0]
        return [CopiedRun(int(i), int(longest[i]), int(position[i])) for i in begins]

    def longest_short_run(self, tokens: Sequence[int] | NDArray[Any], below: int) -> CopiedRun | None:
        """Return the longest run of a text that has none of `below` tokens, by bisection of its length.

        Args:
            tokens: (M,) ids of the text to look for.
            below: A length that no run has.

        Returns:
            The run, or None if no token occurs in the training text.
        """
        tokens = np.asarray(tokens, np.int64)
        low, high, found = 1, below - 1, None
        while low <= high:
            middle = (low + high) // 2
            match = next(self._matches(tokens, middle, np.zeros_like(tokens)), None)
            if match is None:
                high = middle - 1
                continue
            starts, lengths, positions = match
            best = np.lexsort((starts, positions, -lengths))[0]
            found = CopiedRun(int(starts[best]), int(lengths[best]), int(positions[best]))
            low = found.length + 1
        return found

    def _matches(
        self, tokens: Integers, at_least: int, longest: Integers
    ) -> Iterator[tuple[Integers, Integers, Integers]]:
        """Yield the starts, lengths and positions of runs that do not continue to the left in both texts.

        The n-grams of the training text, n being `at_least`, are looked up by their hashes; then the tokens themselves
        are compared. Positions do not decrease from one yield to the next.

        Args:
            tokens: (M,) ids of the text to look for.
            at_least: Length of the shortest run.
            longest: (M,) length of the longest run found so far at each start, which the caller may update between two
                yields; runs that are not longer may be left out.
        """
        if at_least > min(len(tokens), len(self.token_ids)):
            return
        ngrams = _NGrams(tokens, at_least)
        for begin in range(0, len(self.token_ids) - at_least + 1, BLOCK):
            block = self.token_ids[max(begin - 1, 0) : begin + BLOCK + at_least - 1]
            for starts, places in ngrams.find(block, has_previous=begin > 0):
                positions = places + begin
                may_be_longer = self._equal_at(longest[starts], tokens, starts, positions)
                starts, positions = starts[may_be_longer], positions[may_be_longer]
                lengths = self._compare(tokens, starts, positions)
                is_run = lengths >= at_least  # other n-grams have the same hash
                if is_run.any():
                    yield starts[is_run], lengths[is_run], positions[is_run]

    def _equal_at(
        self, offsets: Integers, tokens: Integers, starts: Integers, positions: Integers
    ) -> NDArray[np.bool_]:
        """Return whether both texts have the same token, and not their end, at an offset from start and position."""
        ours, theirs = starts + offsets, positions + offsets
        is_inside = (ours < len(tokens)) & (theirs < len(self.token_ids))
        return is_inside & (tokens[ours * is_inside] == self.token_ids[theirs * is_inside])

    def _compare(self, tokens: Integers, starts: Integers, positions: Integers) -> Integers:
        """Return how many tokens are equal from each start in the text and its position in the training text."""
        lengths = np.zeros(len(starts), np.int64)
        active = np.arange(len(starts))  # runs that may be longer
        while len(active):
            width = min(max(COMPARED // len(active), AT_LEAST), len(tokens))
            offsets = lengths[active, None] + np.arange(width)
            is_equal = self._equal_at(offsets, tokens, starts[active, None], positions[active, None])
            more = np.where(is_equal.all(axis=1), width, is_equal.argmin(axis=1))
            lengths[active] += more
            active = active[more == width]
        return lengths


class _NGrams:
    """The n-grams of a text, to be found in blocks of another one.

    Args:
        tokens: (M,) token ids.
        n: Tokens per n-gram.
    """

    def __init__(self, tokens: Integers, n: int) -> None:
        hashes = hash_ngrams(tokens, n)
        keys = self._keys(hashes, np.concatenate(([START], tokens[: len(hashes) - 1])))
        self.n = n
        self._order = np.argsort(keys, kind="stable")  # starts of the n-grams, by their keys
        self._sorted_keys = keys[self._order]
        bits = min(max(len(hashes).bit_length() + 6, 18), 26)
        self._shift = np.uint32(32 - bits)
        self._is_used = np.zeros(1 << bits, bool)  # by the first bits of a hash
        self._is_used[hashes >> self._shift] = True

    @staticmethod
    def _keys(hashes: NDArray[np.uint32], previous: NDArray[Any]) -> NDArray[np.uint64]:
        """Return the hash of each n-gram and the token before it, in 64 bits."""
        return hashes.astype(np.uint64) << np.uint64(32) | (previous.astype(np.int64) - START_OF_TRAINING).astype(
            np.uint64
        )

    def find(self, block: NDArray[Any], *, has_previous: bool) -> Iterator[tuple[Integers, Integers]]:
        """Yield the starts of n-grams, and the places in the block where n-grams of the same hash begin.

        Pairs that the same token precedes are left out, because they continue an earlier one. That leaves few of them
        in texts that repeat one token.

        Args:
            block: Token ids.
            has_previous: Whether the block is preceded by one more token, which is not counted in the places.
        """
        hashes = hash_ngrams(block[int(has_previous) :], self.n)
        places = np.flatnonzero(self._is_used[hashes >> self._shift])
        if not len(places):
            return
        before = places - 1 + has_previous
        previous = np.where(before < 0, START_OF_TRAINING, block[before].astype(np.int64))
        first, same, last = (
            self._keys(hashes[places], one) for one in (np.array(START_OF_TRAINING), previous, np.array(LAST))
        )
        search = self._sorted_keys.searchsorted
        # Two ranges of n-grams for each place: those before the ones that the same token precedes, and those after.
        begins = np.stack((search(first), search(same, "right")), axis=1).ravel()
        counts = np.stack((search(same), search(last, "right")), axis=1).ravel() - begins
        places = np.repeat(places, 2)
        totals = np.cumsum(counts)
        done = 0
        while done < len(counts):
            passed = totals[done - 1] if done else 0
            stop = max(int(totals.searchsorted(passed + MOST_PAIRS, "right")), done + 1)
            some = counts[done:stop]
            if total := int(some.sum()):
                skipped = np.repeat(begins[done:stop] - np.cumsum(some) + some, some)
                yield self._order[skipped + np.arange(total)], np.repeat(places[done:stop], some)
            done = stop


def hash_ngrams(tokens: NDArray[Any], n: int) -> NDArray[np.uint32]:
    """Return a hash of each sequence of n tokens: a polynomial modulo 2^32, built by doubling its length.

    Args:
        tokens: (M,) token ids, M at least n.
        n: Tokens per sequence.

    Returns:
        (M - n + 1,).
    """
    values = tokens.astype(np.uint32)
    hashes, length = values, 1
    for bit in f"{n:b}"[1:]:
        hashes = hashes[:-length] * np.uint32(pow(HASH_BASE, length, 1 << 32)) + hashes[length:]
        length *= 2
        if bit == "1":
            hashes = hashes[:-1] * np.uint32(HASH_BASE) + values[length:]
            length += 1
    return hashes * np.uint32(HASH_MIX)  # the first bits depend on all tokens


def shortest_run(token_ids: TokenIds, tokenizer: Tokenizer) -> int:
    """Return the length of the shortest run that counts as copied: at least 8 tokens, and about 32 bytes.

    Args:
        token_ids: (N,) ids of the training text, whose first million says how long a token is.
        tokenizer: The tokenizer of the ids.
    """
    kinds, counts = np.unique(np.asarray(token_ids[:MEASURED]), return_counts=True)
    total = sum(len(tokenizer.token_bytes(int(kind))) * int(count) for kind, count in zip(kinds, counts, strict=True))
    return max(AT_LEAST, round(AT_LEAST_BYTES * int(counts.sum()) / max(total, 1)))


def count_copied(runs: Sequence[CopiedRun]) -> int:
    """Return the number of tokens that are in at least one run.

    Args:
        runs: In the order of their starts.
    """
    count = end = 0
    for run in runs:
        count += max(run.start + run.length - max(run.start, end), 0)
        end = max(end, run.start + run.length)
    return count
