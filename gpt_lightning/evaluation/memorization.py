"""Describe what a completion copies from the training text."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.data.windows import TokenIds
from gpt_lightning.evaluation.copy_finder import BLOCK, CopiedRun, CopyFinder, count_copied, shortest_run
from gpt_lightning.inference.completion import CompletedText

AROUND = 40  # characters of the training text that are shown before and after a run
SHOWN = 40  # characters of a run in a line


class Memorization:
    """Describe what completions copy from a training text.

    Args:
        token_ids: (N,) ids of the training text, in memory or memory-mapped.
        tokenizer: The tokenizer of the ids.
    """

    def __init__(self, token_ids: TokenIds, tokenizer: Tokenizer) -> None:
        self.finder = CopyFinder(token_ids)
        self.tokenizer = tokenizer

    @cached_property
    def at_least(self) -> int:
        """Length of the shortest run that counts as copied, in tokens."""
        return shortest_run(self.finder.token_ids, self.tokenizer)

    def describe(self, completed: CompletedText) -> dict[str, Any]:
        """Return the copied parts of a completion, for a row of JSON.

        Tokens after the completion's end, those of a stop string, are not counted.

        Returns:
            at_least: Length of the shortest run that counts as copied.
            share: Share of the tokens in these runs; 0 for an empty completion.
            tokens: Number of these tokens.
            of: Number of all tokens.
            longest: Length of the longest run.
            runs: The runs of at least `at_least` tokens, or the longest one if there are none: `begin` and `end` in the
                characters of the completion, `tokens`, `source` (its first character in the training text), and
                `before` and `after`, the characters around it in the training text.
        """
        _, ends = self.tokenizer.decode_with_ends(completed.completion_ids)
        offsets, characters = [0, *ends], len(completed.completion)
        of = bisect_left(offsets, characters)
        tokens = completed.completion_ids[:of]
        long_runs = self.finder.copied_runs(tokens, self.at_least)
        short_run = None if long_runs else self.finder.longest_short_run(tokens, self.at_least)
        runs = long_runs if short_run is None else [short_run]
        sources = self._characters_before([run.position for run in runs])
        copied = count_copied(long_runs)
        return {
            "at_least": self.at_least,
            "share": copied / max(of, 1),
            "tokens": copied,
            "of": of,
            "longest": max((run.length for run in runs), default=0),
            "runs": [
                {
                    "begin": offsets[run.start],
                    "end": min(offsets[run.start + run.length], characters),
                    "tokens": run.length,
                    "source": sources[run.position],
                    **self._surroundings(run),
                }
                for run in runs
            ],
        }

    def _surroundings(self, run: CopiedRun) -> dict[str, str]:
        """Return up to AROUND characters of the training text before and after a run."""
        most = 4 * AROUND + 3  # tokens, of at least a byte: 4 per character, and the rest of an incomplete one
        start = max(run.position - most, 0)
        piece = self.finder.token_ids[start : run.position + run.length + most]
        text, ends = self.tokenizer.decode_with_ends(piece.tolist())
        offsets, first = [0, *ends], run.position - start
        before, after = text[: offsets[first]], text[offsets[first + run.length] :]
        return {"before": before[-AROUND:], "after": after[:AROUND]}

    @cached_property
    def _characters_begun(self) -> NDArray[np.uint8]:
        """(V,) number of characters whose first byte is in each token."""
        return np.array(list(map(self.tokenizer.characters_begun, range(self.tokenizer.vocab_size))), np.uint8)

    def _characters_before(self, positions: Sequence[int]) -> dict[int, int]:
        """Return the number of characters of the training text that are complete before each position."""
        token_ids, found, done, total = self.finder.token_ids, {}, 0, 0
        for position in sorted(positions):
            for begin in range(done, position, BLOCK):
                block = token_ids[begin : min(begin + BLOCK, position)]
                total += int(self._characters_begun[block].sum(dtype=np.int64))
            done = position
            continues = self.tokenizer.token_bytes(int(token_ids[position]))[0] & 0xC0 == 0x80
            found[position] = total - continues
        return found


def describe_copied(copied: dict[str, Any], completion: str) -> str:
    """Describe in words what `Memorization.describe` found in a completion."""
    counts = f"{copied['tokens']} of {copied['of']} tokens"
    if not copied["runs"]:
        return f"{counts}, none of which occurs in the training text" if copied["of"] else counts
    longest = max(copied["runs"], key=lambda run: run["tokens"])
    text = re.sub(r"\s+", " ", completion[longest["begin"] : longest["end"]])
    shown = text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
    return f"{counts}, longest run {longest['tokens']}: {shown!r} (character {longest['source']:,})"
