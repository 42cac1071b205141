"""The key-value cache, and incremental decoding with it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt_lightning.models.gpt import GPT


class KVCache:
    """The keys and values of every layer for the tokens processed so far, in memory allocated once.

    Rows are left-aligned. The first step may process rows of different lengths, with the shorter ones padded at their
    ends, where causal attention never looks; each later step processes one token of every row.

    Args:
        max_tokens: Maximum number of tokens of a row.

    Attributes:
        lengths: Number of tokens of each row, empty before the first step. After a padded first step the caller sets
            it to the lengths without padding.
    """

    def __init__(self, max_tokens: int) -> None:
        self.lengths: list[int] = []
        self._max_tokens = max_tokens
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._places: slice | tuple[Tensor, Tensor] = slice(0)  # indices of this step's tokens in the cache
        self._end = 0  # one past the last of these
        self._mask: Tensor | None = None

    def begin_step(self, token_ids: Tensor) -> Tensor:
        """Reserve places for (B, T) new tokens and return their positions, (1, T) or (B, 1)."""
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
        """Add keys and values (B, H, T, K) of the new tokens and return those of all tokens.

        Returns:
            Keys and values (B, H, longest row, K), and a boolean mask (B, 1, 1, longest row) of the places that each
            row may attend to, or None if all rows have the same length.
        """
        if layer not in self._layers:
            B, H, _, K = keys.shape  # zeros, because masked places are multiplied by 0 and must be finite
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
        """Drop all rows but these."""
        self.lengths = [self.lengths[row] for row in rows]
        self._layers = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self._layers.items()}


class IncrementalDecoder:
    """Compute the last hidden state of growing rows with a key-value cache.

    While a row fits into the context, each of its tokens is processed once. In a longer row the model sees the last
    context_length tokens. Position embeddings are learned, so each new token shifts all others to another position,
    which changes their keys and values in every layer, and the whole window is processed again. (Dropping half of the
    window now and then would be faster, but would not give the texts of the model without a cache.)

    Args:
        model: A model in evaluation mode.
        max_tokens: Maximum number of tokens of a row.
    """

    def __init__(self, model: GPT, max_tokens: int) -> None:
        self._model = model
        self._device = model.tok_emb.weight.device
        self._cache = KVCache(min(max_tokens, model.context_length))
        self._cached: list[list[int]] = []  # the rows in the cache

    def last_hidden_states(self, rows: list[list[int]]) -> Tensor:
        """Return the hidden state of the last token of each row, (B, D).

        Args:
            rows: Any rows of token ids in the first call; then some of the same lists, each one token longer.
        """
        context = self._model.context_length
        if not self._cached:
            self._cached = list(rows)
            windows = [row[-context:] for row in rows]
            hidden = self._process_windows(windows, self._cache)
            self._cache.lengths = [len(window) for window in windows]
            return hidden
        inside = [i for i, row in enumerate(rows) if len(row) <= context]
        beyond = [i for i, row in enumerate(rows) if len(row) > context]
        weight = self._model.pos_emb.weight  # (context, D)
        hidden = weight.new_empty(len(rows), weight.shape[1])
        if inside:
            self._drop_all_but([rows[i] for i in inside])
            new_ids = torch.tensor([rows[i][-1:] for i in inside], device=self._device)
            hidden[inside] = self._model.hidden_states(new_ids, self._cache)[:, 0]
        if beyond:
            hidden[beyond] = self._process_windows([rows[i][-context:] for i in beyond], None)
        return hidden

    def _process_windows(self, windows: list[list[int]], cache: KVCache | None) -> Tensor:
        ids = pad_sequence([torch.tensor(window) for window in windows], batch_first=True).to(self._device)
        last = torch.tensor([len(window) - 1 for window in windows], device=self._device)
        return self._model.hidden_states(ids, cache)[torch.arange(len(windows), device=self._device), last]

    def _drop_all_but(self, rows: list[list[int]]) -> None:
        if len(rows) < len(self._cached):
            wanted = {id(row) for row in rows}
            self._cache.keep([i for i, row in enumerate(self._cached) if id(row) in wanted])
            self._cached = rows
