"""Describe a checkpoint, and the difference between the weights of two, as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from gpt_lightning.checkpoints.loading import LoadedCheckpoint
from gpt_lightning.checkpoints.metadata import CheckpointInfo
from gpt_lightning.errors import InputError
from gpt_lightning.models.gpt import parameter_shapes

ROOMS = {
    "tok_emb": "token embedding",
    "pos_emb": "position embedding",
    "trf_blocks": "block",
    "final_norm": "final norm",
    "out_head": "head",
}
ALL = "all weights"
NOT_ARCHITECTURE = ("drop_rate", "init")  # settings of the model that do not change what its weights mean
LARGEST_INT = 2**63
DEEPEST = 20  # levels of lists and dicts; a damaged file may have any number, or a list that contains itself
CHUNK = 2**22  # weights converted to float64 at a time, 32 MB


def describe_checkpoint(checkpoint: LoadedCheckpoint) -> dict[str, Any]:
    """Describe a checkpoint as data for JSON, with the same keys for every checkpoint.

    Losses are in nats per token. A number that is not finite is None, `text` is None if it is unknown, and `baselines`
    is empty if the file has none.

    Raises:
        InputError: The metadata contains something other than plain data, or a loss is not a number.
    """
    name, config = checkpoint.name, checkpoint.config
    content = plain(checkpoint.content["gpt_lightning"], name)
    info = CheckpointInfo.parse({"gpt_lightning": content})
    for key in ("evaluated", "baselines"):
        values = content.setdefault(key, {})
        if not isinstance(values, dict) or any(isinstance(one, (str, list, dict)) for one in values.values()):
            raise InputError(f"{name}: {key} must have a number for each name")
    if info.imported is not None and not isinstance(info.imported, dict):
        raise InputError(f"{name}: imported must be a name and a format")
    return {
        "model": {"description": config.description, "parameters": config.num_parameters} | asdict(config),
        "tokenizer": checkpoint.tokenizer,
        "text": asdict(info.text) if info.imported is None else None,
        "progress": asdict(info.progress),
        "evaluated": content["evaluated"],
        "baselines": content["baselines"],
        "weights": {
            "types": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.state.values()}),
            "imported": info.imported,
            "init_from": info.fit.get("init_from"),
            "optimizer": "optimizer_states" in checkpoint.content,
        },
        "format": info.format,
        "versions": info.versions,
    }


def plain(value: Any, name: str, depth: int = 0) -> Any:
    """Copy nested data for JSON, with None in place of numbers that are not finite.

    Args:
        value: None, numbers, texts, and lists and dicts of them.
        name: Name of the file, for the error message.
        depth: Number of lists and dicts around the value.

    Raises:
        InputError: The data contains something else, an int of more than 64 bits, or itself.
    """
    if depth <= DEEPEST:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: plain(one, name, depth + 1) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(one, name, depth + 1) for one in value]
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if value is None or isinstance(value, str) or (isinstance(value, int) and abs(value) < LARGEST_INT):
            return value
    raise InputError(f"{name}: its metadata must be plain data")


def different_architecture(one: LoadedCheckpoint, other: LoadedCheckpoint) -> list[str]:
    """Return the names of the settings in which two architectures differ, so that their weights cannot be compared."""
    left, right = asdict(one.config), asdict(other.config)
    return [f"model.{name}" for name in left if name not in NOT_ARCHITECTURE and left[name] != right[name]]


def weight_differences(one: LoadedCheckpoint, other: LoadedCheckpoint) -> dict[str, dict[str, float | None]]:
    """Return the Euclidean norm of the difference between the weights of each part of two networks.

    The weights of a tied head are those of the token embedding, and are counted there only.

    Args:
        one: A checkpoint.
        other: A checkpoint of the same architecture.

    Returns:
        Part of the network -> the norm of the weights of `one`, the norm of the difference, and their ratio, None if
        it is not finite. Blocks are numbered from 0, as in the names of the weights; the last part is all weights.
    """
    sums: dict[str, list[float]] = {}
    for key in parameter_shapes(one.config):
        if key == "out_head.weight" and one.config.tie_weights:
            continue
        part, number, *_ = key.split(".")
        room = f"{ROOMS[part]} {number}" if part == "trf_blocks" else ROOMS[part]
        for left, right in _chunks(one.state[key], other.state[key]):
            squares = (left.square().sum().item(), (right - left).square().sum().item())
            for name in (room, ALL):
                sums[name] = [a + b for a, b in zip(sums.get(name, [0.0, 0.0]), squares, strict=True)]
    sums[ALL] = sums.pop(ALL)
    return {name: _norms(*squares) for name, squares in sums.items()}


def _chunks(one: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows of two tensors in float64."""
    rows = max(1, CHUNK * len(one) // one.numel())
    for left, right in zip(torch.split(one, rows), torch.split(other, rows), strict=True):
        yield left.double(), right.double()


def _norms(squares: float, difference: float) -> dict[str, float | None]:
    norm, change = math.sqrt(squares), math.sqrt(difference)
    found = {"norm": norm, "difference": change, "relative": change / norm if norm else math.nan if change else 0.0}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}
