"""Export a checkpoint to another program's format, and check that the exported model has the same logits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt_lightning.checkpoints.conversion.importing import convert, read_config
from gpt_lightning.checkpoints.conversion.readers import WeightReader, open_weights
from gpt_lightning.checkpoints.conversion.writers import open_gguf, write_book, write_gguf, write_hf, write_own
from gpt_lightning.checkpoints.loading import LoadedCheckpoint
from gpt_lightning.errors import InputError, MachineError, describe_os_error
from gpt_lightning.files import check_absent, find_os_error
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT, on_meta_device

PROBE_TOKENS = 16
TOLERANCE = 1e-5  # relative to the largest logit


def probe_logits(state: dict[str, Tensor], config: GPTConfig) -> Tensor:
    """Return logits (T, V) of up to 16 fixed random token ids, without copying the weights."""
    with on_meta_device():
        model = GPT(config).eval()
    model.load_state_dict({key: tensor.float() for key, tensor in state.items()}, assign=True)
    generator = torch.Generator().manual_seed(0)
    length = min(PROBE_TOKENS, config.context_length)
    token_ids = torch.randint(config.vocab_size, (1, length), generator=generator)
    with torch.no_grad():
        return model(token_ids)[0]


@dataclass(frozen=True)
class Format:
    """The writer and the reader of one format.

    Attributes:
        write: Writes a checkpoint to a file or folder and yields the lines of a report.
        read: Opens the written file or folder.
        suffix: Required ending of a file's name; empty for a folder.
        has_vocabulary: Whether the format includes the vocabulary, which must be GPT-2's.
    """

    write: Callable[[LoadedCheckpoint, Path], Iterator[str]]
    read: Callable[[Path], WeightReader]
    suffix: str = ""
    has_vocabulary: bool = False


FORMATS = {
    "hf": Format(write_hf, lambda path: open_weights(str(path)), has_vocabulary=True),
    "book": Format(write_book, lambda path: open_weights(str(path / "model.pth"))),
    "safetensors": Format(write_own, lambda path: open_weights(str(path)), ".safetensors"),
    "gguf": Format(write_gguf, open_gguf, ".gguf", has_vocabulary=True),
}


def check_format(name: str, checkpoint: LoadedCheckpoint, output: Path) -> None:
    """Raise `InputError` if the format cannot store the model, needs an extra, or requires another file name."""
    chosen = FORMATS[name]
    if chosen.suffix and output.suffix != chosen.suffix:
        raise InputError(f"--output ({output}) must end with {chosen.suffix}, because --format is {name}")
    if chosen.has_vocabulary and checkpoint.tokenizer != "gpt2":
        raise InputError(
            f"{checkpoint.name}: --format {name} needs the tokenizer gpt2, but the model's is {checkpoint.tokenizer}; "
            "use --format safetensors or book"
        )
    if name == "gguf":
        try:
            import gguf  # noqa: F401
        except ModuleNotFoundError:
            extra = "pip install -c constraints.txt -e '.[gguf]'"
            raise InputError(f"--format gguf needs the extra gguf: {extra}") from None


def export_weights(checkpoint: LoadedCheckpoint, name: str, output: Path) -> Iterator[str]:
    """Write a checkpoint's weights in one format atomically, and yield the lines of a report.

    Raises:
        InputError: See `check_format`.
        MachineError: The file cannot be written, or the exported model has other logits.
    """
    check_format(name, checkpoint, output)
    expected = probe_logits(checkpoint.state, checkpoint.config)
    folder = output.with_name(f"{output.name}.tmp-{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        written = folder / output.name
        yield from FORMATS[name].write(checkpoint, written)
        difference = read_back(lambda: FORMATS[name].read(written), checkpoint, expected)
        check_absent(output)  # again, because writing takes a while
        os.replace(written, output)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        if (cause := find_os_error(error)) is None:
            raise
        raise MachineError(f"{output}: {describe_os_error(cause)[0]} while exporting") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    files = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    yield f"{output}: {name}" + (f" ({', '.join(files)})" if files else "")
    yield f"read back: {len(expected)} tokens' logits differ by at most {difference:.1e}"


def read_back(read: Callable[[], WeightReader], checkpoint: LoadedCheckpoint, expected: Tensor) -> float:
    """Return the largest difference between the logits of the exported model and the checkpoint's.

    Raises:
        MachineError: The exported file cannot be read, or the difference exceeds the tolerance.
    """
    try:
        reader = read()
        model = convert(reader, read_config(reader, checkpoint.config.n_heads))
    except InputError as error:
        raise MachineError(f"{error}, though it was just written") from None
    logits = probe_logits(model.state, model.config)
    largest = expected.abs().max().item()
    difference = (logits - expected).abs().max().item() if logits.shape == expected.shape else float("inf")
    if not difference <= TOLERANCE * max(largest, 1):
        raise MachineError(f"{reader.name}: exported logits differ by {difference:.1e}; the export is discarded")
    return difference
