"""Prompts in, texts out: what a model adds to texts, many at a time, decoded as the tokens come.

Text exists here and ids in generation.py. Whoever completes a text, a run after an epoch, `predict` or a notebook,
does it with `complete_all`.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gpt_lightning.console import warn
from gpt_lightning.data.tokenizer import END_OF_TEXT, Tokenizer
from gpt_lightning.errors import InputError
from gpt_lightning.inference.generate import generate
from gpt_lightning.inference.sampling import SamplingConfig
from gpt_lightning.models.gpt import GPT

T = TypeVar("T")


@dataclass(frozen=True)
class CompletedText:
    """A prompt and what the model added to it.

    Attributes:
        prompt: As given.
        completion: What follows it, up to the first of the stop strings.
        completion_ids: All new tokens, those of a stop string among them.
        log_probs: Of each, the logarithm of the probability that the model itself gave it.
        finish_reason: length, eos, stop (a stop string) or exhausted; see `inference.generate.Completion`.
        seed: That it was drawn from.
    """

    prompt: str
    completion: str
    completion_ids: list[int]
    log_probs: list[float]
    finish_reason: str
    seed: int

    @property
    def text(self) -> str:
        """Prompt and completion."""
        return self.prompt + self.completion


class TextStream:
    """Makes text of token ids as they come, up to the first stop string.

    A token may end inside of a character, whose bytes are held back until it is whole. What may be the beginning
    of a stop string is part of `text` and not yet of `settled`.

    Args:
        tokenizer: Of the ids.
        stop_strings: Texts, none of them empty.

    Attributes:
        text: All so far; without the stop string, and what follows it, once one has come.
        is_stopped: Whether one has come.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()) -> None:
        self.text = ""
        self.is_stopped = False
        self._tokenizer = tokenizer
        self._stop_strings = stop_strings
        self._longest = max(map(len, stop_strings), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> None:
        """Takes the next token."""
        self._extend(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> None:
        """Says that no token follows: half a character becomes U+FFFD."""
        self._extend(self._decoder.decode(b"", final=True))

    def _extend(self, piece: str) -> None:
        if self.is_stopped:
            return
        start = max(0, len(self.text) - self._longest + 1)  # a stop string may have begun before
        self.text += piece
        found = [i for i in (self.text.find(one, start) for one in self._stop_strings) if i >= 0]
        if found:
            self.text, self.is_stopped = self.text[: min(found)], True

    @property
    def settled(self) -> str:
        """As much of `text` as no stop string can take back."""
        if self.is_stopped:
            return self.text
        starts = range(max(0, len(self.text) - self._longest + 1), len(self.text))
        open_starts = (i for i in starts if any(one.startswith(self.text[i:]) for one in self._stop_strings))
        return self.text[: next(open_starts, len(self.text))]


def check_prompt(prompt: str) -> None:
    """Raises `InputError` for a prompt that no model can continue."""
    if not isinstance(prompt, str):
        raise InputError(f"prompt must be a text, got {prompt!r}")
    if not prompt:
        raise InputError(f"prompt is empty; to start from nothing give {END_OF_TEXT}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # a word of the command line that was not UTF-8
        raise InputError(f"prompt is not UTF-8 text (at character {error.start})") from None


def warn_of_length(tokens: int, context_length: int) -> bool:
    """Warns where a prompt has more tokens than a model can look at; returns whether it has."""
    if tokens > context_length:
        warn(f"prompt has {tokens} tokens; the model reads the last {context_length}")
    return tokens > context_length


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last as short as it comes; where getting an item fails, after those before it."""
    batch: list[T] = []
    problem = None
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except InputError as error:
        problem = error
    if batch:
        yield batch
    if problem is not None:
        raise problem


def complete_all(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Iterable[str],
    sampling: SamplingConfig,
    show: Callable[[str], None] | None = None,
    skip: int = 0,
    warns: bool = True,
) -> Iterator[CompletedText]:
    """Continues texts, `sampling.batch_size` at a time, in order; each prompt's samples one after the other.

    Of a prompt longer than the context only the last context_length tokens are read.

    Args:
        model: Any mode; it is put back.
        tokenizer: Of the model.
        prompts: As many as there are; no more of them are in memory than are worked on.
        sampling: See there.
        show: Is called with the text of each batch's first completion, piece by piece as it comes.
        skip: Completions at the beginning to leave out.
        warns: Whether to warn of the first prompt that is longer than the context.

    Raises:
        InputError: A prompt is empty or not UTF-8, after those before it; or a setting does not fit the vocabulary.
    """
    sampling.check_vocabulary(model.vocab_size)
    rows = ((prompt, sample) for prompt in _checked(prompts) for sample in range(sampling.num_samples))
    for _ in range(skip):
        next(rows, None)
    for batch in in_batches(rows, sampling.batch_size):
        prompt_ids = [tokenizer.encode(prompt) for prompt, _ in batch]
        warns = warns and not warn_of_length(max(map(len, prompt_ids)), model.context_length)
        streams = [TextStream(tokenizer, sampling.stop_strings) for _ in batch]
        shown = 0

        def listen(row: int, token_id: int, streams: list[TextStream] = streams) -> bool:
            nonlocal shown
            streams[row].add(token_id)
            if row == 0 and show is not None:
                settled = streams[0].settled
                show(settled[shown:])
                shown = len(settled)
            return streams[row].is_stopped

        samples = [sample for _, sample in batch]
        completions = generate(model, prompt_ids, sampling, samples, listen)
        for stream in streams:
            stream.finish()
        if show is not None:
            show(streams[0].text[shown:])
        for (prompt, sample), stream, one in zip(batch, streams, completions, strict=True):
            reason = "stop" if stream.is_stopped else one.finish_reason
            yield CompletedText(prompt, stream.text, one.token_ids, one.log_probs, reason, sampling.seed + sample)


def _checked(prompts: Iterable[str]) -> Iterator[str]:
    for prompt in prompts:
        check_prompt(prompt)
        yield prompt
