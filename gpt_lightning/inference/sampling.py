"""How the next token is chosen. Nothing here touches the global random state.

Shapes: B batch, V vocabulary.

The next token is chosen in this order, each step only where its setting asks for it:

    1  repetition_penalty    tokens of the prompt and the completion so far get less likely
    2  no_repeat_ngram_size  tokens that would repeat a run of tokens get no chance
    3  min_new_tokens        too early, the ids that end a completion get no chance
    4  temperature 0         the most likely token is taken, and the steps below are left out
    5  top_k                 only the k most likely keep a chance
    6  temperature           divides the logits
    7  top_p                 only the most likely that together reach p keep a chance
    8  min_p                 only those within a factor of the most likely keep a chance
    9  a draw from the softmax of what is left

It is the order of transformers, but that top-k comes before the temperature, as in section 5.3.3 of the book: the
order of those two changes no probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpt_lightning.errors import InputError
from gpt_lightning.validation import require, require_integer, require_number

GREEDY_BELOW = 1e-6  # a smaller temperature is 0: dividing by it would leave the range of float32
LEVEL_ABOVE = 1e30  # a larger one changes nothing more, and would leave that range as well
MOST_SAMPLES = 10_000


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when to stop.

    Attributes:
        max_new_tokens: Tokens to add to each prompt, at least 1.
        min_new_tokens: Tokens before which eos_id does not end a completion.
        temperature: Divides the logits before the softmax; 0 (and anything below 1e-6) takes the most
            likely token.
        top_k: Keep only the k most likely tokens, 1..V; null keeps all.
        top_p: Keep only the most likely tokens that together have this probability, above 0 and up to 1;
            null keeps all (Holtzman et al. 2020).
        min_p: Keep only tokens of at least this share of the most likely one's probability, 0..1; null keeps
            all (Nguyen et al. 2024).
        repetition_penalty: Divides the logits above 0 and multiplies those below 0 of all tokens that are in
            the prompt or the completion; above 1 they get less likely (Keskar et al. 2019).
        no_repeat_ngram_size: No run of so many tokens comes twice in prompt and completion; null lets it.
        eos_id: Stop before this token id, or before any of several; null never stops early.
        stop_strings: Texts before the first of which a completion ends.
        num_samples: Completions of each prompt.
        seed: Where the random draws start; the same seed gives the same text. Sample number n (from 0) of a
            prompt draws from seed + n.
        batch_size: Completions that are made together: more are faster and take more memory.
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
                f"sampling.num_samples ({self.num_samples}) needs a sampling.temperature above 0: at 0 all are the same"
            )
        require_integer("sampling.seed", self.seed, 0, 2**63 - 1)
        require_integer("sampling.batch_size", self.batch_size, 1, MOST_SAMPLES)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def eos_ids(self) -> list[int]:
        """The ids before which a completion stops."""
        return [] if self.eos_id is None else self.eos_id if isinstance(self.eos_id, list) else [self.eos_id]

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises `InputError` where a setting does not fit the vocabulary."""
        if self.top_k is not None:
            require_integer("sampling.top_k", self.top_k, 1, vocab_size)
        for token_id in self.eos_ids:
            require_integer("sampling.eos_id", token_id, 0, vocab_size - 1)

    def generator(self, sample: int = 0) -> torch.Generator:
        """What sample number `sample` of a prompt draws from."""
        return torch.Generator().manual_seed(self.seed + sample)


def penalize_repetition(logits: Tensor, seen_ids: Sequence[int], penalty: float) -> Tensor:
    """Makes tokens that were there before less likely: (V,) -> (V,)."""
    seen = torch.tensor(sorted(set(seen_ids)), device=logits.device)
    values = logits[seen]
    return logits.index_put((seen,), torch.where(values < 0, values * penalty, values / penalty))


def ban_repeated_ngrams(logits: Tensor, seen_ids: Sequence[int], size: int) -> Tensor:
    """Sets tokens to -inf that would end a run of `size` tokens which is there already: (V,) -> (V,)."""
    end = list(seen_ids[len(seen_ids) - size + 1 :])  # what the new token would complete
    starts = range(len(seen_ids) - size + 1)
    banned = {seen_ids[i + size - 1] for i in starts if list(seen_ids[i : i + size - 1]) == end}
    return ban(logits, sorted(banned))


def ban(logits: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Sets tokens to -inf: (..., V) -> (..., V)."""
    return logits.index_fill(-1, torch.tensor(token_ids, dtype=torch.int64, device=logits.device), -math.inf)


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Sets all but the k largest of each row to -inf; of equal ones the lowest ids stay.

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
    """Sets to -inf what comes, in order of probability, after the first tokens that together reach `top_p`.

    Args:
        logits: (B, V).
        top_p: Above 0, at most 1.
    """
    ordered, ids = torch.sort(logits, descending=True, stable=True)
    probs = torch.softmax(ordered, -1)
    enough = probs.cumsum(-1) - probs >= top_p  # without this one already
    return logits.masked_fill(torch.zeros_like(enough).scatter(-1, ids, enough), -math.inf)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Sets tokens to -inf whose probability is below `min_p` times the highest one: (B, V) -> (B, V)."""
    probs = torch.softmax(logits, -1)
    return logits.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), -math.inf)


def adjust_logits(logits: Tensor, seen_ids: Sequence[int], new_tokens: int, sampling: Sampling) -> Tensor:
    """What depends on the text so far: steps 1 to 3 of the order above.

    Args:
        logits: (V,).
        seen_ids: The tokens of prompt and completion.
        new_tokens: How many of them are the completion's.
        sampling: See there.
    """
    if sampling.repetition_penalty != 1:
        logits = penalize_repetition(logits, seen_ids, sampling.repetition_penalty)
    if sampling.no_repeat_ngram_size is not None:
        logits = ban_repeated_ngrams(logits, seen_ids, sampling.no_repeat_ngram_size)
    if new_tokens < sampling.min_new_tokens:
        logits = ban(logits, sampling.eos_ids)
    return logits


def next_token_probs(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities that the next token is drawn with: steps 5 to 9 of the order above.

    Args:
        logits: (B, V).
        sampling: With a temperature above 0.
    """
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    logits = logits / min(sampling.temperature, LEVEL_ABOVE)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return torch.softmax(logits, dim=-1)


def sample_next_token(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """One next token id per row: (B, V) -> (B,), on the CPU.

    Either the most likely one (argmax), so that a prompt always gets the same text, and a small model soon
    repeats itself; or a draw in which each token has its probability, so that texts differ and unlikely
    tokens come up now and then, for better and for worse.

    The draw is made on the CPU in float32, so that a seed gives the same draw on every device. Where no token has a
    chance, all logits being -inf, any id is returned.
    """
    if sampling.is_greedy:
        return logits.argmax(-1).cpu()  # the first of equal ones, as keep_top_k
    probs = next_token_probs(logits.float().cpu(), sampling).nan_to_num(nan=1.0)  # not a number: no chances
    drawn = [torch.multinomial(row, 1, generator=generator) for row, generator in zip(probs, generators, strict=True)]
    return torch.cat(drawn)
