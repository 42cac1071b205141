"""Next-token sampling, the completion loop and its key-value cache: ids in, ids out.

Shapes as in models/gpt.py: B batch, T tokens, V vocabulary. Sampling has its own generators and leaves the
global random state, the training mode and the model as it found them.

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

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gpt_lightning.errors import InputError
from gpt_lightning.models.gpt import GPT
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


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout and gradients off; afterwards every module has the mode it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


# ---- choosing a token


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


# ---- reading what was written


class KVCache:
    """Keys and values of every layer for the tokens read so far, in memory allocated once.

    Each row has its tokens in the places from 0 on. Rows of different lengths are read together at first, the
    shorter ones padded at their ends, where no token of theirs looks; then a token at a time.

    Args:
        max_tokens: The most tokens of a row that it will hold.

    Attributes:
        lengths: Tokens of each row; after a padded read to be set to the true ones. Empty before the first.
    """

    def __init__(self, max_tokens: int) -> None:
        self.lengths: list[int] = []
        self._max_tokens = max_tokens
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._places: slice | tuple[Tensor, Tensor] = slice(0)  # of the tokens that are being read
        self._end = 0  # behind the last of them
        self._mask: Tensor | None = None

    def start_reading(self, token_ids: Tensor) -> Tensor:
        """Makes room for (B, T) new tokens and returns their positions, (1, T) or (B, 1)."""
        B, T = token_ids.shape
        lengths = self.lengths or [0] * B
        assert T == 1 or not self.lengths
        self._end = max(lengths) + T
        self.lengths = [length + T for length in lengths]
        if min(lengths) == max(lengths):
            self._places, self._mask = slice(lengths[0], self._end), None
            return torch.arange(lengths[0], self._end, device=token_ids.device)[None]
        places = torch.tensor(lengths, device=token_ids.device)
        self._places = torch.arange(B, device=token_ids.device), places
        self._mask = (torch.arange(self._end, device=token_ids.device) <= places[:, None])[:, None, None]
        return places[:, None]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Takes (B, H, T, K) of the new tokens, returns those of all, and a mask of what each row may look at.

        Returns:
            Keys and values (B, H, longest row, K), and (B, 1, 1, longest row) or None where all are as long.
        """
        if layer not in self._layers:
            B, H, _, K = keys.shape  # zeros: what is masked is multiplied by 0 and must be a number
            self._layers[layer] = (
                keys.new_zeros(B, H, self._max_tokens, K),
                values.new_zeros(B, H, self._max_tokens, K),
            )
        for memory, new in zip(self._layers[layer], (keys, values), strict=True):
            if isinstance(self._places, slice):
                memory[:, :, self._places] = new
            else:
                rows, places = self._places
                memory[rows, :, places] = new[:, :, 0]
        all_keys, all_values = (memory[:, :, : self._end] for memory in self._layers[layer])
        return all_keys, all_values, self._mask

    def keep(self, rows: list[int]) -> None:
        """Forgets all rows but these."""
        self.lengths = [self.lengths[row] for row in rows]
        self._layers = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self._layers.items()}


class Reader:
    """Gives the features behind the last token of growing rows, and reads each token as seldom as it can.

    While a row fits into the context, the cache means that each of its tokens is read once. Beyond it the model
    sees the last context_length tokens. Its positions are learned: each token that is added moves every other one
    to another position, which changes its keys and values in all layers, so the whole window is read anew. (Dropping
    half of the window now and then instead would be faster, and would give other texts than the model's.)

    Args:
        model: In evaluation mode.
        max_tokens: The longest that a row will get.
    """

    def __init__(self, model: GPT, max_tokens: int) -> None:
        self._model = model
        self._device = model.tok_emb.weight.device
        self._cache = KVCache(min(max_tokens, model.context_length))
        self._cached: list[list[int]] = []  # the rows that the cache holds

    def read(self, rows: list[list[int]]) -> Tensor:
        """Features (B, D) behind the last token of each row.

        Args:
            rows: At first any; then some of them, each longer by one token.
        """
        context = self._model.context_length
        if not self._cached:
            self._cached = list(rows)
            windows = [row[-context:] for row in rows]
            features = self._read_windows(windows, self._cache)
            self._cache.lengths = [len(window) for window in windows]
            return features
        inside = [i for i, row in enumerate(rows) if len(row) <= context]
        beyond = [i for i, row in enumerate(rows) if len(row) > context]
        weight = self._model.pos_emb.weight  # (context, D)
        features = weight.new_empty(len(rows), weight.shape[1])
        if inside:
            self._drop_all_but([rows[i] for i in inside])
            new_ids = torch.tensor([rows[i][-1:] for i in inside], device=self._device)
            features[inside] = self._model.features(new_ids, self._cache)[:, 0]
        if beyond:
            features[beyond] = self._read_windows([rows[i][-context:] for i in beyond], None)
        return features

    def _read_windows(self, windows: list[list[int]], cache: KVCache | None) -> Tensor:
        ids = pad_sequence([torch.tensor(window) for window in windows], batch_first=True).to(self._device)
        last = torch.tensor([len(window) - 1 for window in windows], device=self._device)
        return self._model.features(ids, cache)[torch.arange(len(windows), device=self._device), last]

    def _drop_all_but(self, rows: list[list[int]]) -> None:
        if len(rows) < len(self._cached):
            wanted = {id(row) for row in rows}
            self._cache.keep([i for i, row in enumerate(self._cached) if id(row) in wanted])
            self._cached = rows


# ---- the loop


@dataclass
class Completion:
    """What the model added to a prompt.

    Attributes:
        token_ids: Without the prompt, and without the id that ended it.
        log_probs: Of each, the logarithm of the probability that the model itself gave it, before all settings.
        finish_reason: length (max_new_tokens), eos (an eos_id), stop (the listener said so) or exhausted (no token
            was left that no_repeat_ngram_size allows). Empty while it goes on.
    """

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reason: str = ""


Listener = Callable[[int, int], bool]


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    samples: Sequence[int] | None = None,
    listener: Listener | None = None,
) -> list[Completion]:
    """Continues prompts of any lengths together, each until an eos_id, max_new_tokens or the listener's word.

    A row gets what it would get alone: it has its own generator, and its logits differ from those that it would
    have alone by no more than the rounding of sums in another order. So its tokens are the same unless two
    candidates are as close as that (about one in 10^6 of the logits in float32, one in 100 in bfloat16).

    Args:
        model: Any mode; it is put back.
        prompts: Token ids of each row, at least one.
        sampling: See there; of stop_strings, num_samples and batch_size it knows nothing.
        samples: The number of each row among the samples of its prompt; None for 0.
        listener: Called with the row and the id of each new token; whether the row ends with it.

    Returns:
        A completion per row.
    """
    completions = [Completion() for _ in prompts]
    texts = [list(prompt) for prompt in prompts]  # prompt and completion
    generators = [sampling.generator(sample) for sample in samples or [0] * len(prompts)]
    looks_back = sampling.repetition_penalty != 1 or sampling.no_repeat_ngram_size is not None
    with evaluation_mode(model):
        reader = Reader(model, max(map(len, texts)) + sampling.max_new_tokens)
        running = list(range(len(texts)))
        while running:
            logits = model.out_head(reader.read([texts[row] for row in running])).float()  # (B, V)
            new_tokens = len(completions[running[0]].token_ids)
            choices = logits
            if looks_back or new_tokens < sampling.min_new_tokens:
                rows = zip(logits, running, strict=True)
                choices = torch.stack([adjust_logits(one, texts[row], new_tokens, sampling) for one, row in rows])
            new_ids = sample_next_token(choices, sampling, [generators[row] for row in running])[:, None]  # (B, 1)
            new_ids = new_ids.to(logits.device)
            chances = choices.gather(-1, new_ids)[:, 0].tolist()
            log_probs = (logits.gather(-1, new_ids)[:, 0] - logits.logsumexp(-1)).tolist()
            for row, token_id, chance, log_prob in zip(
                running, new_ids[:, 0].tolist(), chances, log_probs, strict=True
            ):
                completion = completions[row]
                if chance == -math.inf or token_id in sampling.eos_ids:
                    completion.finish_reason = "exhausted" if chance == -math.inf else "eos"
                    continue
                texts[row].append(token_id)
                completion.token_ids.append(token_id)
                completion.log_probs.append(log_prob)
                if listener is not None and listener(row, token_id):
                    completion.finish_reason = "stop"
                elif len(completion.token_ids) == sampling.max_new_tokens:
                    completion.finish_reason = "length"
            running = [row for row in running if not completions[row].finish_reason]
    return completions
