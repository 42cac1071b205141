"""What other programs call a GPT's weights, and how they store them: names alone, no files.

ours          trf_blocks.0.att.qkv.weight    (3 D, D)    queries, keys and values in one, as nn.Linear has it
Hugging Face  h.0.attn.c_attn.weight         (D, 3 D)    as OpenAI's code has it: every projection transposed
nanoGPT       h.0.attn.c_attn.weight         (3 D, D)
the book      trf_blocks.0.att.W_query.weight, W_key, W_value    (D, D) each
GGUF          blk.0.attn_qkv.weight          (3 D, D)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

PROJECTIONS = ("att.qkv", "att.out_proj", "ff.0", "ff.2")
NORMS = ("norm1", "norm2", "final_norm")
HEAD = "out_head.weight"
POSITIONS = "pos_emb.weight"


@dataclass(frozen=True)
class Layout:
    """The names of one program.

    Attributes:
        title: Whose.
        blocks: What comes before a block's number.
        modules: Our name of a module -> theirs; {} stands for query, key and value where these are three.
        leaves_out: What it stores besides weights, as a pattern: the causal mask.
        transposed: Whether projections are (in, out).
        norm: Its names of a norm's weight and bias.
        may_lack_biases: Whether a model of it may be without any biases; they are 0 then.
    """

    title: str
    blocks: str
    modules: dict[str, str]
    leaves_out: str = r"(?!)"
    transposed: bool = False
    norm: tuple[str, str] = ("weight", "bias")
    may_lack_biases: bool = False

    def names(self, ours: str) -> list[str]:
        """Theirs for the name of one of our weights; three where queries, keys and values are separate."""
        block, module, kind = split_name(ours)
        prefix = "" if block is None else f"{self.blocks}.{block}."
        if module in NORMS:
            kind = self.norm[kind == "bias"]
        name = f"{prefix}{self.modules[module]}.{kind}"
        return [name.format(part) for part in ("query", "key", "value")] if "{}" in name else [name]

    def is_transposed(self, ours: str) -> bool:
        """Whether their matrix for one of our weights is its transpose."""
        _, module, kind = split_name(ours)
        return self.transposed and module in PROJECTIONS and kind == "weight"

    def shapes(self, ours: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The shapes of what `names` names, for our weight of that shape."""
        if self.is_transposed(ours):
            shape = shape[::-1]
        parts = len(self.names(ours))
        return [(shape[0] // parts, *shape[1:])] * parts

    def to_theirs(self, ours: str, tensor: Tensor) -> list[Tensor]:
        """Views of one of our weights as they store it, in the order of `names`."""
        if self.is_transposed(ours):
            tensor = tensor.t()
        return list(tensor.chunk(len(self.names(ours))))

    def to_ours(self, ours: str, tensors: list[Tensor]) -> Tensor:
        """What they store, in the order of `names`, as our weight: contiguous."""
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        return (tensor.t() if self.is_transposed(ours) else tensor).contiguous()


def split_name(ours: str) -> tuple[str | None, str, str]:
    """Number of the block (None outside of them), module, and weight or bias."""
    match = re.fullmatch(r"(?:trf_blocks\.(\d+)\.)?(.+)\.(weight|bias)", ours)
    assert match is not None, ours
    return match[1], match[2], match[3]


OWN_NAMES = {name: name for name in ("tok_emb", "pos_emb", "out_head", *PROJECTIONS, *NORMS)}
OURS = Layout("gpt_lightning", "trf_blocks", OWN_NAMES)
HUGGING_FACE = Layout(
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
    leaves_out=r"h\.\d+\.attn\.(bias|masked_bias)",
    transposed=True,
)
NANOGPT = Layout(
    "nanoGPT",
    "h",
    HUGGING_FACE.modules,
    leaves_out=r"h\.\d+\.attn\.bias",
    may_lack_biases=True,
)
BOOK = Layout(
    "the book",
    "trf_blocks",
    OWN_NAMES | {"att.qkv": "att.W_{}", "ff.0": "ff.layers.0", "ff.2": "ff.layers.2"},
    leaves_out=r"trf_blocks\.\d+\.att\.mask",
    norm=("scale", "shift"),
)
GGUF = Layout(
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
)
