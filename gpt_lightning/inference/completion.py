"""Complete prompts in batches and decode new tokens as they are generated.

`complete_all` makes every completion: the samples of `fit`, those of `predict`, and those of the Python API.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gpt_lightning.console import warn
from gpt_lightning.data.tokenizer import END_OF_TEXT, Tokenizer
from gpt_lightning.errors import InputError
from gpt_lightning.inference.generate import NewToken, generate
from gpt_lightning.inference.sampling import SamplingConfig
from gpt_lightning.models.gpt import GPT

T = TypeVar("T")


@dataclass(frozen=True)
class CompletedText:
    """A prompt and its completion.

    Attributes:
        prompt: The prompt.
        completion: The generated text, up to the first stop string.
        completion_ids: All new tokens, including those of a stop string.
        log_probs: Natural logarithm of the probability that the model gave each of them, before any sampling setting.
        finish_reason: length, eos, exhausted (see `NewToken`) or stop (a stop string was found).
        seed: Seed of its random draws.
    """

    prompt: str
    completion: str
    completion_ids: list[int]
    log_probs: list[float]
    finish_reason: str
    seed: int

    @property
    def text(self) -> str:
        """Prompt and completion together."""
        return self.prompt + self.completion


class TextStream:
    """Decode token ids one at a time, up to the first stop string.

    A token may end inside a UTF-8 character, whose bytes are held back until it is complete. A possible beginning of
    a stop string is part of `text`, but not yet of `settled`.

    Args:
        tokenizer: The tokenizer of the ids.
        stop_strings: Non-empty texts.

    Attributes:
        text: The text so far; it ends before the first stop string.
        is_stopped: Whether a stop string was found.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()) -> None:
        self.text = ""
        self.is_stopped = False
        self._tokenizer = tokenizer
        self._stop_strings = stop_strings
        self._longest = max(map(len, stop_strings), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> None:
        """Append a token."""
        self._extend(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> None:
        """End the text: an incomplete character becomes U+FFFD."""
        self._extend(self._decoder.decode(b"", final=True))

    def _extend(self, piece: str) -> None:
        if self.is_stopped:
            return
        start = max(0, len(self.text) - self._longest + 1)  # a stop string may begin in an earlier piece
        self.text += piece
        found = [i for i in (self.text.find(one, start) for one in self._stop_strings) if i >= 0]
        if found:
            self.text, self.is_stopped = self.text[: min(found)], True

    @property
    def settled(self) -> str:
        """The beginning of `text` that no stop string can remove any more."""
        if self.is_stopped:
            return self.text
        starts = range(max(0, len(self.text) - self._longest + 1), len(self.text))
        open_starts = (i for i in starts if any(one.startswith(self.text[i:]) for one in self._stop_strings))
        return self.text[: next(open_starts, len(self.text))]


def check_prompt(prompt: str) -> None:
    """Raise `InputError` unless the prompt is a non-empty text that UTF-8 can encode."""
    if not isinstance(prompt, str):
        raise InputError(f"prompt must be a text, got {prompt!r}")
    if not prompt:
        raise InputError(f"prompt is empty; use {END_OF_TEXT} to generate without a prompt")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # Python reads invalid UTF-8 on the command line as lone surrogates
        raise InputError(f"prompt is not UTF-8 text (at character {error.start})") from None


def warn_of_length(tokens: int, context_length: int) -> bool:
    """Warn if a prompt has more tokens than the context; return whether it does."""
    if tokens > context_length:
        warn(f"prompt has {tokens} tokens; the model sees only the last {context_length}")
    return tokens > context_length


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of up to `size` items; if `items` raises `InputError`, raise it after yielding the items before."""
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
    """Complete prompts in order, `sampling.batch_size` at a time, with all samples of a prompt in a row.

    Only the last context_length tokens of a longer prompt are used.

    Args:
        model: The model, in training or evaluation mode.
        tokenizer: The model's tokenizer.
        prompts: Prompts that `check_prompt` accepts, consumed one batch at a time.
        sampling: Settings.
        show: Called with each new piece of text of each batch's first completion.
        skip: Number of completions to skip at the beginning.
        warns: Whether to warn about the first prompt that is longer than the context.

    Raises:
        InputError: A setting does not fit the vocabulary; or `prompts` raised it, after the completions of the
            prompts before.
    """
    sampling.check_vocabulary(model.vocab_size)
    rows = ((prompt, sample) for prompt in prompts for sample in range(sampling.num_samples))
    for _ in range(skip):
        next(rows, None)
    for batch in in_batches(rows, sampling.batch_size):
        prompt_ids = [tokenizer.encode(prompt) for prompt, _ in batch]
        warns = warns and not warn_of_length(max(map(len, prompt_ids)), model.context_length)
        streams = [TextStream(tokenizer, sampling.stop_strings) for _ in batch]
        completions: list[list[NewToken]] = [[] for _ in batch]
        shown = 0
        for step in generate(model, prompt_ids, sampling, [sample for _, sample in batch]):
            for token in step:
                completions[token.row].append(token)
                stream = streams[token.row]
                if token.token_id is not None:
                    stream.add(token.token_id)
                if stream.is_stopped:
                    token.finish_reason = "stop"
            if show is not None:
                settled = streams[0].settled
                show(settled[shown:])
                shown = len(settled)
        for (prompt, sample), stream, tokens in zip(batch, streams, completions, strict=True):
            stream.finish()
            if show is not None and stream is streams[0]:
                show(stream.text[shown:])
            kept = [(token.token_id, token.log_prob) for token in tokens if token.token_id is not None]
            yield CompletedText(
                prompt=prompt,
                completion=stream.text,
                completion_ids=[token_id for token_id, _ in kept],
                log_probs=[log_prob for _, log_prob in kept],
                finish_reason="stop" if stream.is_stopped else tokens[-1].finish_reason,
                seed=sampling.seed + sample,
            )
