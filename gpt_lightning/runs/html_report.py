"""The report of runs: one HTML page without scripts or references to other files, from the files of run folders."""

from __future__ import annotations

import functools
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gpt_lightning.console import PROGRAM, format_bytes, quote, visible
from gpt_lightning.files import load_template, replace_bytes
from gpt_lightning.runs.charts import (
    by_tokens,
    differing_texts,
    differing_tokenizers,
    loss_chart,
    metric_chart,
    shared_baselines,
)
from gpt_lightning.runs.folder import BEST, LAST, PREVIOUS
from gpt_lightning.runs.records import EXPECTED_LOSSES, EvaluationRow, RunRecord
from gpt_lightning.runs.sample_text import choose_samples, describe_sample
from gpt_lightning.runs.shapes import is_finite

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = Path(__file__).with_name("report.html")
MOST_ROWS = 120  # in the tables of evaluations of all runs
MOST_SETTINGS = 500
SAMPLE_BYTES = 150_000  # of HTML, for the samples of all runs
MOST_VALUE = 300  # characters of a setting
FACTS = ("text", "split", "windows", "batches", "model")  # of environment.json
METRICS = {
    "learning_rate": "Learning rate",
    "gradient_norm": "Gradient norm",
    "tokens_per_second": "Tokens per second",
}


def write_report(records: Sequence[RunRecord], path: Path) -> None:
    """Write the report of runs atomically.

    Args:
        records: One or more runs.
        path: The file.
    """
    replace_bytes(path, render_report(records).encode("utf-8"))


def render_report(records: Sequence[RunRecord]) -> str:
    """Return the report of runs as an HTML page: a function of their files, without dates or random ids.

    Args:
        records: One or more runs.
    """
    labels = [visible(one) for one in names_of(records)]
    page = {
        "program": PROGRAM,
        "title": labels[0] if len(records) == 1 else f"{len(records)} runs",
        "runs": [describe_run(i, len(records), *one) for i, one in enumerate(zip(records, labels, strict=True))],
        "losses": draw_losses(records, labels),
        "tokenizers": differing_tokenizers(records),
        "texts": differing_texts(records),
        "has_baselines": bool(shared_baselines(records)),
        "metrics": draw_metrics(records),
        "has_copies": any(row.get("copied") for record in records for row in record.samples),
        "differing": compare_settings(records),
    }
    return page_template().render(page)


@functools.cache
def page_template() -> Template:
    """Return the page's template."""
    return load_template(TEMPLATE, visible=visible)


def names_of(records: Sequence[RunRecord]) -> list[str]:
    """Return a name for each run: its folder's last two names, or its path if these are not unique."""
    names = [record.name for record in records]
    return names if len(set(names)) == len(names) else [record.display_path for record in records]


def describe_run(number: int, count: int, record: RunRecord, label: str) -> dict[str, Any]:
    """Return what the page says about a run in words.

    Args:
        number: Position of the run in the page.
        count: Number of runs in the page, which share its bytes.
        record: The run.
        label: Its name.
    """
    samples = choose_samples(record.samples, SAMPLE_BYTES // count)
    last_step = max((row["step"] for row in record.samples), default=0)
    described = [describe_sample(row, f"run-{number}-copy-{i}") for i, row in enumerate(samples)]
    return {
        "label": label,
        "path": record.display_path,
        "subtitle": describe_size(record),
        "verdict": [f"{line[:1].upper()}{line[1:]}" for line in describe_verdict(record)],
        "advice": None if record.divergence else record.summary.get("advice"),
        "end": None if record.summary or record.divergence else describe_end(record),
        "tiles": describe_results(record),
        "copied": record.copied,
        "best": record.best,
        "last": record.last,
        "tokens": record.last.tokens_seen if record.last else None,
        "minutes": minutes_of(record),
        "evaluations": choose_rows(record, MOST_ROWS // count),
        "evaluation_count": len(record.evaluations),
        "expected": describe_expected(record),
        "samples": described,
        "sample_count": len(record.samples),
        "last_samples": [one for one in described if one["step"] == last_step],
        "changed": changed_settings(record),
        "has_defaults": bool(record.environment.get("defaults")),
        "settings": [(name, show_value(value)) for name, value in list(record.settings.items())[:MOST_SETTINGS]],
        "text": [(name, record.environment[name]) for name in FACTS if record.environment.get(name)],
        "sessions": [describe_session(one) for one in record.environment.get("sessions") or []],
        "commands": commands_of(record),
    }


# ---- results


def describe_verdict(record: RunRecord) -> list[str]:
    """Return how a run diverged and what its losses say, or else the verdict in its summary."""
    if record.divergence is not None:
        return [*describe_divergence(record.divergence), *derive_verdict(record)]
    return record.summary.get("verdict") or derive_verdict(record)


def describe_divergence(error: str) -> list[str]:
    """Return sentences for the error of a diverged run: when and why, then what follows from it."""
    place = re.search(r" (?:at|after) step [\d,]+", error)
    when = place[0] if place else ""
    why, *rest = error.replace(when, "", 1).split("; ", 1)
    return [f"The run diverged{when}: {why}.", *(f"{one}." for one in rest)]


def derive_verdict(record: RunRecord) -> list[str]:
    """Return what the losses say by themselves, for a run without summary.json."""
    if record.best is None or record.last is None:
        return ["The run has no evaluation yet."]
    best, last = record.best, record.last
    if last.step == 0:
        return [f"Before the first optimizer step, the validation loss is {last.val_loss:.3f} nats per token."]
    return [
        f"The best validation loss is {best.val_loss:.3f} nats per token, at step {best.step:,}.",
        f"The last evaluation, at step {last.step:,}: training loss {last.train_eval_loss:.3f}, "
        f"validation loss {last.val_loss:.3f}.",
    ]


def describe_end(record: RunRecord) -> str:
    """Return what a run folder without summary.json says about the end of the run."""
    sessions = record.environment.get("sessions")
    if record.outdated is not None:
        last = "has no evaluation" if record.last is None else f"ends with that of step {record.last.step:,}"
        return (
            f"summary.json is about the evaluations up to step {record.outdated:,}, but metrics.jsonl {last}: "
            "its verdict is left out."
        )
    if not sessions:
        return "There is no summary.json: the run has not finished, or an older version made it."
    step, error = (sessions[-1].get(name) for name in ("to_step", "error"))
    if step is None:
        return "The run has not finished: it is under way, or its process was killed."
    if error:
        return f"The run has not finished: its last process ended after step {step:,} ({error})."
    return f"There is no summary.json, which has the verdict; the last process ended after step {step:,}."


def describe_size(record: RunRecord) -> str:
    """Return the length of a run in epochs, steps and tokens."""
    end = record.end
    if end is None:
        return ""
    amounts = {"epoch": end.epoch, "optimizer step": end.step, "token": end.tokens_seen, "minute": minutes_of(record)}
    return ", ".join(format_amount(value, noun) for noun, value in amounts.items() if value is not None)


def format_amount(value: float, noun: str) -> str:
    """Format an amount with at most two digits after the point, and its noun: 1 step, 0.06 epochs."""
    if 0 < value < 0.005:
        return f"less than 0.01 {noun}s"
    number = f"{value:,.2f}".rstrip("0").removesuffix(".")
    return f"{number} {noun}" if number == "1" else f"{number} {noun}s"


def minutes_of(record: RunRecord) -> float | None:
    """Return the duration of a run's processes together; None if that of one is not known."""
    measured = [one.get("minutes") for one in record.environment.get("sessions") or []]
    known = [minutes for minutes in measured if minutes is not None]
    return sum(known) if known and len(known) == len(measured) else None


def describe_results(record: RunRecord) -> list[tuple[str, str, str]]:
    """Return the main numbers of a run: what, the number, and more about it."""
    best, last = record.best, record.last
    tiles = []
    if best is not None and last is not None:
        perplexity = f"perplexity {format_number(math.exp(min(best.val_loss, 700)))}"
        tiles.append(("best validation loss", f"{best.val_loss:.3f}", f"step {best.step:,}, {perplexity}"))
        tiles.append(("last validation loss", f"{last.val_loss:.3f}", f"step {last.step:,}"))
        tiles.append(("last training loss", f"{last.train_eval_loss:.3f}", f"step {last.step:,}"))
        if record.best_baseline is not None:
            name, counted = record.best_baseline
            difference = best.val_loss - counted
            side = "above" if difference > 0 else "below"
            tiles.append(
                (
                    f"by counting: {name}",
                    f"{counted:.3f}",
                    f"the best validation loss is {abs(difference):.3f} {side} it",
                )
            )
    if (share := record.copied) is not None:
        tiles.append(("copied", f"{100 * share:.0f} %", "of the tokens of the last samples"))
    return tiles


def describe_expected(record: RunRecord) -> list[dict[str, Any]]:
    """Return the expected ranges of a run with the values that it reached."""
    rows = []
    for name, (low, high) in record.expected_ranges.items():
        value = ((record.summary.get("expected") or {}).get(name) or {}).get("value")
        is_inside = None if value is None else low <= value <= high
        rows.append({"name": EXPECTED_LOSSES[name], "low": low, "high": high, "value": value, "is_inside": is_inside})
    return rows


def choose_rows(record: RunRecord, most: int) -> list[EvaluationRow]:
    """Return evaluations at equal distances, at most a number of them, and the best and the last one."""
    rows = record.evaluations
    kept = {len(rows) * i // most for i in range(most)} if len(rows) > most else set(range(len(rows)))
    ends = (record.best, record.last)
    return [row for i, row in enumerate(rows) if i in kept or any(row is one for one in ends)]


# ---- charts


def draw_losses(records: Sequence[RunRecord], labels: Sequence[str]) -> dict[str, Any] | None:
    """Return the chart of the losses, wide and narrow, or None without an evaluation."""
    if not any(record.evaluations for record in records):
        return None
    title = "Training and validation loss" if len(records) == 1 else "Validation and training losses of the runs"
    words = []
    for record, label in zip(records, labels, strict=True):
        if (best := record.best) is not None and (last := record.last) is not None:
            words.append(
                f"{label}: best validation loss {best.val_loss:.3f} at step {best.step:,}; at step "
                f"{last.step:,}: training {last.train_eval_loss:.3f}, validation {last.val_loss:.3f}."
            )
    sizes = {"wide": (1000, 420), "narrow": (360, 340)}
    charts = {name: loss_chart(records, labels, *size) for name, size in sizes.items()}
    return {name: chart.svg(f"loss-{name}", title, " ".join(words)) for name, chart in charts.items()}


def draw_metrics(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Return the charts of learning rate, gradient norm and throughput that the runs have, and their x-axis."""
    charts = []
    for metric, title in METRICS.items():
        limit = shared_clipping(records) if metric == "gradient_norm" else None
        chart = metric_chart(records, metric, limit)
        if chart is None:
            continue
        notes = [] if limit is None else [f"clipped at {limit:g} (dotted)"]
        if len(records) == 1:
            values = [value for _, value in records[0].metric(metric)]
            notes = [f"median {format_number(statistics.median(values))}", f"most {format_number(max(values))}", *notes]
        name, note = metric.replace("_", "-"), ", ".join(notes)
        charts.append({"title": title, "note": note, "svg": chart.svg(name, title, f"{title} of each step. {note}")})
    return {"charts": charts, "x": "tokens seen" if by_tokens(records) else "optimizer steps"}


def shared_clipping(records: Sequence[RunRecord]) -> float | None:
    """Return the norm at which all runs clip their gradients, or None; clipping by value has none."""
    names = ("trainer.gradient_clip_val", "trainer.gradient_clip_algorithm")
    (limit, algorithm), *others = [tuple(map(record.settings.get, names)) for record in records]
    is_norm = is_finite(limit) and limit > 0 and algorithm in (None, "norm")
    return limit if is_norm and all(other == (limit, algorithm) for other in others) else None


def format_number(value: float) -> str:
    """Format a number with four digits, or all of its digits before the point if these are at most nine."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


# ---- settings, machine, commands


def show_value(value: Any) -> str:
    """Return the value of a setting as YAML on one line, shortened."""
    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False)
    except yaml.YAMLError:
        text = str(value)
    text = text.removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= MOST_VALUE else f"{text[:MOST_VALUE]}\u2026"


def changed_settings(record: RunRecord) -> list[tuple[str, str, str]]:
    """Return the name, value and default of each setting that is not at its default, without expected ranges."""
    defaults = record.environment.get("defaults") or {}
    rows = [
        (name, show_value(value), show_value(defaults[name]))
        for name, value in settings_of(record)
        if name in defaults and value != defaults[name]
    ]
    return rows[:MOST_SETTINGS]


def settings_of(record: RunRecord) -> list[tuple[str, Any]]:
    """Return the settings that a run follows: all but the ranges that it expects."""
    return [(name, value) for name, value in record.settings.items() if not name.startswith("expected.")]


def compare_settings(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Return the settings that differ between runs, with the value in each run."""
    names = dict.fromkeys(name for record in records for name, _ in settings_of(record))
    rows = []
    for name in names:
        values = [show_value(record.settings[name]) if name in record.settings else "" for record in records]
        if len(set(values)) > 1:
            rows.append((name, values))
    return rows[:MOST_SETTINGS]


def describe_session(session: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what is known about a process that trained the run: device, time, memory, versions."""
    facts: list[tuple[str, str]] = []
    begin, end, minutes = (session.get(name) for name in ("from_step", "to_step", "minutes"))
    if session.get("started"):
        facts.append(("started", session["started"]))
    if begin is not None:
        facts.append(("steps", f"{begin:,} to {end:,}" if end is not None else f"from {begin:,}"))
    if session.get("error"):
        facts.append(("end", session["error"]))
    unknown = "not recorded: the process was killed, or is running"
    facts.append(("time", unknown if minutes is None else f"{minutes:.2f} minutes"))
    facts += [(name, session[name]) for name in ("device", "processor", "platform") if session.get(name)]
    if session.get("memory_bytes"):
        facts.append(("memory", format_bytes(int(session["memory_bytes"]))))
    if session.get("peak_memory_bytes"):
        facts.append(("peak memory", format_bytes(int(session["peak_memory_bytes"]))))
    versions = [f"{name} {version}" for name, version in (session.get("versions") or {}).items()]
    return [*facts, ("versions", ", ".join(versions))] if versions else facts


def commands_of(record: RunRecord) -> list[tuple[str, str]]:
    """Return the commands for what can be done with a run."""
    folder = record.display_path
    prompts = record.settings.get("prompt")
    prompt = prompts[0] if isinstance(prompts, list) and prompts and isinstance(prompts[0], str) else "Every effort"
    best = f"{folder}/checkpoints/{BEST}"
    commands = []
    if (record.path / "checkpoints" / BEST).exists():
        commands += [
            ("Sample", ["predict", "--ckpt_path", best, "--prompt", prompt, "--sampling.temperature", "0.8"]),
            ("See the candidates for the next token", ["inspect", "--ckpt_path", best, "--prompt", prompt]),
            ("Evaluate", ["validate", "--ckpt_path", best]),
        ]
    if record.config is not None:
        config = ["fit", "--config", f"{folder}/{record.config.name}"]
        if any((record.path / "checkpoints" / name).exists() for name in (LAST, PREVIOUS)):
            resume = [*config, "--run_dir", folder, "--resume"]
            commands.append(("Resume; a finished run needs a higher --trainer.max_epochs", resume))
        commands.append(("Train again with the same settings", config))
    commands.append(("Make this page again", ["report", folder]))
    return [(title, f"python -m {PROGRAM} {' '.join(map(quote, command))}") for title, command in commands]
