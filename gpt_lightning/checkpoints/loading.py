"""From the content of a checkpoint to checked weights and a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.checkpoints.metadata import WEIGHTS_PREFIX
from gpt_lightning.errors import InputError
from gpt_lightning.models.config import ARCHITECTURE
from gpt_lightning.models.gpt import parameter_shapes


def without_tensors(value: Any) -> Any:
    """A copy of nested dicts and lists. A tensor's memory is the file, which would stay on the disk with it."""
    if isinstance(value, dict):
        return {key: without_tensors(one) for key, one in value.items() if not isinstance(one, torch.Tensor)}
    if isinstance(value, (list, tuple)):
        return [without_tensors(one) for one in value if not isinstance(one, torch.Tensor)]
    return value


def find_non_finite(value: Any, name: str) -> str | None:
    """The name of the first tensor with an infinity or a NaN in nested dicts and lists; None where there is none.

    Args:
        value: Tensors, plain data, and dicts and lists of them.
        name: Of the value.
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


def open_checkpoint(name: str) -> Trained:
    """Reads a checkpoint of this program.

    Raises:
        InputError: See `checkpoints.io.read_checkpoint`; or its weights are not those of its settings.
    """
    content = read_checkpoint(name)
    own = content["hyper_parameters"]
    state = {key.removeprefix(WEIGHTS_PREFIX): tensor for key, tensor in content["state_dict"].items()}
    layers = len({key.split(".")[1] for key in state if key.startswith("trf_blocks.")})
    if own.get("n_layers") != layers:  # before a network of any number of layers is built
        raise InputError(f"{name}: has weights of {layers} layers, its settings say {own.get('n_layers')}")
    architecture = {key: own.get(key) for key in ARCHITECTURE}
    try:
        shapes = parameter_shapes(architecture)
    except (InputError, TypeError) as error:
        raise InputError(f"{name}: {error}") from None
    for key in sorted(shapes.keys() | state.keys()):
        if key not in shapes or key not in state or tuple(state[key].shape) != shapes[key]:
            raise InputError(f"{name}: weights do not fit the model ({key})")
        if not torch.isfinite(state[key]).all():
            raise InputError(f"{name}: contains non-finite weights ({key})")
    tokenizer = str(content["datamodule_hyper_parameters"].get("tokenizer"))
    return Trained(name, architecture, tokenizer, state, content)


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds, the file being the memory of its tensors.

    Attributes:
        name: The checkpoint's file.
        architecture: The settings `model.*` that build its network.
        tokenizer: Its name.
        state: Our name -> weight.
        content: Everything.
    """

    name: str
    architecture: dict[str, Any]
    tokenizer: str
    state: dict[str, Tensor]
    content: dict[str, Any]
