"""Next-token sampling, the completion loop and its key-value cache.

Shapes as in model.py: B batch, T tokens, V vocabulary. Sampling has its own generators and leaves the
global random state, the training mode and the model as it found them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpt_lightning.errors import InputError, require_integer, require_number, warn
from gpt_lightning.model import GPT
from gpt_lightning.tokenizer import END_OF_TEXT, Tokenizer, text_to_token_ids

GREEDY_BELOW = 1e-6  # a smaller temperature is 0: dividing by it would leave the range of float32


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when to stop.

    Attributes:
        max_new_tokens: Tokens to add to each prompt, at least 1.
        temperature: Divides the logits before the softmax; 0 (and anything below 1e-6) takes the most
            likely token.
        top_k: Keep only the k most likely tokens, 1..V; null keeps all.
        eos_id: Stop before this token id; null never stops early.
        seed: Where the random draws start; the same seed gives the same text.
    """

    max_new_tokens: int = 50
    temperature: float = 0.0
    top_k: int | None = None
    eos_id: int | None = None
    seed: int = 123

    def __post_init__(self) -> None:
        require_integer("sampling.max_new_tokens", self.max_new_tokens, 1)
        must = "be a finite number of at least 0"
        require_number("sampling.temperature", self.temperature, must, lambda number: number >= 0)
        require_integer("sampling.seed", self.seed, 0, 2**63 - 1)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises `InputError` where a setting does not fit the vocabulary."""
        if self.top_k is not None:
            require_integer("sampling.top_k", self.top_k, 1, vocab_size)
        if self.eos_id is not None:
            require_integer("sampling.eos_id", self.eos_id, 0, vocab_size - 1)

    def generators(self, rows: int) -> list[torch.Generator]:
        """A generator per row, each seeded alike: a row draws what it would draw alone."""
        return [torch.Generator().manual_seed(self.seed) for _ in range(rows)]


class KVCache:
    """Keys and values of every layer for the tokens read so far, in memory allocated once.

    Args:
        max_tokens: The most tokens it will hold.
    """

    def __init__(self, max_tokens: int) -> None:
        self.length = 0
        self._max_tokens = max_tokens
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Takes (B, H, T, K) of the new tokens, returns (B, H, length + T, K) of all."""
        if layer not in self._layers:
            B, H, _, K = keys.shape
            self._layers[layer] = (
                keys.new_empty(B, H, self._max_tokens, K),
                values.new_empty(B, H, self._max_tokens, K),
            )
        all_keys, all_values = self._layers[layer]
        end = self.length + keys.shape[2]
        all_keys[:, :, self.length : end] = keys
        all_values[:, :, self.length : end] = values
        return all_keys[:, :, :end], all_values[:, :, :end]


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout and gradients off; afterwards every module has the mode it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


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


def next_token_probs(logits: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """Probabilities after top-k and then temperature, the order of section 5.3.3 of the book.

    Args:
        logits: (B, V).
        temperature: Above 0.
        top_k: 1..V or None.
    """
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    return torch.softmax(logits / temperature, dim=-1)


def sample_next_token(logits: Tensor, sampling: Sampling, generators: list[torch.Generator]) -> Tensor:
    """One next token id per row: (B, V) -> (B,), on the device of the logits.

    Either the most likely one (argmax), so that a prompt always gets the same text, and a small model soon
    repeats itself; or a draw in which each token has its probability, so that texts differ and unlikely
    tokens come up now and then, for better and for worse.

    The draw is made on the CPU in float32, so that a seed gives the same draw on every device.
    """
    if sampling.temperature < GREEDY_BELOW:
        return logits.argmax(-1)  # the first of equal ones, as keep_top_k
    probs = next_token_probs(logits.float().cpu(), sampling.temperature, sampling.top_k)
    drawn = [torch.multinomial(row, 1, generator=generator) for row, generator in zip(probs, generators, strict=True)]
    return torch.cat(drawn).to(logits.device)


def generate(model: GPT, token_ids: Tensor, sampling: Sampling) -> list[list[int]]:
    """Continues each row of a batch until eos_id or max_new_tokens.

    While prompt and completion fit into the context, the cache means that each token is read once.
    Beyond it the model sees the last context_length tokens; its positions are learned, so the window
    is read anew for every token.

    Args:
        model: Any mode; it is put back.
        token_ids: (B, T) int64, T >= 1, on the model's device.
        sampling: See there.

    Returns:
        The completion ids of each row, without the prompt and without eos_id.
    """
    B, T = token_ids.shape
    window = token_ids[:, -model.context_length :]
    cache = KVCache(min(T + sampling.max_new_tokens, model.context_length))
    completions: list[list[int]] = [[] for _ in range(B)]
    running = set(range(B))
    generators = sampling.generators(B)
    with evaluation_mode(model):
        features = model.features(window, cache)
        for _ in range(sampling.max_new_tokens):
            new_ids = sample_next_token(model.out_head(features[:, -1]), sampling, generators)  # (B,)
            for row, token_id in enumerate(new_ids.tolist()):
                if token_id == sampling.eos_id:
                    running.discard(row)
                if row in running:
                    completions[row].append(token_id)
            longest = max(map(len, completions))
            if not running or longest == sampling.max_new_tokens:
                break
            if cache.length < model.context_length:
                features = model.features(new_ids[:, None], cache)
                window = torch.cat((window, new_ids[:, None]), dim=1)
            else:
                window = torch.cat((window[:, -model.context_length + 1 :], new_ids[:, None]), dim=1)
                features = model.features(window[:, -model.context_length :])
    return completions


def check_prompt(prompt: str) -> None:
    """Raises `InputError` for a prompt that no model can continue."""
    if not prompt:
        raise InputError(f"prompt is empty; to start from nothing give {END_OF_TEXT}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"prompt is not UTF-8 text (at character {error.start})") from None


def complete(model: GPT, tokenizer: Tokenizer, prompt: str, sampling: Sampling) -> str:
    """Text in, text out: what the model adds to a prompt.

    Of a prompt longer than the context only the last context_length tokens are read, with a warning.

    Raises:
        InputError: The prompt is empty or not UTF-8, or a setting does not fit the vocabulary.
    """
    check_prompt(prompt)
    sampling.check_vocabulary(model.vocab_size)
    prompt_ids = text_to_token_ids(prompt, tokenizer).to(model.tok_emb.weight.device)  # (1, T)
    if prompt_ids.shape[1] > model.context_length:
        warn(f"prompt has {prompt_ids.shape[1]} tokens; the model reads the last {model.context_length}")
    return tokenizer.decode(generate(model, prompt_ids, sampling)[0])
