"""Load a checkpoint, check its weights, and build its network."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.checkpoints.metadata import WEIGHTS_PREFIX
from gpt_lightning.errors import InputError
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT, on_meta_device, parameter_shapes

POSITIONS = "pos_emb.weight"


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint whose weights were checked against its settings.

    Attributes:
        name: Path of the file, which the tensors are memory-mapped from.
        config: Architecture of the network.
        tokenizer: Name of the tokenizer that the network was trained with.
        state: Weights by their names in `GPT`.
        content: The whole content of the file.
    """

    name: str
    config: GPTConfig
    tokenizer: str
    state: dict[str, Tensor]
    content: dict[str, Any]

    def build(self) -> GPT:
        """Build the network in evaluation mode; its float32 weights stay memory-mapped."""
        return build_network(self.config, self.state).eval()

    def build_for_training(self, config: GPTConfig, *, activation_checkpointing: bool) -> GPT:
        """Build a network for a new run, with copies of the weights and the first context_length position embeddings.

        Args:
            config: The checkpoint's architecture; only drop_rate, init and a shorter context_length may differ.
            activation_checkpointing: See `GPT`.
        """
        state = self.state | {POSITIONS: self.state[POSITIONS][: config.context_length]}
        return build_network(config, {key: tensor.clone() for key, tensor in state.items()}, activation_checkpointing)


def build_network(config: GPTConfig, state: dict[str, Tensor], activation_checkpointing: bool = False) -> GPT:
    """Build a network whose weights are these tensors, by their names in `GPT`, without copies if they are float32."""
    with on_meta_device():
        model = GPT(config, activation_checkpointing=activation_checkpointing)
    model.load_state_dict({key: tensor.float() for key, tensor in state.items()}, assign=True)
    if config.tie_weights:
        model.out_head.weight = model.tok_emb.weight  # two names, one parameter
    return model


def open_checkpoint(path: str) -> LoadedCheckpoint:
    """Read a checkpoint and check its weights.

    Raises:
        InputError: See `checkpoints.io.read_checkpoint`; or a weight is missing, unexpected, not finite, or not of
            the shape that the settings imply.
    """
    return check_weights(read_checkpoint(path), path)


def check_weights(content: dict[str, Any], name: str) -> LoadedCheckpoint:
    """Check the weights in the content of a checkpoint against its settings.

    Raises:
        InputError: See `open_checkpoint`.
    """
    settings = content["hyper_parameters"]
    state = {key.removeprefix(WEIGHTS_PREFIX): tensor for key, tensor in content["state_dict"].items()}
    layers = len({key.split(".")[1] for key in state if key.startswith("trf_blocks.")})
    if settings.get("n_layers") != layers:  # checked first: a damaged number could ask for a billion layers
        raise InputError(f"{name}: has weights of {layers} layers, its settings say {settings.get('n_layers')}")
    try:
        config = GPTConfig(**{field.name: settings.get(field.name) for field in fields(GPTConfig)})
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    config.check_memory()
    shapes = parameter_shapes(config)
    for key in sorted(shapes.keys() | state.keys()):
        if key not in shapes or key not in state or tuple(state[key].shape) != shapes[key]:
            raise InputError(f"{name}: weights do not fit the model ({key})")
    if (key := find_non_finite(state, "")) is not None:
        raise InputError(f"{name}: contains non-finite weights ({key.removeprefix('.')})")
    tokenizer = str(content["datamodule_hyper_parameters"].get("tokenizer"))
    return LoadedCheckpoint(name, config, tokenizer, state, content)


def find_non_finite(value: Any, name: str) -> str | None:
    """Return the name of the first tensor with an infinity or a NaN in nested dicts and lists, or None.

    Args:
        value: Tensors, plain data, and dicts and lists of them.
        name: Name of the value.
    """
    if isinstance(value, torch.Tensor):
        return None if torch.isfinite(value).all() else name
    if isinstance(value, dict):
        parts = [(f"{name}.{key}", one) for key, one in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{name}[{i}]", one) for i, one in enumerate(value)]
    else:
        return None
    return next((found for key, one in parts if (found := find_non_finite(one, key)) is not None), None)


def without_tensors(value: Any) -> Any:
    """Return a copy of nested dicts and lists without tensors, which would keep their memory-mapped file open."""
    if isinstance(value, dict):
        return {key: without_tensors(one) for key, one in value.items() if not isinstance(one, torch.Tensor)}
    if isinstance(value, (list, tuple)):
        return [without_tensors(one) for one in value if not isinstance(one, torch.Tensor)]
    return value
