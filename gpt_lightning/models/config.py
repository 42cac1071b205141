"""The settings of a network, their limits, and the sizes and costs that follow from them.

Shapes: T context_length, D emb_dim, V vocab_size.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt_lightning.console import plural
from gpt_lightning.errors import InputError, MachineError, memory_bytes
from gpt_lightning.validation import require, require_integer, require_number

INITS = ("book", "gpt2")
BYTES_PER_WEIGHT = 4  # float32


@dataclass(frozen=True)
class GPTConfig:
    """Architecture of a GPT (Radford et al. 2019; chapter 4 of the book).

    Args:
        vocab_size: Number of token ids.
        context_length: Maximum number of tokens that the model can attend to.
        emb_dim: Width of the model; a multiple of n_heads.
        n_heads: Attention heads per layer.
        n_layers: Number of transformer blocks.
        drop_rate: Dropout probability in training, at least 0 and below 1.
        qkv_bias: Whether the query, key and value projections have biases, as GPT-2's do.
        tie_weights: Whether the head shares the token embedding's weights, as GPT-2's does.
        init: Initial weights: book (PyTorch's defaults) or gpt2. The latter draws from a normal distribution with
            standard deviation 0.02, scaled by 1 / sqrt(2 n_layers) for the projections into the residual stream.

    Raises:
        InputError: A value is out of range; the message calls it `model.<name>`.
    """

    vocab_size: int
    context_length: int = 256
    emb_dim: int = 768
    n_heads: int = 12
    n_layers: int = 12
    drop_rate: float = 0.1
    qkv_bias: bool = False
    tie_weights: bool = False
    init: str = "book"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"):
            require_integer(f"model.{name}", getattr(self, name), 1)
        require_number("model.drop_rate", self.drop_rate, "be at least 0 and below 1", lambda rate: 0 <= rate < 1)
        for name in ("qkv_bias", "tie_weights"):
            require(isinstance(getattr(self, name), bool), f"model.{name}", "be true or false", getattr(self, name))
        require(self.init in INITS, "model.init", f"be one of {', '.join(INITS)}", self.init)
        if self.emb_dim % self.n_heads != 0:
            raise InputError(f"model.emb_dim ({self.emb_dim}) must be divisible by model.n_heads ({self.n_heads})")

    @property
    def num_parameters(self) -> int:
        """Number of trainable parameters; the weights of a tied head are counted once."""
        D = self.emb_dim
        attention = 4 * D**2 + D + (3 * D if self.qkv_bias else 0)
        feed_forward = 8 * D**2 + 5 * D
        norms = 4 * D
        embeddings = (self.vocab_size + self.context_length) * D
        head = 0 if self.tie_weights else self.vocab_size * D
        return embeddings + self.n_layers * (attention + feed_forward + norms) + 2 * D + head

    @property
    def num_block_weights(self) -> int:
        """Number of weights in the matrices of the transformer blocks."""
        return 12 * self.n_layers * self.emb_dim**2

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in float32."""
        return BYTES_PER_WEIGHT * self.num_parameters

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations per token of a training step, forward and backward.

        6 per weight used in a matrix product, plus 12 n_layers T D for attention (Chowdhery et al. 2022, appendix B).
        """
        looked_up = (self.vocab_size * (not self.tie_weights) + self.context_length) * self.emb_dim
        attention = 12 * self.n_layers * self.context_length * self.emb_dim
        return 6 * (self.num_parameters - looked_up) + attention

    @property
    def description(self) -> str:
        """The size and shape of the network in words."""
        return (
            f"{self.num_parameters:,} parameters: {plural(self.n_layers, 'layer')}, {plural(self.n_heads, 'head')}, "
            f"width {self.emb_dim}, context {self.context_length}, {'tied' if self.tie_weights else 'untied'} head"
        )

    def check_memory(self) -> None:
        """Raise `MachineError` if the weights alone exceed this machine's memory."""
        memory = memory_bytes()
        if self.weight_bytes > memory:
            raise MachineError(
                f"out of memory: the {self.num_parameters:,} weights of model.emb_dim ({self.emb_dim}) and "
                f"model.n_layers ({self.n_layers}) take {self.weight_bytes / 1e9:,.1f} GB, but "
                f"this machine has {memory / 1e9:.1f} GB"
            )
