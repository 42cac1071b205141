"""The GPT network in plain PyTorch: token ids in, logits out.

Shapes: B batch, T tokens, D emb_dim, H heads, K head size (D / H), V vocabulary.

Parameters are created in the book's order, and the fused query-key-value projection draws the same
random numbers as three separate projections. After `torch.manual_seed(123)`, the initial weights are
therefore those of the untrained model in *Build a Large Language Model From Scratch*.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from gpt_lightning.errors import InputError
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.layers import (
    ColumnMajorLinear,
    Dropout,
    causal_attention,
    column_major_linear,
    uses_bit_masks,
)


class _WithoutNormal(TorchFunctionMode):
    """Skip `nn.init.normal_`: on the meta device it imports torch._dynamo, which takes as long as importing torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **(kwargs or {}))


@contextlib.contextmanager
def on_meta_device() -> Iterator[None]:
    """Create tensors and modules on the meta device, which allocates no memory."""
    with torch.device("meta"), _WithoutNormal():
        yield


def parameter_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by name, in the optimizer's order; a tied head is listed last."""
    with on_meta_device():
        model = GPT(config)
    return {name: tuple(one.shape) for name, one in model.named_parameters(remove_duplicate=False)}


class Cache(Protocol):
    """Interface of a key-value cache, implemented by `inference.kv_cache.KVCache`.

    Attributes:
        lengths: Number of cached tokens of each row.
    """

    lengths: list[int]

    def begin_step(self, token_ids: Tensor) -> Tensor:
        """Reserve space for new tokens (B, T) and return their positions, (1, T) or (B, 1)."""
        ...

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append the keys and values of one layer.

        Args:
            layer: Index of the transformer block.
            keys: (B, H, T, K), of the new tokens.
            values: (B, H, T, K), of the new tokens.

        Returns:
            Keys and values of all cached tokens, each (B, H, S, K), and an attention mask that hides the padding of
            shorter rows, or None if all rows have the same length.
        """
        ...


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which each token attends to itself and to earlier tokens."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.drop_rate = config.drop_rate
        self.qkv = nn.Linear(config.emb_dim, 3 * config.emb_dim, bias=config.qkv_bias)
        self.out_proj = nn.Linear(config.emb_dim, config.emb_dim)

    def forward(self, x: Tensor, layer: int, cache: Cache | None) -> Tensor:
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_heads, D // self.n_heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, K)
        mask = None
        if cache is not None:
            keys, values, mask = cache.append(layer, keys, values)
        # With a cache, either all tokens are new (causal attention), or one new token per row attends to the whole
        # row (which needs a mask only if the rows differ in length).
        assert keys.shape[2] == T or T == 1
        drop_rate = self.drop_rate if self.training else 0.0
        if drop_rate > 0 and uses_bit_masks(x):
            out = causal_attention(queries, keys, values, drop_rate)
        else:
            out = F.scaled_dot_product_attention(
                queries, keys, values, mask, drop_rate, is_causal=mask is None and keys.shape[2] == T
            )
        return self.out_proj(out.transpose(1, 2).reshape(B, T, D))


class TransformerBlock(nn.Module):
    """Attention and a feed-forward network, each with a layer norm before it and a residual connection around it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        emb_dim = config.emb_dim
        self.att = CausalSelfAttention(config)
        self.ff = nn.Sequential(
            ColumnMajorLinear(emb_dim, 4 * emb_dim), nn.GELU(approximate="tanh"), nn.Linear(4 * emb_dim, emb_dim)
        )
        self.norm1 = nn.LayerNorm(emb_dim)
        self.norm2 = nn.LayerNorm(emb_dim)
        self.drop_shortcut = Dropout(config.drop_rate)

    def forward(self, x: Tensor, layer: int, cache: Cache | None) -> Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x), layer, cache))
        return x + self.drop_shortcut(self.ff(self.norm2(x)))


class GPT(nn.Module):
    """GPT-2's architecture (Radford et al. 2019), as built in chapter 4 of the book.

    Args:
        config: The architecture.
        activation_checkpointing: Whether training stores only the input of each block and recomputes the other
            activations in the backward pass.
    """

    def __init__(self, config: GPTConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.context_length = config.context_length
        self.activation_checkpointing = activation_checkpointing
        self.tok_emb = nn.Embedding(config.vocab_size, config.emb_dim)
        self.pos_emb = nn.Embedding(config.context_length, config.emb_dim)
        self.drop_emb = Dropout(config.drop_rate)
        self.trf_blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.emb_dim)
        self.out_head = ColumnMajorLinear(config.emb_dim, config.vocab_size, bias=False)
        if config.init == "gpt2":
            self._init_gpt2()
        if config.tie_weights:
            self.out_head.weight = self.tok_emb.weight

    def _init_gpt2(self) -> None:
        """Initialize like GPT-2: N(0, 0.02), zero biases (Radford et al. 2019, section 2.3, and the released code)."""
        shortcut_std = 0.02 / math.sqrt(2 * len(self.trf_blocks))
        for name, parameter in self.named_parameters():
            if name.endswith(("att.out_proj.weight", "ff.2.weight")):
                nn.init.normal_(parameter, std=shortcut_std)
            elif parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def hidden_states(self, token_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Compute the input of the output head: the last block's output after the final layer norm.

        Args:
            token_ids: (B, T) int64; with a cache, only the tokens that are not cached yet.
            cache: Keys and values of earlier tokens; those of the new tokens are appended.

        Returns:
            (B, T, D).

        Raises:
            InputError: There are more tokens, cached ones included, than context_length.
        """
        T = token_ids.shape[1]
        longest = T if cache is None else T + max(cache.lengths, default=0)
        if longest > self.context_length:
            raise InputError(f"{longest} tokens do not fit into model.context_length ({self.context_length})")
        positions = self.pos_emb.weight[:T] if cache is None else self.pos_emb(cache.begin_step(token_ids))
        x = self.drop_emb(self.tok_emb(token_ids) + positions)  # (B, T, D)
        for layer, block in enumerate(self.trf_blocks):
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, layer, cache, use_reentrant=False)
            else:
                x = block(x, layer, cache)
        return self.final_norm(x)

    def forward(self, token_ids: Tensor, cache: Cache | None = None, *, candidates: Tensor | None = None) -> Tensor:
        """Compute the logits of the token that follows each token: (B, T) int64 -> (B, T, V).

        Args:
            token_ids: See `hidden_states`.
            cache: See `hidden_states`.
            candidates: (C,) int64 token ids; only their logits are computed, (B, T, C).
        """
        x = self.hidden_states(token_ids, cache)
        if candidates is None:
            return self.out_head(x)
        return column_major_linear(x, F.embedding(candidates, self.out_head.weight))
