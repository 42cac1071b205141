"""Everything that `evaluate` says about a checkpoint on a text."""

from __future__ import annotations

import functools
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_lightning.checkpoints.loading import LoadedCheckpoint
from gpt_lightning.data.tokenizer import Tokenizer, load_tokenizer
from gpt_lightning.data.windows import Windows
from gpt_lightning.errors import InputError
from gpt_lightning.evaluation.baselines import counted_tokens, measure_baselines
from gpt_lightning.evaluation.compression import MOST_BYTES, compressed_bits_per_byte
from gpt_lightning.evaluation.copy_finder import CopyFinder, count_copied
from gpt_lightning.evaluation.perplexity import TextScores, WindowScores, score_windows, summarize
from gpt_lightning.evaluation.training_text import find_training_tokens, open_text, own_splits
from gpt_lightning.models.gpt import GPT
from gpt_lightning.runs.records import BASELINE_MODELS

OVERLAP_TOKENS = 50  # runs of this length that the training text contains are not a coincidence
SPELLED_AT_ONCE = 2**16  # tokens; larger lists take more memory, not less time
SPLIT_SETTINGS = ("tokenizer", "train_ratio", "clean", "val_text")  # with the text, they determine the split's tokens

Counted = dict[str, float | None]


@dataclass(frozen=True)
class PublishedLoss:
    """The validation loss that a config is published with.

    Attributes:
        config: Name of the config.
        sha256: Checksum of its text.
        data: Its settings `data.*`; `SPLIT_SETTINGS` that it lacks are None.
        parameters: Parameters of its model.
        best_val_loss: Lowest and highest best validation loss that it expects, in nats per token.
    """

    config: str
    sha256: str
    data: dict[str, Any]
    parameters: int
    best_val_loss: list[float]

    def is_comparable(self, checkpoint: LoadedCheckpoint) -> bool:
        """Return whether the loss is one on the checkpoint's own validation split."""
        return split_of(checkpoint) == [self.sha256, *map(self.data.get, SPLIT_SETTINGS)]


def split_of(checkpoint: LoadedCheckpoint) -> list[Any]:
    """Return what determines the tokens of a checkpoint's splits: its text's checksum and the `SPLIT_SETTINGS`."""
    settings = checkpoint.content["datamodule_hyper_parameters"]
    return [checkpoint.content["gpt_lightning"]["text"]["sha256"], *map(settings.get, SPLIT_SETTINGS)]


@dataclass(frozen=True)
class TextEvaluation:
    """A checkpoint on a text.

    Attributes:
        checkpoint: Path of the checkpoint.
        text: Description of the text.
        tokenizer: Name of the checkpoint's tokenizer.
        sha256: Checksum of the text's bytes.
        context_length: T.
        stride: Tokens between the starts of windows.
        window_scores: The scores of each window.
        scores: Their sums.
        baselines: Losses in nats per token (uniform, unigram, bigram, trigram), and compressed sizes in bits per byte
            (gzip, xz, gzip_given_training, xz_given_training); None where the training text is not there.
        training_tokens: Number of training tokens, of which `counted_tokens` are counted; None
            likewise.
        overlap: Share of the tokens in runs of at least 50 tokens that the training text contains; None likewise.
        published: The losses that models of packaged configs reach on the same split.
        missing: Why the training text is not there.
    """

    checkpoint: str
    text: str
    tokenizer: str
    sha256: str
    context_length: int
    stride: int
    window_scores: WindowScores
    scores: TextScores
    baselines: Counted
    training_tokens: int | None
    overlap: float | None
    published: list[PublishedLoss]
    missing: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the row that `evaluate --json` prints."""
        counted = None if self.training_tokens is None else counted_tokens(self.training_tokens)
        return {
            "checkpoint": self.checkpoint,
            "text": self.text,
            "tokenizer": self.tokenizer,
            **asdict(self.scores),
            "context_length": self.context_length,
            "stride": self.stride,
            "baselines": {**self.baselines, "training_tokens": counted},
            "overlap": self.overlap,
            "published": {one.config: one.best_val_loss for one in self.published},
        }


def evaluate_texts(
    checkpoints: Sequence[LoadedCheckpoint],
    paths: Sequence[str | None],
    stride: int | None,
    device: str = "cpu",
    published: Sequence[PublishedLoss] = (),
) -> Iterator[TextEvaluation]:
    """Evaluate each checkpoint on each text, beside the baselines.

    Args:
        checkpoints: At least one.
        paths: Texts; None for a checkpoint's own validation split.
        stride: Tokens between the starts of windows, each token scored once; None for the windows of training.
        device: Device of the networks.
        published: Losses to compare with, where they are losses on the same split and `stride` is None.

    Raises:
        InputError: A text is missing, invalid or shorter than one window.
    """
    counted: dict[str, Counted] = {}  # equal ones are computed once
    for checkpoint in checkpoints:
        network = checkpoint.build().to(device)
        for path in paths:
            yield _evaluate(checkpoint, network, path, stride, published, counted)


def _evaluate(
    checkpoint: LoadedCheckpoint,
    network: GPT,
    path: str | None,
    stride: int | None,
    published: Sequence[PublishedLoss],
    counted: dict[str, Counted],
) -> TextEvaluation:
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    training_ids: NDArray[Any] | None
    if path is None:
        try:
            own = own_splits(checkpoint.content, checkpoint.name)
        except InputError as error:
            raise InputError(f"{error}; --text evaluates another text") from None
        name, part, training_ids, missing = own.name, own.val, own.train.array, None
    else:
        corpus = open_text(checkpoint.content, path, "--text")
        name, part = corpus.name, corpus.whole()
        training_ids, missing = find_training_tokens(checkpoint)
    T, settings = network.context_length, checkpoint.content["datamodule_hyper_parameters"]
    windows = Windows(part.array, T, stride or settings.get("stride") or T)
    windows.require_one(name, "use a longer text")
    window_scores = score_windows(network, windows, tokenizer, each_token_once=stride is not None)
    weights = windows.times_predicted(len(windows))  # (N,)
    if stride is not None:
        weights = np.minimum(weights, 1)
    sha256 = hashlib.sha256(spell(part.array, tokenizer)).hexdigest()
    key = repr((split_of(checkpoint), missing is None, sha256, network.vocab_size, T, windows.stride, stride is None))
    if key not in counted:
        ids = part.array[: len(weights)]
        counted[key] = _baselines(training_ids, ids, weights, tokenizer, network.vocab_size)
    uses_own = path is None and stride is None  # the split and the windows of training
    return TextEvaluation(
        checkpoint.name,
        name,
        checkpoint.tokenizer,
        sha256,
        T,
        windows.stride,
        window_scores,
        summarize(window_scores),
        counted[key],
        None if training_ids is None else len(training_ids),
        None if training_ids is None else _overlap(training_ids, part.array),
        [one for one in published if uses_own and one.is_comparable(checkpoint)],
        missing,
    )


def _baselines(
    training_ids: NDArray[Any] | None,
    ids: NDArray[Any],
    weights: NDArray[np.int64],
    tokenizer: Tokenizer,
    vocab_size: int,
) -> Counted:
    found: Counted = dict.fromkeys(BASELINE_MODELS) | {"uniform": math.log(vocab_size)}
    training = None
    if training_ids is not None:
        if len(training_ids) <= MOST_BYTES:  # a token has at least one byte
            training = spell(training_ids, tokenizer)
        counted = measure_baselines(training_ids, ids, weights, vocab_size)
        found |= {name: getattr(counted, name) for name in BASELINE_MODELS}
    return found | compressed_bits_per_byte(spell(ids[weights > 0], tokenizer), training)


def spell(token_ids: NDArray[Any], tokenizer: Tokenizer) -> bytes:
    """Return the UTF-8 bytes of token ids (N,), in memory of about their size."""
    token_bytes = functools.cache(tokenizer.token_bytes)
    text = io.BytesIO()
    for start in range(0, len(token_ids), SPELLED_AT_ONCE):
        text.write(b"".join(map(token_bytes, token_ids[start : start + SPELLED_AT_ONCE].tolist())))
    return text.getvalue()


def _overlap(training_ids: NDArray[Any], token_ids: NDArray[Any]) -> float:
    """Return the share of tokens in runs of at least 50 tokens that the training tokens contain."""
    return count_copied(CopyFinder(training_ids).copied_runs(token_ids, OVERLAP_TOKENS)) / len(token_ids)
