"""The text that a checkpoint was trained on, found again and compared with the checkpoint's fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gpt_lightning.data.corpus import Corpus, open_corpus
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.errors import InputError


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


def training_tokens(checkpoint: dict[str, Any], name: str) -> NDArray[Any]:
    """Return the token ids of the training split of a checkpoint's own text.

    The text is looked up at its path and in the folder `GPT_LIGHTNING_DATA`, but not downloaded.

    Args:
        checkpoint: The checkpoint's content.
        name: File name of the checkpoint, for messages.

    Returns:
        (N,) ids, in memory or memory-mapped.

    Raises:
        InputError: The checkpoint names no text, or the text is missing or is not the one that it was trained on.
        MachineError: The text cannot be read.
    """
    settings = checkpoint["datamodule_hyper_parameters"]
    source = settings.get("text")
    if not isinstance(source, str) or not source:
        raise InputError(f"{name}: does not say what text it was trained on")
    corpus = open_corpus(
        source,
        load_tokenizer(str(settings.get("tokenizer"))),
        clean=settings.get("clean"),
        cache_dir=Path(str(settings.get("cache_dir"))),
    )
    check_fingerprint(corpus, checkpoint, name)
    part = corpus.split(settings.get("train_ratio"))[0] if settings.get("val_text") is None else corpus.whole()
    return part.token_ids
