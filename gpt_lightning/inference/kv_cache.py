"""Keys and values of the tokens read so far, so that each is read once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt_lightning.models.gpt import GPT


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
