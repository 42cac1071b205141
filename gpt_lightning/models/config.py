"""The settings of a network: their limits, and its number of parameters."""

from __future__ import annotations

from gpt_lightning.errors import InputError
from gpt_lightning.validation import require, require_integer, require_number

INITS = ("book", "gpt2")
ARCHITECTURE = (  # the settings that make a network
    "vocab_size",
    "context_length",
    "emb_dim",
    "n_heads",
    "n_layers",
    "drop_rate",
    "qkv_bias",
    "tie_weights",
    "init",
)


def check_architecture(
    vocab_size: int | None,
    context_length: int,
    emb_dim: int,
    n_heads: int,
    n_layers: int,
    drop_rate: float,
    init: str,
) -> None:
    """Raises `InputError` for an architecture that cannot be built, named by its setting."""
    if vocab_size is not None:
        require_integer("model.vocab_size", vocab_size, 1)
    require_integer("model.context_length", context_length, 1)
    require_integer("model.emb_dim", emb_dim, 1)
    require_integer("model.n_heads", n_heads, 1)
    require_integer("model.n_layers", n_layers, 1)
    require_number("model.drop_rate", drop_rate, "be at least 0 and below 1", lambda rate: 0 <= rate < 1)
    require(init in INITS, "model.init", f"be one of {', '.join(INITS)}", init)
    if emb_dim % n_heads != 0:
        raise InputError(f"model.emb_dim ({emb_dim}) must be divisible by model.n_heads ({n_heads})")


def count_parameters(
    vocab_size: int,
    context_length: int,
    emb_dim: int,
    n_layers: int,
    qkv_bias: bool,
    tie_weights: bool,
) -> int:
    """Trainable values of a GPT that has not been built; a tied head counts once."""
    attention = 4 * emb_dim**2 + emb_dim + (3 * emb_dim if qkv_bias else 0)
    feed_forward = 8 * emb_dim**2 + 5 * emb_dim
    norms = 4 * emb_dim
    embeddings = (vocab_size + context_length) * emb_dim
    head = 0 if tie_weights else vocab_size * emb_dim
    return embeddings + n_layers * (attention + feed_forward + norms) + 2 * emb_dim + head


BYTES_PER_WEIGHT = 4  # float32
