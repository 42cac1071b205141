"""Independent GPT implementations, against which tests check imported and exported weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def gelu(x: Tensor) -> Tensor:
    """GELU with the tanh approximation (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def exact_gelu(x: Tensor) -> Tensor:
    """GELU without approximation: x times the cumulative distribution function of the normal distribution."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def norm(x: Tensor, scale: Tensor, shift: Tensor | float) -> Tensor:
    """LayerNorm: normalize to mean 0 and variance 1, then scale and shift."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * scale + shift


def attention(queries: Tensor, keys: Tensor, values: Tensor, n_heads: int) -> Tensor:
    """Causal attention, one head and token at a time: queries, keys, values (T, D) -> (T, D)."""
    T, D = queries.shape
    size = D // n_heads
    out = torch.zeros(T, D, dtype=queries.dtype)
    for head in range(n_heads):
        part = slice(head * size, (head + 1) * size)
        for t in range(T):
            scores = keys[: t + 1, part] @ queries[t, part] / math.sqrt(size)
            out[t, part] = torch.softmax(scores, 0) @ values[: t + 1, part]
    return out


def hugging_face_logits(w: dict[str, Tensor], token_ids: Tensor, n_heads: int) -> Tensor:
    """Forward pass of GPT-2 in float64 on the names and shapes of a Hugging Face checkpoint: (T,) -> (T, V)."""
    w = {name.removeprefix("transformer."): tensor.double() for name, tensor in w.items()}
    x = w["wte.weight"][token_ids] + w["wpe.weight"][: len(token_ids)]
    for i in range(len([name for name in w if name.endswith("ln_1.weight")])):
        h = f"h.{i}."
        normed = norm(x, w[h + "ln_1.weight"], w[h + "ln_1.bias"])
        qkv = normed @ w[h + "attn.c_attn.weight"] + w[h + "attn.c_attn.bias"]
        attended = attention(*qkv.chunk(3, dim=-1), n_heads)
        x = x + attended @ w[h + "attn.c_proj.weight"] + w[h + "attn.c_proj.bias"]
        normed = norm(x, w[h + "ln_2.weight"], w[h + "ln_2.bias"])
        hidden = gelu(normed @ w[h + "mlp.c_fc.weight"] + w[h + "mlp.c_fc.bias"])
        x = x + hidden @ w[h + "mlp.c_proj.weight"] + w[h + "mlp.c_proj.bias"]
    return norm(x, w["ln_f.weight"], w["ln_f.bias"]) @ w.get("lm_head.weight", w["wte.weight"]).T


def nanogpt_logits(w: dict[str, Tensor], token_ids: Tensor, n_heads: int) -> Tensor:
    """Forward pass of nanoGPT: projections are (out, in), GELU is exact, biases may be missing; (T,) -> (T, V)."""
    w = {name.removeprefix("_orig_mod.").removeprefix("transformer."): one.double() for name, one in w.items()}
    zero = torch.zeros((), dtype=torch.float64)
    linear = lambda x, name: x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", zero)  # noqa: E731
    normed = lambda x, name: norm(x, w[f"{name}.weight"], w.get(f"{name}.bias", zero))  # noqa: E731
    x = w["wte.weight"][token_ids] + w["wpe.weight"][: len(token_ids)]
    for i in range(len([name for name in w if name.endswith("ln_1.weight")])):
        h = f"h.{i}."
        qkv = linear(normed(x, h + "ln_1"), h + "attn.c_attn")
        x = x + linear(attention(*qkv.chunk(3, dim=-1), n_heads), h + "attn.c_proj")
        x = x + linear(exact_gelu(linear(normed(x, h + "ln_2"), h + "mlp.c_fc")), h + "mlp.c_proj")
    return linear(normed(x, "ln_f"), "lm_head")


class Norm(nn.Module):
    """The book's LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return norm(x, self.scale, self.shift)


class Attention(nn.Module):
    """The book's MultiHeadAttention."""

    def __init__(self, width: int, context_length: int, n_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.W_query = nn.Linear(width, width, bias=qkv_bias)
        self.W_key = nn.Linear(width, width, bias=qkv_bias)
        self.W_value = nn.Linear(width, width, bias=qkv_bias)
        self.out_proj = nn.Linear(width, width)
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length), diagonal=1))

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = (
            one(x).view(B, T, self.n_heads, -1).transpose(1, 2) for one in (self.W_query, self.W_key, self.W_value)
        )
        scores = (q @ k.transpose(2, 3)).masked_fill(self.mask.bool()[:T, :T], -torch.inf)
        return self.out_proj((torch.softmax(scores / k.shape[-1] ** 0.5, -1) @ v).transpose(1, 2).reshape(B, T, D))


class GELU(nn.Module):
    """The book's GELU, with tanh."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)


class FeedForward(nn.Module):
    """The book's FeedForward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Block(nn.Module):
    """The book's TransformerBlock, without dropout."""

    def __init__(self, width: int, context_length: int, n_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.att = Attention(width, context_length, n_heads, qkv_bias)
        self.ff = FeedForward(width)
        self.norm1 = Norm(width)
        self.norm2 = Norm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.att(self.norm1(x))
        return x + self.ff(self.norm2(x))


class BookGPT(nn.Module):
    """The book's GPTModel, without dropout."""

    def __init__(
        self, vocab_size: int, context_length: int, width: int, n_heads: int, n_layers: int, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(vocab_size, width)
        self.pos_emb = nn.Embedding(context_length, width)
        self.trf_blocks = nn.Sequential(*(Block(width, context_length, n_heads, qkv_bias) for _ in range(n_layers)))
        self.final_norm = Norm(width)
        self.out_head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        x = self.tok_emb(token_ids) + self.pos_emb(torch.arange(token_ids.shape[1]))
        return self.out_head(self.final_norm(self.trf_blocks(x)))
