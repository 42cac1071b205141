"""Matplotlib figures without a display: loss curves, and bar charts of token probabilities."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_lightning.errors import InputError
from gpt_lightning.files import replace_files
from gpt_lightning.runs.records import RunRecord, read_losses

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("pdf", "png")
METADATA: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "png": {}}  # no dates, for reproducible files


@dataclass(frozen=True)
class Curve:
    """The losses of one run, one value per evaluation.

    Attributes:
        name: Label in the legend.
        epochs: Position of each evaluation, in (fractional) epochs.
        tokens: Tokens seen before each evaluation.
        train: Training loss in evaluation mode, in nats per token.
        val: Validation loss, in nats per token.
        baseline: Name and validation loss of the best baseline of the run's text; None if it is unknown.
        tokenizer: The setting data.tokenizer; None if it is unknown.
    """

    name: str
    epochs: list[float]
    tokens: list[int]
    train: list[float]
    val: list[float]
    baseline: tuple[str, float] | None = None
    tokenizer: str | None = None


def curve_of(record: RunRecord) -> Curve | None:
    """Return the losses of a run, without those before the first optimizer step; None if there are no others."""
    rows = [row for row in record.evaluations if row.step > 0 and row.epoch > 0]
    if not rows:
        return None
    return Curve(
        name=record.name,
        epochs=[row.epoch for row in rows],
        tokens=[row.tokens_seen for row in rows],
        train=[row.train_eval_loss for row in rows],
        val=[row.val_loss for row in rows],
        baseline=record.best_baseline,
        tokenizer=record.settings.get("data.tokenizer"),
    )


def read_curve(path: str | Path) -> Curve:
    """Read the losses of a run for `plot`.

    Args:
        path: A run folder, or a JSON-lines file in the format of metrics.jsonl.

    Raises:
        InputError: The file does not exist or has no evaluation after the first optimizer step, or a file is damaged.
    """
    path = Path(path)
    table = path / "metrics.jsonl" if path.is_dir() else path
    if not table.is_file():
        raise InputError(f"{table}: no such file")
    curve = curve_of(read_losses(path))
    if curve is None:
        raise InputError(f"{table}: has no evaluation after the first optimizer step")
    return curve


def loss_figure(curves: Sequence[Curve]) -> Figure:
    """Plot training and validation losses against epochs.

    A second x-axis at the top shows tokens seen, if all runs have the same number of tokens per epoch.

    Args:
        curves: The losses of one or more runs.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5, 3) if len(curves) == 1 else (7, 4.2), layout="tight")
    axes = figure.add_subplot()
    for number, curve in enumerate(curves):
        label = "" if len(curves) == 1 else f"{curve.name}: "
        train_colour, val_colour = ("C0", "C1") if len(curves) == 1 else (f"C{number}", f"C{number}")
        style: dict[str, Any] = {"marker": ".", "markersize": 4}
        axes.plot(curve.epochs, curve.train, color=train_colour, label=f"{label}Training loss", **style)
        axes.plot(curve.epochs, curve.val, "-.", color=val_colour, label=f"{label}Validation loss", **style)
    for name, loss in sorted({curve.baseline for curve in curves if curve.baseline is not None}):
        axes.axhline(loss, color="0.45", linewidth=0.8, label=f"{name.capitalize()} baseline")
    axes.set_xlabel("Epochs")
    axes.set_ylabel("Loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=max(curve.epochs[-1] for curve in curves) > 1))
    axes.legend(loc="upper right", fontsize="small" if len(curves) == 1 else "x-small")
    rates = [curve.tokens[-1] / curve.epochs[-1] for curve in curves]
    if max(rates) - min(rates) <= 0.01 * max(rates):
        left, right = axes.get_xlim()
        above = axes.twiny()
        above.set_xlim(left * rates[0], right * rates[0])
        above.set_xlabel("Tokens seen")
        above.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def bar_figure(names: Sequence[str], series: Mapping[str, Sequence[float]]) -> Figure:
    """Plot the probabilities of the same tokens under several settings as grouped bars.

    Args:
        names: Labels of the tokens.
        series: The probability of each token, by the label of the setting.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 0.6 * len(names)), 3), layout="tight")
    axes = figure.add_subplot()
    width = 0.8 / len(series)
    for number, (label, probabilities) in enumerate(series.items()):
        offset = (number - (len(series) - 1) / 2) * width
        axes.bar([place + offset for place in range(len(names))], probabilities, width, label=label)
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axes.set_ylabel("Probability")
    axes.legend(loc="upper right")
    return figure


def save_figure(figure: Figure, stem: str | Path) -> list[Path]:
    """Write STEM.pdf and STEM.png, both or none, and return their paths."""
    from matplotlib import rcParams

    Path(stem).parent.mkdir(parents=True, exist_ok=True)
    contents = {}
    rcParams["pdf.fonttype"] = 42  # TrueType: text in the PDF can be searched and copied
    for suffix in FORMATS:
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # tokens in any script; shown as a box
            figure.savefig(content, format=suffix, dpi=150, metadata=METADATA[suffix])
        contents[Path(f"{stem}.{suffix}")] = content.getvalue()
    replace_files(contents)
    return list(contents)
