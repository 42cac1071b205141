"""Choose the next token from logits, without touching the global random state.

Shapes: B batch, V vocabulary.

The steps, in order; each applies only if its setting is set:

    1  repetition_penalty    makes tokens of the prompt and the completion so far less likely
    2  no_repeat_ngram_size  masks tokens that would repeat an n-gram
    3  min_new_tokens        masks the ids that end a completion, until there are enough tokens
    4  temperature 0         takes the most likely token and skips the steps below
    5  top_k                 masks all but the k most likely tokens
    6  temperature           divides the logits
    7  top_p                 masks all but the most likely tokens that together reach p
    8  min_p                 masks tokens far less likely than the most likely one
    9  draws from the softmax of the rest

This is the order of transformers, except that top_k comes before the temperature, as in section 5.3.3 of the book;
the order of those two changes no probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpt_lightning.errors import InputError
from gpt_lightning.validation import require, require_integer, require_number

GREEDY_BELOW = 1e-6  # smaller temperatures count as 0, because dividing by them would overflow float32
LEVEL_ABOVE = 1e30  # larger temperatures have the same effect and would underflow float32
MOST_SAMPLES = 10_000


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of how the next token is chosen and when a completion ends.

    Args:
        max_new_tokens: Maximum number of tokens to add to each prompt.
        min_new_tokens: Minimum number of tokens before eos_id may end a completion.
        temperature: Divides the logits before the softmax; 0 takes the most likely token.
        top_k: Keep only the k most likely tokens; null keeps all.
        top_p: Keep only the most likely tokens that together reach this probability. null keeps all
            (Holtzman et al. 2020).
        min_p: Keep only tokens with at least this share of the largest probability. null keeps all
            (Nguyen et al. 2024).
        repetition_penalty: Above 1, makes tokens that occurred less likely (Keskar et al. 2019). Those of
            the prompt count.
        no_repeat_ngram_size: Never repeat a sequence of this many tokens; null allows it.
        eos_id: Stop before this token id, or any of a list; null: never.
        stop_strings: Stop before the first of these texts.
        num_samples: Completions of each prompt.
        seed: Seed of the random draws; sample n (from 0) of a prompt uses seed + n.
        batch_size: Completions generated together; more are faster and need more memory.

    Raises:
        InputError: A setting is out of range.
    """

    max_new_tokens: int = 50
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int | None = None
    eos_id: int | list[int] | None = None
    stop_strings: list[str] = field(default_factory=list)
    num_samples: int = 1
    seed: int = 123
    batch_size: int = 8

    def __post_init__(self) -> None:
        require_integer("sampling.max_new_tokens", self.max_new_tokens, 1)
        require_integer("sampling.min_new_tokens", self.min_new_tokens, 0)
        if self.min_new_tokens > self.max_new_tokens:
            raise InputError(
                f"sampling.min_new_tokens ({self.min_new_tokens}) must be at most sampling.max_new_tokens "
                f"({self.max_new_tokens})"
            )
        must = "be a finite number of at least 0"
        require_number("sampling.temperature", self.temperature, must, lambda number: number >= 0)
        if self.top_p is not None:
            require_number("sampling.top_p", self.top_p, "be above 0 and at most 1", lambda share: 0 < share <= 1)
        if self.min_p is not None:
            require_number("sampling.min_p", self.min_p, "be from 0 to 1", lambda share: 0 <= share <= 1)
        must = "be from 1e-6 to 1e6"
        require_number("sampling.repetition_penalty", self.repetition_penalty, must, lambda by: 1e-6 <= by <= 1e6)
        if self.no_repeat_ngram_size is not None:
            require_integer("sampling.no_repeat_ngram_size", self.no_repeat_ngram_size, 1)
        texts = self.stop_strings if isinstance(self.stop_strings, list) else [None]
        are_texts = all(isinstance(text, str) and text for text in texts)
        require(are_texts, "sampling.stop_strings", "be a list of texts, none of them empty", self.stop_strings)
        require_integer("sampling.num_samples", self.num_samples, 1, MOST_SAMPLES)
        if self.num_samples > 1 and self.is_greedy:
            raise InputError(
                f"sampling.num_samples ({self.num_samples}) needs a sampling.temperature above 0, because at 0 all "
                "samples are equal"
            )
        require_integer("sampling.seed", self.seed, 0, 2**63 - 1)
        require_integer("sampling.batch_size", self.batch_size, 1, MOST_SAMPLES)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def eos_ids(self) -> list[int]:
        """The token ids that end a completion."""
        return [] if self.eos_id is None else self.eos_id if isinstance(self.eos_id, list) else [self.eos_id]

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise `InputError` if top_k or eos_id does not fit the vocabulary."""
        if self.top_k is not None:
            require_integer("sampling.top_k", self.top_k, 1, vocab_size)
        for token_id in self.eos_ids:
            require_integer("sampling.eos_id", token_id, 0, vocab_size - 1)

    def generator(self, sample: int = 0) -> torch.Generator:
        """Return a new random generator for sample number `sample` of a prompt, from 0."""
        return torch.Generator().manual_seed(self.seed + sample)


def penalize_repetition(logits: Tensor, seen_ids: Sequence[int], penalty: float) -> Tensor:
    """Divide logits above 0 of seen tokens by the penalty and multiply those below 0: (V,) -> (V,)."""
    seen = torch.tensor(sorted(set(seen_ids)), device=logits.device)
    values = logits[seen]
    return logits.index_put((seen,), torch.where(values < 0, values * penalty, values / penalty))


def mask_repeated_ngrams(logits: Tensor, seen_ids: Sequence[int], size: int) -> Tensor:
    """Mask tokens that would repeat an n-gram of `size` tokens: (V,) -> (V,)."""
    end = list(seen_ids[len(seen_ids) - size + 1 :])  # the n-gram's first size - 1 tokens
    starts = range(len(seen_ids) - size + 1)
    repeating = {seen_ids[i + size - 1] for i in starts if list(seen_ids[i : i + size - 1]) == end}
    return mask_tokens(logits, sorted(repeating))


def mask_tokens(logits: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Set the logits of tokens to -inf: (..., V) -> (..., V)."""
    return logits.index_fill(-1, torch.tensor(token_ids, dtype=torch.int64, device=logits.device), -math.inf)


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Mask all but the k largest logits of each row; ties are resolved in favour of lower ids.

    Args:
        logits: (B, V).
        top_k: 1..V.
    """
    smallest_kept = torch.topk(logits, top_k).values[:, -1:]  # (B, 1)
    above = logits > smallest_kept
    equal = logits == smallest_kept
    places_left = top_k - above.sum(-1, keepdim=True)
    kept = above | (equal & (equal.cumsum(-1) <= places_left))
    return logits.masked_fill(~kept, -math.inf)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Mask all but the most likely tokens that together reach probability `top_p`.

    Args:
        logits: (B, V).
        top_p: Above 0, at most 1.
    """
    ordered, ids = torch.sort(logits, descending=True, stable=True)
    probs = torch.softmax(ordered, -1)
    enough = probs.cumsum(-1) - probs >= top_p  # the more likely tokens already reach top_p
    return logits.masked_fill(torch.zeros_like(enough).scatter(-1, ids, enough), -math.inf)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Mask tokens less likely than `min_p` times the most likely one: (B, V) -> (B, V)."""
    probs = torch.softmax(logits, -1)
    return logits.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), -math.inf)


def process_logits(logits: Tensor, seen_ids: Sequence[int], new_tokens: int, sampling: SamplingConfig) -> Tensor:
    """Apply steps 1 to 3 of the module's list, which depend on the text so far: (V,) -> (V,).

    Args:
        logits: (V,).
        seen_ids: The tokens of the prompt and of the completion so far.
        new_tokens: Number of tokens of the completion so far.
        sampling: Settings.
    """
    if sampling.repetition_penalty != 1:
        logits = penalize_repetition(logits, seen_ids, sampling.repetition_penalty)
    if sampling.no_repeat_ngram_size is not None:
        logits = mask_repeated_ngrams(logits, seen_ids, sampling.no_repeat_ngram_size)
    if new_tokens < sampling.min_new_tokens:
        logits = mask_tokens(logits, sampling.eos_ids)
    return logits


def next_token_probs(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """Return the probabilities to draw from, after steps 5 to 8 of the module's list: (B, V) -> (B, V).

    Args:
        logits: (B, V).
        sampling: Settings, with a temperature above 0.
    """
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    logits = logits / min(sampling.temperature, LEVEL_ABOVE)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return torch.softmax(logits, dim=-1)


def sample_next_token(logits: Tensor, sampling: SamplingConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """Choose the next token id of each row: (B, V) -> (B,), on the CPU.

    Greedy decoding (argmax) always gives the same text, in which a small model soon repeats itself. Drawing each token
    by its probability gives varied texts, with an unlikely token now and then.

    Tokens are drawn on the CPU in float32, so that a seed gives the same draws on every device. For a row whose logits
    are all -inf, an arbitrary id is returned.
    """
    if sampling.is_greedy:
        return logits.argmax(-1).cpu()  # the lowest of equal ids, as in keep_top_k
    probs = next_token_probs(logits.float().cpu(), sampling).nan_to_num(nan=1.0)  # nan: all logits are -inf
    drawn = [torch.multinomial(row, 1, generator=generator) for row, generator in zip(probs, generators, strict=True)]
    return torch.cat(drawn)
