"""Names and shapes of a GPT's weights and settings in other programs.

ours          trf_blocks.0.att.qkv.weight    (3 D, D)    queries, keys and values in one nn.Linear
Hugging Face  h.0.attn.c_attn.weight         (D, 3 D)    as in OpenAI's code, with every projection transposed
nanoGPT       h.0.attn.c_attn.weight         (3 D, D)
the book      trf_blocks.0.att.W_query.weight, W_key, W_value    (D, D) each
GGUF          blk.0.attn_qkv.weight          (3 D, D)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PROJECTIONS = ("att.qkv", "att.out_proj", "ff.0", "ff.2")
NORMS = ("norm1", "norm2", "final_norm")
HEAD = "out_head.weight"
POSITIONS = "pos_emb.weight"


@dataclass(frozen=True)
class KeyMap:
    """Translation between our names and shapes of weights and another program's ("theirs").

    Attributes:
        title: Name of the program.
        blocks: Prefix of a transformer block's index.
        modules: Our name of a module -> theirs; {} stands for query, key and value if they are separate.
        settings: Our name of a setting -> theirs in their stored configuration.
        ignored: Pattern of stored tensors that are not weights: the causal mask.
        transposed: Whether projections are stored as (in, out).
        norm: Names of a norm's weight and bias.
        may_lack_biases: Whether their models may have no biases; missing biases are imported as 0.
    """

    title: str
    blocks: str
    modules: dict[str, str]
    settings: dict[str, str] = field(default_factory=dict)
    ignored: str = r"(?!)"
    transposed: bool = False
    norm: tuple[str, str] = ("weight", "bias")
    may_lack_biases: bool = False

    def names(self, ours: str) -> list[str]:
        """Return their names for our weight: three if queries, keys and values are separate, else one."""
        block, module, kind = split_name(ours)
        prefix = "" if block is None else f"{self.blocks}.{block}."
        if module in NORMS:
            kind = self.norm[kind == "bias"]
        name = f"{prefix}{self.modules[module]}.{kind}"
        return [name.format(part) for part in ("query", "key", "value")] if "{}" in name else [name]

    def is_transposed(self, ours: str) -> bool:
        """Return whether their tensor is the transpose of our weight."""
        _, module, kind = split_name(ours)
        return self.transposed and module in PROJECTIONS and kind == "weight"

    def shapes(self, ours: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the shapes of their tensors for our weight of this shape, in the order of `names`."""
        if self.is_transposed(ours):
            shape = shape[::-1]
        parts = len(self.names(ours))
        return [(shape[0] // parts, *shape[1:])] * parts

    def to_theirs(self, ours: str, tensor: Tensor) -> list[Tensor]:
        """Return views of our weight in their shapes, in the order of `names`."""
        if self.is_transposed(ours):
            tensor = tensor.t()
        return list(tensor.chunk(len(self.names(ours))))

    def to_ours(self, ours: str, tensors: list[Tensor]) -> Tensor:
        """Return our weight, contiguous, from their tensors in the order of `names`."""
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        return (tensor.t() if self.is_transposed(ours) else tensor).contiguous()

    def to_our_settings(self, theirs: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of their configuration under our names, not yet validated."""
        return {name: theirs[key] for name, key in self.settings.items() if key in theirs}


def split_name(ours: str) -> tuple[str | None, str, str]:
    """Split our name of a weight into the block index (None outside the blocks), the module, and weight or bias."""
    match = re.fullmatch(r"(?:trf_blocks\.(\d+)\.)?(.+)\.(weight|bias)", ours)
    assert match is not None, ours
    return match[1], match[2], match[3]


GPT2_SETTINGS = {"vocab_size": "vocab_size", "emb_dim": "n_embd", "n_heads": "n_head", "n_layers": "n_layer"}
OWN_NAMES = {name: name for name in ("tok_emb", "pos_emb", "out_head", *PROJECTIONS, *NORMS)}
OURS = KeyMap("gpt_lightning", "trf_blocks", OWN_NAMES)
HUGGING_FACE = KeyMap(
    "Hugging Face",
    "h",
    {
        "tok_emb": "wte",
        "pos_emb": "wpe",
        "att.qkv": "attn.c_attn",
        "att.out_proj": "attn.c_proj",
        "ff.0": "mlp.c_fc",
        "ff.2": "mlp.c_proj",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "final_norm": "ln_f",
        "out_head": "lm_head",
    },
    GPT2_SETTINGS | {"context_length": "n_positions", "drop_rate": "resid_pdrop"},
    ignored=r"h\.\d+\.attn\.(bias|masked_bias)",
    transposed=True,
)
NANOGPT = KeyMap(
    "nanoGPT",
    "h",
    HUGGING_FACE.modules,
    GPT2_SETTINGS | {"context_length": "block_size", "drop_rate": "dropout"},
    ignored=r"h\.\d+\.attn\.bias",
    may_lack_biases=True,
)
BOOK = KeyMap(
    "the book",
    "trf_blocks",
    OWN_NAMES | {"att.qkv": "att.W_{}", "ff.0": "ff.layers.0", "ff.2": "ff.layers.2"},
    ignored=r"trf_blocks\.\d+\.att\.mask",
    norm=("scale", "shift"),
)
GGUF = KeyMap(
    "GGUF",
    "blk",
    {
        "tok_emb": "token_embd",
        "pos_emb": "position_embd",
        "att.qkv": "attn_qkv",
        "att.out_proj": "attn_output",
        "ff.0": "ffn_up",
        "ff.2": "ffn_down",
        "norm1": "attn_norm",
        "norm2": "ffn_norm",
        "final_norm": "output_norm",
        "out_head": "output",
    },
    {"n_heads": "attention.head_count", "n_layers": "block_count", "context_length": "context_length"},
)
