"""Figures drawn from recorded numbers, without a screen: loss curves and bars of probabilities."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gpt_lightning.errors import InputError
from gpt_lightning.files import read_rows, replace_bytes

FORMATS = ("pdf", "png")
METADATA: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "png": {}}  # equal figures, equal files


@dataclass(frozen=True)
class Curve:
    """The losses of one run at its evaluations.

    Attributes:
        name: In the legend.
        epochs: How far the run had come, as fractions of epochs.
        tokens: Tokens seen by then.
        train: Training loss in evaluation mode, in nats per token.
        val: Validation loss.
    """

    name: str
    epochs: list[float]
    tokens: list[int]
    train: list[float]
    val: list[float]


def read_curve(path: str | Path) -> Curve:
    """The evaluations of a run after its first update.

    Args:
        path: A run folder, or a JSON-lines file of rows like those of its metrics.jsonl.

    Raises:
        InputError: There is no such run, or it has not been evaluated yet.
    """
    path = Path(path)
    table = path / "metrics.jsonl" if path.is_dir() else path
    if not table.is_file():
        raise InputError(f"{table}: no such file")
    names = ("epoch", "tokens_seen", "train_eval_loss", "val_loss")
    rows = [row for row in read_rows(table) if row["step"] > 0 and all(_is_finite(row.get(name)) for name in names)]
    rows = [row for row in rows if row["epoch"] > 0]
    if not rows:
        raise InputError(f"{table}: holds no evaluation after the first update")
    name = f"{path.absolute().parent.name}/{path.stem}"
    epochs, tokens, train, val = ([row[name] for row in rows] for name in names)
    return Curve(name, epochs, tokens, train, val)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e300  # neither infinite nor more than a float holds


def loss_figure(curves: Sequence[Curve]) -> Figure:
    """Training and validation loss against epochs below and, where all runs agree, tokens seen above.

    Every point is where its evaluation was: the first after some updates, not at zero.
    """
    figure = Figure(figsize=(5, 3) if len(curves) == 1 else (7, 4.2), layout="tight")
    axes = figure.add_subplot()
    for number, curve in enumerate(curves):
        label = "" if len(curves) == 1 else f"{curve.name}: "
        train_colour, val_colour = ("C0", "C1") if len(curves) == 1 else (f"C{number}", f"C{number}")
        style: dict[str, Any] = {"marker": ".", "markersize": 4}
        axes.plot(curve.epochs, curve.train, color=train_colour, label=f"{label}Training loss", **style)
        axes.plot(curve.epochs, curve.val, "-.", color=val_colour, label=f"{label}Validation loss", **style)
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


def bar_figure(names: Sequence[str], series: Mapping[str, Sequence[float]], title: str = "") -> Figure:
    """Probabilities of the same tokens under several settings, side by side.

    Args:
        names: Of the tokens.
        series: Label -> probability of each token.
        title: Above the figure.
    """
    figure = Figure(figsize=(max(5.0, 0.6 * len(names)), 3), layout="tight")
    axes = figure.add_subplot()
    width = 0.8 / len(series)
    for number, (label, probabilities) in enumerate(series.items()):
        offset = (number - (len(series) - 1) / 2) * width
        axes.bar([place + offset for place in range(len(names))], probabilities, width, label=label)
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axes.set_ylabel("Probability")
    axes.set_title(title)
    axes.legend(loc="upper right")
    return figure


def save_figure(figure: Figure, stem: str | Path) -> list[Path]:
    """Writes STEM.pdf and STEM.png, each whole or not at all; returns their paths."""
    written = []
    rcParams["pdf.fonttype"] = 42  # text that can be searched and copied
    for suffix in FORMATS:
        path = Path(f"{stem}.{suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a token, shown as a box
            figure.savefig(content, format=suffix, dpi=150, metadata=METADATA[suffix])
        replace_bytes(path, content.getvalue())
        written.append(path)
    return written
