"""The text that a checkpoint was trained on, found again and compared with the checkpoint's fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gpt_lightning.checkpoints.loading import LoadedCheckpoint
from gpt_lightning.data.corpus import CACHE_DIR, Corpus, Part, ShardsCorpus, open_corpus
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.errors import InputError, MachineError


def check_fingerprint(corpus: Corpus, checkpoint: dict[str, Any], name: str, hint: str = "") -> None:
    """Raise `InputError` if a text differs from the one that a checkpoint was trained on.

    Args:
        corpus: The text.
        checkpoint: The checkpoint's content.
        name: File name of the checkpoint, for the message.
        hint: Text to append to the message.
    """
    seen = checkpoint["gpt_lightning"]["text"]
    if corpus.sha256 != seen["sha256"]:
        raise InputError(
            f"{corpus.path}: is not the text that {name} was trained on "
            f"({seen['name']}, sha256 {seen['sha256'][:12]}...){hint}"
        )


def check_val_fingerprint(
    val_text: str, sha256: str | None, checkpoint: dict[str, Any], name: str, hint: str = ""
) -> None:
    """Raise `InputError` if a validation text differs from the one that a checkpoint was evaluated on.

    Args:
        val_text: The text, as in `data.val_text`.
        sha256: Its checksum; None if there is none.
        checkpoint: The checkpoint's content.
        name: File name of the checkpoint, for the message.
        hint: Text to append to the message.
    """
    if sha256 != checkpoint["gpt_lightning"]["text"]["val_sha256"]:
        raise InputError(f"{val_text}: is not the validation text that {name} was evaluated on{hint}")


@dataclass(frozen=True)
class OwnSplits:
    """The splits of the text that a checkpoint was trained on.

    Attributes:
        name: Description of the validation split.
        train: The training split.
        val: The validation split, or all of `data.val_text`.
    """

    name: str
    train: Part
    val: Part


def open_text(checkpoint: dict[str, Any], source: str, setting: str) -> Corpus:
    """Open a text with the tokenizer and the cleaning of a checkpoint.

    A file is looked up at its path and in the folder `GPT_LIGHTNING_DATA`; `data.url` is not used. A dataset (hf:) is
    downloaded unless it is in the cache of Hugging Face.

    Args:
        checkpoint: The checkpoint's content.
        source: A file, folder, glob or dataset, see `open_corpus`.
        setting: What error messages call the text.

    Raises:
        InputError: The text is missing or not a text.
        MachineError: The text cannot be read.
    """
    settings = checkpoint["datamodule_hyper_parameters"]
    corpus = open_corpus(
        source,
        load_tokenizer(str(settings.get("tokenizer"))),
        clean=settings.get("clean"),
        cache_dir=Path(settings.get("cache_dir", CACHE_DIR)),
        setting=setting,
    )
    if isinstance(corpus, ShardsCorpus):
        raise InputError(f"{setting}, {source}, consists of shards, which this command does not read; name a text file")
    return corpus


def open_training_text(checkpoint: dict[str, Any], name: str) -> Corpus:
    """Open the text that a checkpoint was trained on.

    Args:
        checkpoint: The checkpoint's content.
        name: File name of the checkpoint, for messages.

    Raises:
        InputError: The checkpoint names no text, or the text is missing or is not the one that it was trained on.
        MachineError: The text cannot be read.
    """
    source = checkpoint["datamodule_hyper_parameters"].get("text")
    if not isinstance(source, str) or not source:
        raise InputError(f"{name}: does not say what text it was trained on")
    corpus = open_text(checkpoint, source, f"the training text of {name}")
    check_fingerprint(corpus, checkpoint, name)
    return corpus


def training_tokens(checkpoint: dict[str, Any], name: str) -> NDArray[Any]:
    """Return the token ids of the training split, (N,), in memory or memory-mapped; see `open_training_text`."""
    settings, corpus = checkpoint["datamodule_hyper_parameters"], open_training_text(checkpoint, name)
    part = corpus.split(settings.get("train_ratio"))[0] if settings.get("val_text") is None else corpus.whole()
    return part.array


def find_training_tokens(checkpoint: LoadedCheckpoint) -> tuple[NDArray[Any] | None, str | None]:
    """Return the training tokens of a checkpoint, or None and the reason why they are not there."""
    try:
        return training_tokens(checkpoint.content, checkpoint.name), None
    except (InputError, MachineError) as error:
        return None, str(error)


def own_splits(checkpoint: dict[str, Any], name: str) -> OwnSplits:
    """Return both splits of the text that a checkpoint was trained on.

    Args:
        checkpoint: The checkpoint's content.
        name: File name of the checkpoint, for messages.

    Raises:
        InputError: See `open_training_text`; or `data.val_text` is missing or is not the checkpoint's.
        MachineError: A text cannot be read.
    """
    settings, corpus = checkpoint["datamodule_hyper_parameters"], open_training_text(checkpoint, name)
    if settings.get("val_text") is None:
        return OwnSplits(f"validation split of {corpus.name}", *corpus.split(settings.get("train_ratio")))
    other = open_text(checkpoint, settings["val_text"], f"the validation text of {name}")
    check_val_fingerprint(settings["val_text"], other.sha256, checkpoint, name)
    return OwnSplits(f"all of {other.name}", corpus.whole(), other.whole())
