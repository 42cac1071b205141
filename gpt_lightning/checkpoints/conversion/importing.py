"""Convert weights of other programs into a checkpoint.

Weights are read one at a time, so the memory needed is that of the model and its largest weight.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_lightning.checkpoints.conversion.key_maps import HEAD, NANOGPT, POSITIONS
from gpt_lightning.checkpoints.conversion.readers import WeightReader
from gpt_lightning.checkpoints.io import read_checkpoint, write_checkpoint
from gpt_lightning.checkpoints.metadata import WEIGHTS_PREFIX, CheckpointInfo, ProgressInfo, TextInfo
from gpt_lightning.console import PROGRAM, quote
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.errors import InputError, MachineError
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import parameter_shapes
from gpt_lightning.validation import require_integer

PUBLISHED_HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 36): 20, (1600, 48): 25}  # (emb_dim, n_layers) of GPT-2
DROP_RATE = 0.1  # GPT-2's, used if the file states none


@dataclass(frozen=True)
class ImportedModel:
    """A model with imported weights under our names.

    Attributes:
        state: Name -> float32 weight; a tied head is the same tensor as the token embedding.
        config: The architecture.
        report: One line per kind of weight: its names, its shape and its conversion.
    """

    state: dict[str, Tensor]
    config: GPTConfig
    report: list[str]


def read_config(reader: WeightReader, n_heads: int | None = None) -> GPTConfig:
    """Return the architecture of a model from the settings in its file and the shapes of its weights.

    Args:
        reader: The file.
        n_heads: Attention heads; required if the file does not state them and the model is not a published GPT-2.

    Raises:
        InputError: The number of heads is unknown, or settings and shapes contradict each other.
    """
    key_map, shapes, stated = reader.key_map, reader.shapes, reader.settings
    (embedding,), (positions,) = key_map.names("tok_emb.weight"), key_map.names(POSITIONS)
    for key in (embedding, positions):
        if key not in shapes:
            raise InputError(f"{reader.name}: {key} is missing")
        if len(shapes[key]) != 2:
            raise InputError(f"{reader.name}: {key} must be a matrix, got shape {_size(shapes[key])}")
    (vocab_size, emb_dim), context_length = shapes[embedding], shapes[positions][0]
    numbers = {int(found[1]) for key in shapes if (found := re.match(rf"{key_map.blocks}\.(\d+)\.", key))}
    n_layers = len(numbers)
    if numbers != set(range(n_layers)):
        raise InputError(f"{reader.name}: has weights of {n_layers} layers, but the last has index {max(numbers)}")
    if stated.get("n_layers", n_layers) != n_layers:  # checked first: a wrong number could ask for a billion layers
        raise InputError(f"{reader.name}: has weights of {n_layers} layers, its settings say {stated['n_layers']}")
    heads = stated.get("n_heads", n_heads if n_heads is not None else PUBLISHED_HEADS.get((emb_dim, n_layers)))
    if heads is None:
        raise InputError(f"{reader.name}: does not state its number of attention heads; give --n_heads")
    if n_heads is not None and n_heads != heads:
        raise InputError(f"--n_heads ({n_heads}) must be {heads}, as stated by {reader.name}")
    found_settings = {
        "vocab_size": vocab_size,
        "context_length": context_length,
        "emb_dim": emb_dim,
        "n_heads": heads,
        "n_layers": n_layers,
        "drop_rate": DROP_RATE,
        "qkv_bias": any(key_map.names("trf_blocks.0.att.qkv.bias")[0] == key for key in shapes),
        "tie_weights": _is_tied(reader),
        "init": "gpt2",
    }
    architecture = found_settings | {
        key: value for key, value in stated.items() if key in GPTConfig.__dataclass_fields__
    }
    architecture["tie_weights"] = found_settings["tie_weights"]
    for key in ("vocab_size", "emb_dim", "context_length"):
        if architecture[key] != found_settings[key]:
            raise InputError(
                f"{reader.name}: its settings say {key} {architecture[key]}, its weights have {found_settings[key]}"
            )
    try:
        return GPTConfig(**architecture)
    except InputError as error:
        raise InputError(f"{reader.name}: {error}") from None


def _is_tied(reader: WeightReader) -> bool:
    """Return whether the head is missing or equal to the token embedding."""
    (embedding,), (head,) = reader.key_map.names("tok_emb.weight"), reader.key_map.names(HEAD)
    if head not in reader.shapes:
        return True
    return reader.shapes[head] == reader.shapes[embedding] and torch.equal(reader.read(head), reader.read(embedding))


def convert(reader: WeightReader, config: GPTConfig, context_length: int | None = None) -> ImportedModel:
    """Read every weight and convert it to our name and shape.

    Args:
        reader: The file.
        config: Its architecture, see `read_config`.
        context_length: Number of positions to keep; None keeps all.

    Raises:
        InputError: A weight is missing, unexpected, not finite, or of the wrong shape or type; or context_length
            exceeds the file's.
    """
    key_map, full = reader.key_map, config.context_length
    if context_length is not None:
        require_integer("--context_length", context_length, 1)
        if context_length > full:
            raise InputError(f"--context_length ({context_length}) must be at most {full}, {reader.name}'s")
    expected = parameter_shapes(config)
    kinds = {re.sub(r"\.\d+\.", ".N.", key, count=1) for key in reader.shapes}
    state: dict[str, Tensor] = {}
    seen: set[str] = set()
    lines: dict[str, int] = {}
    for ours, shape in expected.items():
        theirs = key_map.names(ours)
        seen.update(theirs)
        missing = [key for key in theirs if key not in reader.shapes]
        notes: list[str] = []
        if ours == HEAD and config.tie_weights:
            state[ours] = state["tok_emb.weight"]
            notes = ["tied to tok_emb.weight: equal" if not missing else "tied to tok_emb.weight: the source has none"]
        elif missing and key_map.may_lack_biases and re.sub(r"\.\d+\.", ".N.", theirs[0], count=1) not in kinds:
            state[ours] = torch.zeros(shape)
            notes = ["0: the source has none"]
        elif missing:
            raise InputError(f"{reader.name}: {missing[0]} is missing")
        else:
            state[ours], notes = _read(reader, ours, shape)
        if ours == POSITIONS and context_length is not None and context_length < full:
            state[ours] = state[ours][:context_length].clone()
            notes.append(f"cropped to {context_length} positions")
        line = f"{', '.join(theirs)} -> {ours} {_size(shape)}" + "".join(f", {note}" for note in notes)
        _count(lines, line)
    for key in reader.shapes:
        if re.fullmatch(key_map.ignored, key):
            _count(lines, f"{key} skipped: the causal mask")
        elif key not in seen:
            raise InputError(f"{reader.name}: {key} is not a weight of a GPT-2 in the format of {key_map.title}")
    report = [line + (f", {count} layers" if ".N." in line else "") for line, count in lines.items()]
    if context_length is not None:
        config = replace(config, context_length=context_length)
    return ImportedModel(state, config, report)


def _read(reader: WeightReader, ours: str, shape: tuple[int, ...]) -> tuple[Tensor, list[str]]:
    """Read and check one weight; return it in our shape, and notes on its conversion."""
    theirs, notes, tensors = reader.key_map.names(ours), [], []
    for key, must in zip(theirs, reader.key_map.shapes(ours, shape), strict=True):
        if reader.shapes[key] != must:
            raise InputError(f"{reader.name}: {key} must have shape {_size(must)}, got {_size(reader.shapes[key])}")
        tensor = reader.read(key)
        if not tensor.is_floating_point():
            raise InputError(f"{reader.name}: {key} must be of a floating-point type, got {_type(tensor)}")
        tensors.append(tensor)
    if reader.key_map.is_transposed(ours):
        notes.append("transposed")
    if len(tensors) > 1:
        notes.append("joined")
    if tensors[0].dtype != torch.float32:
        notes.append(f"from {_type(tensors[0])}")
    tensor = reader.key_map.to_ours(ours, tensors).float()
    if not torch.isfinite(tensor).all():
        raise InputError(f"{reader.name}: contains non-finite weights ({theirs[0]})")
    return tensor, notes


def _count(lines: dict[str, int], line: str) -> None:
    """Count a line of the report, with the block index replaced by N."""
    general = re.sub(r"\b(h|trf_blocks|blk)\.\d+\.", r"\1.N.", line)
    lines[general] = lines.get(general, 0) + 1


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "()"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def describe(model: ImportedModel, reader: WeightReader, tokenizer: str) -> dict[str, Any]:
    """Return the content of a checkpoint with an imported model and no training state."""
    return {
        "epoch": 0,
        "global_step": 0,
        "state_dict": {WEIGHTS_PREFIX + key: tensor for key, tensor in model.state.items()},
        "hyper_parameters": asdict(model.config),
        "datamodule_hyper_parameters": {"tokenizer": tokenizer},
        "gpt_lightning": CheckpointInfo(
            text=TextInfo("unknown", "", 0, 0, None),
            progress=ProgressInfo(0, 0, 0),
            evaluated={},
            fit={},
            imported={"from": reader.name, "layout": reader.key_map.title},
        ).to_dict(),
    }


def import_weights(
    reader: WeightReader, output: Path, context_length: int | None, n_heads: int | None, tokenizer: str | None
) -> Iterator[str]:
    """Write a checkpoint and yield the lines of a report.

    Args:
        reader: The file to import.
        output: The checkpoint to write.
        context_length: Number of positions to keep; None keeps all.
        n_heads: See `read_config`.
        tokenizer: Name of the tokenizer; None for the file's, or gpt2.

    Raises:
        InputError: See `read_config` and `convert`; or the vocabulary is smaller than the tokenizer's.
        MachineError: The checkpoint cannot be written.
    """
    config = read_config(reader, n_heads)
    name = tokenizer or str(reader.settings.get("tokenizer", "gpt2"))
    ids, needed = config.vocab_size, load_tokenizer(name).vocab_size
    if ids < needed:
        raise InputError(
            f"{reader.name}: has {ids} token ids, fewer than the {needed} of the tokenizer {name}; "
            "choose another with --tokenizer"
        )
    model = convert(reader, config, context_length)
    yield f"{reader.name}: weights in the format of {reader.key_map.title}"
    yield from model.report
    write_checkpoint(describe(model, reader, name), output)
    try:
        read_checkpoint(output)
    except InputError as error:
        raise MachineError(f"{error}, though it was just written") from None
    shown = {key: value for key, value in asdict(model.config).items() if key not in ("init", "drop_rate")}
    yield f"{output}: " + ", ".join(f"{key} {value}" for key, value in shown.items()) + f", tokenizer {name}"
    if reader.key_map is NANOGPT:
        yield "nanoGPT uses the exact GELU, this program GPT-2's tanh approximation: logits differ by some thousandths"
    yield f'To sample: python -m {PROGRAM} predict --ckpt_path {quote(str(output))} --prompt "Hello, I am"'
