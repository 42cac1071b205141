"""Weights of other programs as a checkpoint of this one.

One weight is read at a time: the memory is that of the model and its largest weight.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_lightning.checkpoints.conversion.key_maps import HEAD, NANOGPT, POSITIONS
from gpt_lightning.checkpoints.conversion.readers import Source
from gpt_lightning.checkpoints.io import read_checkpoint, write_checkpoint
from gpt_lightning.checkpoints.metadata import WEIGHTS_PREFIX, CheckpointInfo, ProgressInfo, TextInfo
from gpt_lightning.console import PROGRAM
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.errors import InputError, MachineError
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import parameter_shapes
from gpt_lightning.validation import require_integer

PUBLISHED_HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 36): 20, (1600, 48): 25}  # (emb_dim, n_layers) of GPT-2
DROP_RATE = 0.1  # GPT-2's, where a file says nothing


@dataclass(frozen=True)
class Converted:
    """A model under our names.

    Attributes:
        state: Name -> float32 weight; a tied head is the token embedding's tensor.
        config: The architecture of its network.
        report: A line for every weight.
    """

    state: dict[str, Tensor]
    config: GPTConfig
    report: list[str]


def architecture_of(source: Source, n_heads: int | None = None) -> GPTConfig:
    """The settings `model.*` of a source: what it says, and what the shapes tell.

    Args:
        source: Where the weights are.
        n_heads: Attention heads, where the source does not say and it is no published GPT-2.

    Raises:
        InputError: The heads are not known, or it cannot be built.
    """
    layout, shapes, said = source.layout, source.shapes, source.settings
    (embedding,), (positions,) = layout.names("tok_emb.weight"), layout.names(POSITIONS)
    for key in (embedding, positions):
        if key not in shapes:
            raise InputError(f"{source.name}: {key} is missing")
        if len(shapes[key]) != 2:
            raise InputError(f"{source.name}: {key} is {_size(shapes[key])}, must be a matrix")
    (vocab_size, emb_dim), context_length = shapes[embedding], shapes[positions][0]
    numbers = {int(found[1]) for key in shapes if (found := re.match(rf"{layout.blocks}\.(\d+)\.", key))}
    n_layers = len(numbers)
    if numbers != set(range(n_layers)):
        raise InputError(f"{source.name}: has weights of {n_layers} layers, one of which is number {max(numbers)}")
    if said.get("n_layers", n_layers) != n_layers:  # before a network of any number of layers is built
        raise InputError(f"{source.name}: has weights of {n_layers} layers, its settings say {said['n_layers']}")
    heads = said.get("n_heads", n_heads if n_heads is not None else PUBLISHED_HEADS.get((emb_dim, n_layers)))
    if heads is None:
        raise InputError(f"{source.name}: does not say its number of attention heads; give --n_heads")
    if n_heads is not None and n_heads != heads:
        raise InputError(f"--n_heads ({n_heads}) must be {heads}, because {source.name} says so")
    found_settings = {
        "vocab_size": vocab_size,
        "context_length": context_length,
        "emb_dim": emb_dim,
        "n_heads": heads,
        "n_layers": n_layers,
        "drop_rate": DROP_RATE,
        "qkv_bias": any(layout.names("trf_blocks.0.att.qkv.bias")[0] == key for key in shapes),
        "tie_weights": _is_tied(source),
        "init": "gpt2",
    }
    architecture = found_settings | {key: value for key, value in said.items() if key in GPTConfig.__dataclass_fields__}
    architecture["tie_weights"] = found_settings["tie_weights"]
    for key in ("vocab_size", "emb_dim", "context_length"):
        if architecture[key] != found_settings[key]:
            raise InputError(
                f"{source.name}: its settings say {key} {architecture[key]}, its weights have {found_settings[key]}"
            )
    try:
        return GPTConfig(**architecture)
    except InputError as error:
        raise InputError(f"{source.name}: {error}") from None


def _is_tied(source: Source) -> bool:
    """Whether the head is the token embedding: left out, or equal to it."""
    (embedding,), (head,) = source.layout.names("tok_emb.weight"), source.layout.names(HEAD)
    if head not in source.shapes:
        return True
    return source.shapes[head] == source.shapes[embedding] and torch.equal(source.read(head), source.read(embedding))


def convert(source: Source, config: GPTConfig, context_length: int | None = None) -> Converted:
    """Reads every weight, one after the other, into our names and shapes.

    Args:
        source: Where they are.
        config: Of `architecture_of`.
        context_length: Keep only so many positions; None keeps all.

    Raises:
        InputError: A weight is missing, left over, of another shape, not of floats or not finite; or
            context_length is above the source's.
    """
    layout, full = source.layout, config.context_length
    if context_length is not None:
        require_integer("--context_length", context_length, 1)
        if context_length > full:
            raise InputError(f"--context_length ({context_length}) must be at most {full}, {source.name}'s")
    expected = parameter_shapes(config)
    kinds = {re.sub(r"\.\d+\.", ".N.", key, count=1) for key in source.shapes}
    state: dict[str, Tensor] = {}
    seen: set[str] = set()
    lines: dict[str, int] = {}
    for ours, shape in expected.items():
        theirs = layout.names(ours)
        seen.update(theirs)
        missing = [key for key in theirs if key not in source.shapes]
        notes: list[str] = []
        if ours == HEAD and config.tie_weights:
            state[ours] = state["tok_emb.weight"]
            notes = ["tied to tok_emb.weight: equal" if not missing else "tied to tok_emb.weight: the source has none"]
        elif missing and layout.may_lack_biases and re.sub(r"\.\d+\.", ".N.", theirs[0], count=1) not in kinds:
            state[ours] = torch.zeros(shape)
            notes = ["0: the source has none"]
        elif missing:
            raise InputError(f"{source.name}: {missing[0]} is missing")
        else:
            state[ours], notes = _read(source, ours, shape)
        if ours == POSITIONS and context_length is not None and context_length < full:
            state[ours] = state[ours][:context_length].clone()
            notes.append(f"cropped to {context_length} positions")
        line = f"{', '.join(theirs)} -> {ours} {_size(shape)}" + "".join(f", {note}" for note in notes)
        _count(lines, line)
    for key in source.shapes:
        if re.fullmatch(layout.leaves_out, key):
            _count(lines, f"{key} left out, the causal mask")
        elif key not in seen:
            raise InputError(f"{source.name}: {key} is no weight of a GPT-2 as {layout.title} names them")
    report = [line + (f", {count} layers" if ".N." in line else "") for line, count in lines.items()]
    if context_length is not None:
        config = replace(config, context_length=context_length)
    return Converted(state, config, report)


def _read(source: Source, ours: str, shape: tuple[int, ...]) -> tuple[Tensor, list[str]]:
    """One weight as ours, checked, and what was done to it."""
    theirs, notes, tensors = source.layout.names(ours), [], []
    for key, must in zip(theirs, source.layout.shapes(ours, shape), strict=True):
        if source.shapes[key] != must:
            raise InputError(f"{source.name}: {key} is {_size(source.shapes[key])}, must be {_size(must)}")
        tensor = source.read(key)
        if not tensor.is_floating_point():
            raise InputError(f"{source.name}: {key} is of {_type(tensor)}, must be of floats")
        tensors.append(tensor)
    if source.layout.is_transposed(ours):
        notes.append("transposed")
    if len(tensors) > 1:
        notes.append("joined")
    if tensors[0].dtype != torch.float32:
        notes.append(f"from {_type(tensors[0])}")
    tensor = source.layout.to_ours(ours, tensors).float()
    if not torch.isfinite(tensor).all():
        raise InputError(f"{source.name}: contains non-finite weights ({theirs[0]})")
    return tensor, notes


def _count(lines: dict[str, int], line: str) -> None:
    """Adds a line, in which the number of a block is N, or counts it again."""
    general = re.sub(r"\b(h|trf_blocks|blk)\.\d+\.", r"\1.N.", line)
    lines[general] = lines.get(general, 0) + 1


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def describe(converted: Converted, source: Source, tokenizer: str) -> dict[str, Any]:
    """The content of a checkpoint that holds a model and knows of no training."""
    return {
        "epoch": 0,
        "global_step": 0,
        "state_dict": {WEIGHTS_PREFIX + key: tensor for key, tensor in converted.state.items()},
        "hyper_parameters": asdict(converted.config),
        "datamodule_hyper_parameters": {"tokenizer": tokenizer},
        "gpt_lightning": CheckpointInfo(
            text=TextInfo("unknown", "", 0, 0, None),
            progress=ProgressInfo(0, 0, 0),
            evaluated={},
            fit={},
            imported={"from": source.name, "layout": source.layout.title},
        ).to_dict(),
    }


def import_weights(
    source: Source, output: Path, context_length: int | None, n_heads: int | None, tokenizer: str | None
) -> Iterator[str]:
    """Writes a checkpoint and yields lines that say what is in it.

    Raises:
        InputError: See `architecture_of` and `convert`; or the vocabulary is smaller than the tokenizer's.
        MachineError: It cannot be written.
    """
    config = architecture_of(source, n_heads)
    name = tokenizer or str(source.settings.get("tokenizer", "gpt2"))
    ids, needed = config.vocab_size, load_tokenizer(name).vocab_size
    if ids < needed:
        raise InputError(
            f"{source.name}: has {ids} token ids, fewer than the {needed} of the tokenizer {name}; "
            "--tokenizer names another"
        )
    converted = convert(source, config, context_length)
    yield f"{source.name}: as {source.layout.title} names them"
    yield from converted.report
    write_checkpoint(describe(converted, source, name), output)
    try:
        read_checkpoint(output)
    except InputError as error:
        raise MachineError(f"{error}, though it was just written") from None
    shown = {key: value for key, value in asdict(converted.config).items() if key not in ("init", "drop_rate")}
    yield f"{output}: " + ", ".join(f"{key} {value}" for key, value in shown.items()) + f", tokenizer {name}"
    if source.layout is NANOGPT:
        yield "nanoGPT computes GELU exactly, GPT-2 and this program with tanh: logits differ by some thousandths"
    yield f'To sample: python -m {PROGRAM} predict --ckpt_path {shlex.quote(str(output))} --prompt "Hello, I am"'
