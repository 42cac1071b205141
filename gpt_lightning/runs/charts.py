"""The curves of runs: losses with baselines and expected ranges, and metrics of the optimizer steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from gpt_lightning.runs.records import EvaluationRow, RunRecord
from gpt_lightning.runs.svg import COLOURS, FONT, Chart, Label

MOST_POINTS = 600  # of all runs' curves of one kind in a chart
MOST_MARKERS = 60
NARROW = 500  # pixels; narrower charts have shorter labels
TICKS = [1, 2, 2.5, 5, 10]  # distances of ticks, times a power of ten
LOSS_NAMES = ("train_eval_loss", "val_loss")


def format_count(value: float) -> str:
    """Format a number for an axis: 0.0003 as 3e-4, 0.5, 500, 20k, 1.5M, 1e30."""
    if 0 < abs(value) < 1e-2 or abs(value) >= 1e12:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit and (value >= 10_000 or value % unit == 0):
            return f"{value / unit:g}{letter}"
    return f"{value:,.0f}" if value == int(value) else f"{value:.6g}"


def by_tokens(records: Sequence[RunRecord]) -> bool:
    """Return whether runs are compared by tokens seen, because their steps have different numbers of tokens."""
    ends = [record.end for record in records]
    rates = [end.tokens_seen / end.step for end in ends if end is not None and end.step > 0]
    return len(rates) > 1 and max(rates) - min(rates) > 0.01 * max(rates)


def loss_chart(records: Sequence[RunRecord], labels: Sequence[str], width: int, height: int) -> Chart:
    """Draw the losses of runs against optimizer steps and tokens.

    Args:
        records: Runs; at least one has an evaluation.
        labels: Their names.
        width: Width in pixels.
        height: Height in pixels.
    """
    chart = Chart(width, height, (36, 136 if width > NARROW else 112, 40, 40))
    key = "tokens_seen" if by_tokens(records) else "step"
    if len(records) == 1:
        _draw_run(chart, records[0])
    else:
        for number, (record, label) in enumerate(zip(records, labels, strict=True)):
            if record.evaluations:
                _draw_one_of_many(chart, record, number, label, key, MOST_POINTS // len(records))
    _limit(chart, records)
    if len(records) == 1:
        _mark_turn(chart, records[0])
        _mark_expected(chart, records[0])
        _mark_best(chart, records[0])
    _draw_baselines(chart, records)
    _draw_axes(chart, records, key)
    return chart


def _draw_run(chart: Chart, record: RunRecord) -> None:
    """Draw the losses of a run: evaluated ones as thick lines, those of single batches as a thin one."""
    points = [(row.step, loss) for row, loss in record.metric("train_loss")]
    chart.line(*_columns(points), "train", MOST_POINTS, linewidth=0.75, alpha=0.55)
    words = ("training", "validation") if chart.width > NARROW else ("train", "val")
    for name, colour, word in zip(LOSS_NAMES, ("train", "val"), words, strict=True):
        points = [(row.step, getattr(row, name)) for row in record.evaluations]
        style: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(points) <= MOST_MARKERS else {}
        chart.line(*_columns(points), colour, MOST_POINTS, **style)
        chart.labels.append(Label(f"{word} {points[-1][1]:.3f}", points[-1][1], colour, is_bold=True))


def _draw_one_of_many(chart: Chart, record: RunRecord, number: int, label: str, key: str, most: int) -> None:
    """Draw the validation loss of a run as a thick line, and its training loss as a thin dashed one."""
    for name, width, dashes in zip(LOSS_NAMES, (1.25, 2.25), ((0, (2, 2)), "-"), strict=True):
        points = [(getattr(row, key), getattr(row, name)) for row in record.evaluations]
        style: dict[str, Any] = {"marker": "o", "markersize": 4} if len(points) == 1 else {}
        chart.line(*_columns(points), f"run-{number}", most, linewidth=width, linestyle=dashes, **style)
    text = shorten(label, 18 if chart.width > NARROW else 14)
    chart.labels.append(Label(text, record.evaluations[-1].val_loss, f"run-{number}", is_bold=True))


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def shorten(text: str, most: int) -> str:
    """Return a text with at most `most` characters; an ellipsis replaces its middle."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}\u2026{text[-half:]}"


def differing_tokenizers(records: Sequence[RunRecord]) -> list[str]:
    """Return the tokenizers of runs, sorted, if they differ, so that losses per token cannot be compared."""
    known = {str(record.settings["data.tokenizer"]) for record in records if record.settings.get("data.tokenizer")}
    return sorted(known) if len(known) > 1 else []


def differing_texts(records: Sequence[RunRecord]) -> list[str]:
    """Return the validation texts of runs, sorted, if they differ, so that losses cannot be compared."""
    known = {text for record in records if (text := record.validation_text) is not None}
    if len(known) > 1:
        return sorted(known)
    return ["as their baselines do"] if not differing_tokenizers(records) and _count_differently(records) else []


def _count_differently(records: Sequence[RunRecord]) -> bool:
    """Return whether counting as many tokens of texts that were split alike has other losses in some run."""
    losses: dict[tuple[Any, Any], float] = {}
    for record in records:
        counts = (record.baselines.get("training_tokens"), record.baselines.get("validation_tokens"))
        loss = record.baselines.get("unigram")
        if None in counts or loss is None or record.settings.get("data.val_text"):  # the training texts may differ
            continue
        if not math.isclose(losses.setdefault(counts, loss), loss, rel_tol=1e-6):
            return True
    return False


def shared_baselines(records: Sequence[RunRecord]) -> dict[str, float]:
    """Return the baselines of runs of one tokenizer and text if all that have any have the same ones."""
    known = []
    if differing_tokenizers(records) or differing_texts(records):
        return {}
    for record in records:
        known += [record.baseline_losses] if record.baseline_losses else []
    return known[0] if known and all(one == known[0] for one in known) else {}


def _limit(chart: Chart, records: Sequence[RunRecord]) -> None:
    """Set the limits of the y-axis: all evaluations, and the baselines and expected ranges near them."""
    losses = [getattr(row, name) for one in records for row in one.evaluations for name in LOSS_NAMES]
    low, high = min(losses), max(losses)
    room = 0.15 * (high - low) or 0.5
    others = [*shared_baselines(records).values()]
    if len(records) == 1:
        others += [limit for limits in records[0].expected_ranges.values() for limit in limits]
    near = [one for one in others if low - 2 * room <= one <= high + 2 * room]
    low, high = min([low, *near]), max([high, *near])
    bottom = max(0.0, low - room) if low > 0.6 * high else min(0.0, low)
    chart.axes.set_ylim(bottom, high + 0.04 * (high - bottom) + 1e-9)


def _mark_expected(chart: Chart, record: RunRecord) -> None:
    """Shade the expected ranges: of the untrained loss at the left, of the last training loss at the right."""
    parts = {"untrained_val_loss": (0.0, 0.025), "best_val_loss": (0.0, 1.0), "last_train_eval_loss": (0.97, 1.0)}
    for name, (low, high) in record.expected_ranges.items():
        colour = COLOURS["train" if "train_" in name else "val"]
        begin, end = parts[name]
        box = chart.axes.axhspan(low, high, begin, end, facecolor=colour, alpha=0.13, linewidth=0)
        box.set_zorder(0.5)
        for limit in (low, high):
            chart.axes.axhline(limit, begin, end, color=colour, linewidth=0.75, alpha=0.6)


def _mark_turn(chart: Chart, record: RunRecord) -> None:
    """Shade the steps after the turn of the validation loss."""
    turn = (record.summary.get("turn") or {}).get("step")
    last = record.evaluations[-1].step
    if turn is not None and turn < last:
        chart.axes.axvspan(turn, last, facecolor=COLOURS["turn"], alpha=0.08, linewidth=0, zorder=0.2)
        place = {"xytext": (5, -13), "textcoords": "offset points", "va": "baseline"}
        style: dict[str, Any] = {"fontsize": FONT, "color": COLOURS["muted"], **place}
        text = "memorizes" if record.summary.get("memorizing_steps") else "rises"
        chart.axes.annotate(text, (turn, 1), xycoords=("data", "axes fraction"), **style)


def _mark_best(chart: Chart, record: RunRecord) -> None:
    best = record.best
    if best is None or best.step == 0:
        return
    chart.axes.plot([best.step], [best.val_loss], "o", color=COLOURS["val"], markersize=8, fillstyle="none")
    low, high = chart.axes.get_ylim()
    is_below = best.val_loss - best.train_eval_loss > 0.15 * (high - low)  # there is room between the curves
    is_left = best.step > 0.6 * record.evaluations[-1].step
    style: dict[str, Any] = {"fontsize": FONT, "color": COLOURS["val"], "weight": "bold"}
    style |= {"ha": "right" if is_left else "left", "textcoords": "offset points"}
    style |= {"xytext": (-3 if is_left else 3, -24 if is_below else 11)}
    text = f"best {best.val_loss:.3f}" + (f", step {best.step:,}" if chart.width > NARROW else "")
    chart.axes.annotate(text, (best.step, best.val_loss), **style)


def _draw_baselines(chart: Chart, records: Sequence[RunRecord]) -> None:
    low, high = chart.axes.get_ylim()
    for name, value in shared_baselines(records).items():
        if low <= value <= high:
            style: dict[str, Any] = {"color": COLOURS["muted"], "linewidth": 1, "linestyle": (0, (1, 2.5))}
            chart.axes.axhline(value, zorder=0.8, **style)
            chart.labels.append(Label(f"{name} {value:.3f}", value, "muted"))


def _draw_axes(chart: Chart, records: Sequence[RunRecord], key: str) -> None:
    """Label the x-axis with steps, and with tokens at the top if all runs have equal steps."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes, is_wide = chart.axes, chart.width > NARROW
    last = max(getattr(row, key) for record in records for row in record.evaluations) or 1
    axes.set_xlim(-0.012 * last, 1.012 * last)
    locator = MaxNLocator(8 if is_wide else 4, integer=True, steps=TICKS)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    style: dict[str, Any] = {"fontsize": FONT, "color": COLOURS["muted"]}
    axes.set_xlabel("optimizer steps" if key == "step" else "tokens seen", labelpad=3, **style)
    axes.annotate("loss", (0, 1), xycoords="axes fraction", xytext=(-30, 8), textcoords="offset points", **style)
    if key != "step":
        return
    longest = max(records, key=lambda record: record.evaluations[-1].step if record.evaluations else -1)
    rows = longest.evaluations
    if rows[-1].tokens_seen <= rows[0].tokens_seen:
        return
    above = axes.twiny()
    chart.style(above)
    above.spines["bottom"].set_visible(False)
    above.set_xlim(axes.get_xlim())
    ticks = MaxNLocator(6 if is_wide else 3, integer=True, steps=TICKS).tick_values(0, rows[-1].tokens_seen)
    places = _steps_at([tick for tick in ticks if tick > 0], rows)
    above.set_xticks(list(places.values()), [format_count(tick) for tick in places])
    above.annotate("tokens", (0, 1), xycoords="axes fraction", xytext=(6, 8), textcoords="offset points", **style)


def _steps_at(tokens: Sequence[float], rows: Sequence[EvaluationRow]) -> dict[float, float]:
    """Interpolate the steps at which numbers of tokens were seen; numbers outside of the rows are left out."""
    steps = {}
    for count in tokens:
        for before, after in pairwise(rows):
            if before.tokens_seen <= count <= after.tokens_seen and before.tokens_seen < after.tokens_seen:
                part = (count - before.tokens_seen) / (after.tokens_seen - before.tokens_seen)
                steps[count] = before.step + part * (after.step - before.step)
                break
    return steps


def metric_chart(records: Sequence[RunRecord], metric: str, limit: float | None = None) -> Chart | None:
    """Draw a metric of the optimizer steps of runs; None if no run has it.

    Args:
        records: Runs.
        metric: Name of the metric in metrics.jsonl.
        limit: Value to draw a thin line at.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    key = "tokens_seen" if by_tokens(records) else "step"
    curves = [[(getattr(row, key), value) for row, value in record.metric(metric)] for record in records]
    values = [y for curve in curves for _, y in curve]
    if not values:
        return None
    chart = Chart(330, 190, (48, 8, 24, 12))
    for number, curve in enumerate(curves):
        colour, most = "ink" if len(records) == 1 else f"run-{number}", MOST_POINTS // 2 // len(records)
        style: dict[str, Any] = {"marker": "o", "markersize": 4} if len(curve) == 1 else {}
        chart.line(*_columns(curve), colour, most, linewidth=1.25, **style)
    if limit is not None:
        chart.axes.axhline(limit, color=COLOURS["muted"], linewidth=1, linestyle=(0, (1, 2.5)))
    middle = statistics.median(values)
    if min(values) > 0 and max(values) > 20 * middle:
        chart.axes.set_yscale("log")
    else:
        chart.axes.set_ylim(0, 1.08 * max([*values, *([limit] if limit is not None else [])]) or 1)
        chart.axes.yaxis.set_major_locator(MaxNLocator(4, steps=TICKS))
        chart.axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    chart.axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=TICKS))
    chart.axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    return chart
