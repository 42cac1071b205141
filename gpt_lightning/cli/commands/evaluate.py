"""Evaluate checkpoints on texts, beside the losses of models that only count.

    python -m gpt_lightning evaluate --ckpt_path CKPT [--ckpt_path CKPT ...] [--text FILE ...]

Without --text, a checkpoint is evaluated on its own validation split. Brackets hold 95 % intervals. Weights and
computation are in float32 on every device.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby

from gpt_lightning.checkpoints.description import plain
from gpt_lightning.checkpoints.loading import LoadedCheckpoint, open_checkpoint
from gpt_lightning.cli.arguments import Parser, check_distinct
from gpt_lightning.cli.config_files import packaged_configs, read_config
from gpt_lightning.cli.options import TRAINER_HELP
from gpt_lightning.console import table, visible, warn
from gpt_lightning.evaluation.baselines import counted_tokens
from gpt_lightning.evaluation.intervals import FEWEST
from gpt_lightning.evaluation.perplexity import Interval, difference
from gpt_lightning.evaluation.text_evaluation import OVERLAP_TOKENS, PublishedLoss, TextEvaluation, evaluate_texts
from gpt_lightning.models.loss import perplexity
from gpt_lightning.runs.folder import resolve_latest
from gpt_lightning.runs.records import BASELINE_MODELS
from gpt_lightning.training.hardware import choose_device
from gpt_lightning.validation import require_integer

HEADER = ["", "tokens", "loss", "perplexity", "bits per byte", "bits per character", "accuracy"]


def run(arguments: list[str]) -> None:
    """Run `evaluate` with these arguments."""
    parser = Parser("evaluate", __doc__)
    parser.add_argument("--ckpt_path", required=True, action="append", metavar="CKPT", help="may be repeated")
    parser.add_argument("--text", action="append", metavar="FILE", help="file, folder or glob; may be repeated")
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="tokens between windows, each token scored once; default: as in training",
    )
    parser.add_argument("--trainer.accelerator", default="auto", metavar="NAME", help=TRAINER_HELP["accelerator"])
    parser.add_argument("--json", action="store_true", help="print one JSON object per checkpoint and text")
    options = parser.parse_args(arguments)
    check_distinct("--ckpt_path", options.ckpt_path)
    check_distinct("--text", options.text)
    device = choose_device(getattr(options, "trainer.accelerator"))
    checkpoints = [open_checkpoint(resolve_latest(path)) for path in options.ckpt_path]
    check_stride(options.stride, checkpoints)
    by_text: dict[str, list[TextEvaluation]] = {}  # by checksum
    for result in evaluate_texts(checkpoints, options.text or [None], options.stride, device, published_losses()):
        by_text.setdefault(result.sha256, []).append(result)
        if options.json:
            print(json.dumps(plain(result.to_dict(), result.checkpoint)), flush=True)
        if result.missing:
            warn(f"no baselines and no overlap for {result.checkpoint}: {result.missing}")
    if not options.json:
        print(visible("\n\n".join(map(describe, by_text.values()))))


def check_stride(stride: int | None, checkpoints: list[LoadedCheckpoint]) -> None:
    """Raise `InputError` if the stride is out of range for one of the checkpoints."""
    if stride is None:
        return
    for checkpoint in checkpoints:
        require_integer("--stride", stride, 1, checkpoint.config.context_length)


def published_losses() -> list[PublishedLoss]:
    """Return the best validation losses that the models of the packaged configs reach."""
    losses = []
    for name, path in packaged_configs().items():
        config, _ = read_config(str(path))
        expected = config.get("expected") or {}
        if "best_val_loss" in expected:
            known = expected["sha256"], config["data"], expected["parameters"], expected["best_val_loss"]
            losses.append(PublishedLoss(name, *known))
    return losses


def describe(results: list[TextEvaluation]) -> str:
    """Return the table of some checkpoints on one text.

    Args:
        results: At least one checkpoint on the same text.
    """
    first = results[0]
    windows = {
        f"{one.scores.windows:,} windows of {one.context_length} tokens, stride {one.stride}": one for one in results
    }
    lines = [f"{first.text}: {first.scores.bytes:,} bytes in {'; '.join(windows)}"]
    rows: list[list[str]] = []
    for _, group in groupby(results, key=lambda one: one.baselines):
        alike = list(group)
        rows += [model_row(one) for one in alike]
        rows += [*published_rows(alike[-1]), *baseline_rows(alike[-1])]
    lines.append(table("<>>>>>>", HEADER, rows))
    fewest = min(one.scores.windows for one in results)
    if fewest < FEWEST:
        lines.append(
            f"  95 % intervals need at least {FEWEST} windows; there {'is' if fewest == 1 else 'are'} {fewest}."
        )
    if len({one.tokenizer for one in results}) > 1:
        lines.append("  The tokenizers differ: compare bits per byte, not losses per token.")
    lines += [compare(first, other) for other in results[1:] if is_paired(first, other)]
    lines += [
        f"  Unigram, bigram and trigram count the first {counted:,} of {tokens:,} training tokens."
        for tokens in dict.fromkeys(one.training_tokens for one in results)
        if tokens is not None and (counted := counted_tokens(tokens)) < tokens
    ]
    for one in results:
        if one.overlap is not None:
            lines.append(
                f"  {one.checkpoint}: {one.overlap:.1%} of the tokens are in runs of {OVERLAP_TOKENS} or more that the "
                "training text contains."
            )
    return "\n".join(lines)


def model_row(result: TextEvaluation) -> list[str]:
    """Return the row of a checkpoint."""
    scores = result.scores
    return [
        result.checkpoint,
        f"{scores.tokens:,}",
        show(scores.loss, scores.loss_interval, ".3f"),
        show(scores.perplexity, scores.perplexity_interval, ",.1f"),
        show(scores.bits_per_byte, scores.bits_per_byte_interval, ".3f"),
        show(scores.bits_per_character, scores.bits_per_character_interval, ".3f"),
        show(scores.accuracy, scores.accuracy_interval, ".1%"),
    ]


def show(value: float, interval: Interval | None, form: str) -> str:
    """Format a value with its interval."""
    return f"{value:{form}}" + ("" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]")


def published_rows(result: TextEvaluation) -> list[list[str]]:
    """Return the rows of the best losses that the models of packaged configs reach on the same split."""
    rows = []
    for one in result.published:
        losses = one.best_val_loss
        bits = bits_of(result, losses)
        columns = (losses, ".3g"), (map(perplexity, losses), ",.0f"), *((values, ".2f") for values in bits)
        texts = [" to ".join(f"{value:{form}}" for value in values) for values, form in columns]
        rows.append([f"  best of {one.config}.yaml ({one.parameters:,} parameters)", "", *texts, ""])
    return rows


def bits_of(result: TextEvaluation, losses: Sequence[float]) -> tuple[list[float], list[float]]:
    """Convert losses in nats per token of a text to bits per byte and to bits per character."""
    scores = result.scores
    per_byte, per_character = (bits / scores.loss for bits in (scores.bits_per_byte, scores.bits_per_character))
    return [per_byte * loss for loss in losses], [per_character * loss for loss in losses]


def baseline_rows(result: TextEvaluation) -> list[list[str]]:
    """Return the rows of the baselines, those that count tokens first, each kind from the best to the worst."""
    rows = []
    counted = [(loss, name) for name in BASELINE_MODELS if (loss := result.baselines[name]) is not None]
    for loss, name in sorted(counted):
        bits = [f"{one:.3f}" for (one,) in bits_of(result, [loss])]
        rows.append([f"  {name}", "", f"{loss:.3f}", f"{perplexity(loss):,.1f}", *bits, ""])
    sizes = [
        (size, name) for name, size in result.baselines.items() if name not in BASELINE_MODELS and size is not None
    ]
    rows += [[f"  {name.replace('_', ' ')}", "", "", "", f"{size:.3f}", "", ""] for size, name in sorted(sizes)]
    return rows


def is_paired(one: TextEvaluation, other: TextEvaluation) -> bool:
    """Return whether two checkpoints were evaluated on the same windows of a text."""
    return (one.tokenizer, one.context_length, one.stride) == (other.tokenizer, other.context_length, other.stride)


def compare(first: TextEvaluation, other: TextEvaluation) -> str:
    """Describe the difference of two checkpoints on the same windows."""
    mean, interval = difference(other.window_scores, first.window_scores)
    return f"  {other.checkpoint} - {first.checkpoint}: {show(mean, interval, '+.4f')} bits per byte."
