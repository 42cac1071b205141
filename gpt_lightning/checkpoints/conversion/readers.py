"""Read weight files, other programs' and our own, one weight at a time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt_lightning.checkpoints.conversion.key_maps import BOOK, HUGGING_FACE, NANOGPT, OURS, KeyMap
from gpt_lightning.checkpoints.io import load_plain
from gpt_lightning.console import PROGRAM
from gpt_lightning.errors import InputError, MachineError
from gpt_lightning.files import with_filename

SAFETENSORS = "model.safetensors"
BOOK_FILES, BOOK_NOTE = ("model.pth", "model_and_optimizer.pth"), "model.json"  # what `export --format book` writes
HUB = "https://huggingface.co"
HUB_SECONDS = 5
# Values of config.json that `models.gpt.GPT` supports; the first is the default.
FIXED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


@dataclass(frozen=True)
class WeightReader:
    """The weights in a file, read one at a time.

    Attributes:
        name: Name of the file or folder, for messages.
        key_map: Names and shapes of the program that wrote it.
        shapes: Shape of each weight; prefixes of wrappers are stripped from the names.
        read: Returns the weight of a name in `shapes`.
        settings: Architecture and tokenizer as stated in the file, under our names, not yet validated.
    """

    name: str
    key_map: KeyMap
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    settings: dict[str, Any]


def open_weights(name: str) -> WeightReader:
    """Open the weights in a file, in a folder, or in a repository on the Hugging Face Hub.

    Raises:
        InputError: The file does not exist, is incomplete, contains more than tensors and plain data, or its weights
            have the names of no known program.
        MachineError: The file cannot be read or downloaded.
    """
    path = Path(name)
    with with_filename(name):
        if path.is_dir():
            return _open_folder(path, name)
        if path.is_file():
            settings = _read_config(path.parent / "config.json") if path.name == SAFETENSORS else {}
            return _open_safetensors([path], name, settings) if path.suffix == ".safetensors" else _open_pickle(name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not path.exists():
        return _open_folder(fetch_repository(name), name)
    raise InputError(f"{name}: {'must be a file or a folder' if path.exists() else 'no such file or folder'}")


def _open_folder(folder: Path, name: str) -> WeightReader:
    settings = _read_config(folder / "config.json")
    index = folder / f"{SAFETENSORS}.index.json"
    if (folder / SAFETENSORS).is_file():
        files = [folder / SAFETENSORS]
    elif index.is_file():  # one model in several files
        parts = _read_json(index).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
            raise InputError(f"{index}: weight_map must name a file for each weight")
        files = [folder / part for part in sorted(set(parts.values()))]
    else:
        raise InputError(f"{name}: contains no {SAFETENSORS}; give a Hugging Face model folder, or a file of weights")
    return _open_safetensors(files, name, settings)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not JSON") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must be a JSON object")
    return content


def _read_config(path: Path) -> dict[str, Any]:
    """Return the settings of a config.json under our names, or no settings if the file does not exist.

    Raises:
        InputError: The file describes a network that `models.gpt.GPT` does not support.
    """
    if not path.is_file():
        return {}
    config = _read_json(path)
    for key, allowed in FIXED.items():
        if config.get(key, allowed[0]) not in allowed:
            raise InputError(f"{path}: {key} ({config[key]}) must be {allowed[0]}, as in GPT-2")
    inner, width = config.get("n_inner"), config.get("n_embd")
    if inner is not None and isinstance(width, int) and inner != 4 * width:
        raise InputError(f"{path}: n_inner ({inner}) must be 4 * n_embd ({4 * width}), as in GPT-2")
    return HUGGING_FACE.to_our_settings(config)


def _open_safetensors(files: list[Path], name: str, settings: dict[str, Any]) -> WeightReader:
    raw: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for key in opened.keys():  # noqa: SIM118  it is not a dict
                    raw[key] = file
                    shapes[key] = tuple(opened.get_slice(key).get_shape())
                own = (opened.metadata() or {}).get(PROGRAM)
        except SafetensorError as error:
            raise InputError(f"{file}: is not a complete safetensors file ({error})") from None
        if own is not None:
            try:
                settings = dict(json.loads(own))
            except (ValueError, TypeError, RecursionError):
                raise InputError(f"{file}: its {PROGRAM} metadata is not JSON") from None
    plain = {_plain(key): key for key in raw}
    _check_once(name, len(raw), len(plain))

    def read(key: str) -> Tensor:
        # Reopened for each weight, because closing it releases the pages read so far.
        with safe_open(raw[plain[key]], "pt") as opened:
            return opened.get_tensor(plain[key]).clone()

    return _identify(name, {key: shapes[plain[key]] for key in plain}, read, settings)


def _open_pickle(name: str) -> WeightReader:
    """Open a file of `torch.save` with a state dict, or with the book's or nanoGPT's dict that contains one."""
    content = load_plain(name, "a zip file of torch.save", mmap=True)
    if not isinstance(content, dict):
        raise InputError(f"{name}: must contain a dict of weights, got a {type(content).__name__}")
    if PROGRAM in content:
        raise InputError(f"{name}: is already a checkpoint of {PROGRAM}; use it without import")
    model_args = content.get("model_args")
    settings = NANOGPT.to_our_settings(model_args) if isinstance(model_args, dict) else {}
    note = Path(name).with_name(BOOK_NOTE)
    if note.is_file() and Path(name).name in BOOK_FILES:
        settings = {key: value for key, value in _read_json(note).items() if key in ("n_heads", "tokenizer")}
    for key in ("model_state_dict", "model", "state_dict"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    for key, tensor in content.items():
        is_dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_meta
        if not isinstance(key, str) or not is_dense:
            raise InputError(f"{name}: {key} must be a name and a dense tensor")
    tensors = {_plain(key): tensor.detach() for key, tensor in content.items()}
    _check_once(name, len(content), len(tensors))
    return _identify(name, {key: tuple(one.shape) for key, one in tensors.items()}, lambda key: tensors[key], settings)


def _check_once(name: str, given: int, plain: int) -> None:
    """Raise `InputError` if names differ only in their prefixes, because either weight could be meant."""
    if plain != given:
        raise InputError(f"{name}: contains weights twice, under names that differ only in a prefix")


def _plain(key: str) -> str:
    """Strip the prefixes of torch.compile, DistributedDataParallel and Hugging Face from a name."""
    return re.sub(r"^((_orig_mod|module|transformer|model)\.)+", "", key)


def _identify(
    name: str, shapes: dict[str, tuple[int, ...]], read: Callable[[str], Tensor], settings: dict[str, Any]
) -> WeightReader:
    """Return a reader with the key map of the program that uses these names.

    Raises:
        InputError: No known program uses these names.
    """
    if "wte.weight" in shapes:
        height, width = (*shapes.get("h.0.attn.c_attn.weight", (0, 0)), 0, 0)[:2]
        key_map = NANOGPT if height == 3 * width and height else HUGGING_FACE
    elif "tok_emb.weight" in shapes:
        key_map = BOOK if any(".att.W_query." in key for key in shapes) else OURS
    else:
        first = f"its first weight is {next(iter(shapes))!r}" if shapes else "it is empty"
        raise InputError(f"{name}: is not a GPT-2 of Hugging Face, nanoGPT, the book or this program ({first})")
    return WeightReader(name, key_map, shapes, read, settings)


def fetch_repository(name: str) -> Path:
    """Download config.json and model.safetensors of a repository on the Hugging Face Hub, unless they are cached.

    Returns:
        The folder in the cache of huggingface_hub.

    Raises:
        InputError: The extra `hub` is not installed, or there is no such repository.
        MachineError: The Hub cannot be reached.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            HFValidationError,
            LocalEntryNotFoundError,
            RemoteEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ModuleNotFoundError:
        raise InputError(
            f"{name}: no such file or folder; to download it from Hugging Face, install the extra hub: "
            "pip install -c constraints.txt -e '.[hub]'"
        ) from None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # hides retries; the errors below have the reason
    files = ("config.json", SAFETENSORS)
    try:
        paths = [hf_hub_download(name, file, local_files_only=True) for file in files]
    except HFValidationError:
        raise InputError(f"{name}: no such file or folder") from None
    except LocalEntryNotFoundError:
        try:
            _reach_hub()
            paths = [hf_hub_download(name, file) for file in files]
        except (RepositoryNotFoundError, RemoteEntryNotFoundError):
            raise InputError(
                f"{name}: no such file or folder, and no such repository on Hugging Face with {SAFETENSORS}"
            ) from None
        except OSError as error:
            raise MachineError(
                f"{name}: no such file or folder, and it cannot be downloaded from Hugging Face "
                f"({' '.join(str(error).split())[:200]}); download config.json and {SAFETENSORS} of {HUB}/{name} "
                "on another machine and give their folder"
            ) from None
    return Path(paths[-1]).parent


def _reach_hub() -> None:
    """Raise `OSError` if there is no network; huggingface_hub would retry for half a minute."""
    with contextlib.suppress(urllib.error.HTTPError):  # any answer proves that there is a network
        urllib.request.urlopen(os.environ.get("HF_ENDPOINT") or HUB, timeout=HUB_SECONDS).close()
