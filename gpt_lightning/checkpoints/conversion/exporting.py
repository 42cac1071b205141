"""A checkpoint written in another program's format and read back: its logits must be the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt_lightning.checkpoints.conversion.importing import architecture_of, convert
from gpt_lightning.checkpoints.conversion.readers import Source, open_source
from gpt_lightning.checkpoints.conversion.writers import open_gguf, write_book, write_gguf, write_hf, write_own
from gpt_lightning.checkpoints.loading import LoadedCheckpoint
from gpt_lightning.errors import InputError, MachineError, describe_os_error
from gpt_lightning.files import check_absent, find_os_error
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT

PROBE_TOKENS = 16
TOLERANCE = 1e-5  # of the largest logit


def probe_logits(state: dict[str, Tensor], config: GPTConfig) -> Tensor:
    """Logits (T, V) of up to 16 random token ids, always the same; the network gets no memory of its own."""
    with torch.device("meta"):
        model = GPT(config).eval()
    model.load_state_dict({key: tensor.float() for key, tensor in state.items()}, assign=True)
    generator = torch.Generator().manual_seed(0)
    length = min(PROBE_TOKENS, config.context_length)
    token_ids = torch.randint(config.vocab_size, (1, length), generator=generator)
    with torch.no_grad():
        return model(token_ids)[0]


@dataclass(frozen=True)
class Format:
    """How one format is written and read back.

    Attributes:
        write: Makes the file or folder; yields what there is to say.
        read: Opens it.
        suffix: That a file's name must end with; empty for a folder.
        has_vocabulary: Whether the tokenizer is part of it, which has to be GPT-2's then.
    """

    write: Callable[[LoadedCheckpoint, Path], Iterator[str]]
    read: Callable[[Path], Source]
    suffix: str = ""
    has_vocabulary: bool = False


FORMATS = {
    "hf": Format(write_hf, lambda path: open_source(str(path)), has_vocabulary=True),
    "book": Format(write_book, lambda path: open_source(str(path / "model.pth"))),
    "safetensors": Format(write_own, lambda path: open_source(str(path)), ".safetensors"),
    "gguf": Format(write_gguf, open_gguf, ".gguf", has_vocabulary=True),
}


def check_format(name: str, trained: LoadedCheckpoint, output: Path) -> None:
    """Raises `InputError` where a format cannot hold the model, needs an extra, or wants another name."""
    chosen = FORMATS[name]
    if chosen.suffix and output.suffix != chosen.suffix:
        raise InputError(f"--output ({output}) must end with {chosen.suffix}, because --format is {name}")
    if chosen.has_vocabulary and trained.tokenizer != "gpt2":
        raise InputError(
            f"{trained.name}: --format {name} holds the vocabulary of gpt2, and this model was trained on "
            f"{trained.tokenizer}; --format safetensors and --format book hold weights alone"
        )
    if name == "gguf":
        try:
            import gguf  # noqa: F401
        except ModuleNotFoundError:
            extra = "pip install -c constraints.txt -e '.[gguf]'"
            raise InputError(f"--format gguf needs the extra gguf: {extra}") from None


def export_weights(trained: LoadedCheckpoint, name: str, output: Path) -> Iterator[str]:
    """Writes one format whole or not at all and yields lines that say what was done.

    Raises:
        InputError: The format cannot hold the model.
        MachineError: It cannot be written, or what is read back is not the model.
    """
    check_format(name, trained, output)
    expected = probe_logits(trained.state, trained.config)
    folder = output.with_name(f"{output.name}.tmp-{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        written = folder / output.name
        yield from FORMATS[name].write(trained, written)
        difference = read_back(lambda: FORMATS[name].read(written), trained, expected)
        check_absent(output)  # it took a while
        os.replace(written, output)
    except OSError as error:
        raise MachineError(f"{output}: {describe_os_error(error)[0]} while exporting") from None
    except RuntimeError as error:  # of torch.save, about a full disk
        if (cause := find_os_error(error)) is not None:
            raise MachineError(f"{output}: {describe_os_error(cause)[0]} while exporting") from None
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    files = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    yield f"{output}: {name}" + (f" ({', '.join(files)})" if files else "")
    yield f"read back: {len(expected)} tokens' logits differ by at most {difference:.1e}"


def read_back(read: Callable[[], Source], trained: LoadedCheckpoint, expected: Tensor) -> float:
    """How far the logits of what was written are from those of the checkpoint, at most.

    Raises:
        MachineError: It is not the same model.
    """
    try:
        source = read()
        converted = convert(source, architecture_of(source, trained.config.n_heads))
    except InputError as error:
        raise MachineError(f"{error}, though it was just written") from None
    logits = probe_logits(converted.state, converted.config)
    largest = expected.abs().max().item()
    difference = (logits - expected).abs().max().item() if logits.shape == expected.shape else float("inf")
    if not difference <= TOLERANCE * max(largest, 1):
        raise MachineError(f"{source.name}: read back, its logits differ by {difference:.1e}; nothing is kept")
    return difference
