"""The report shows what the files of a run say, as text, at the right places, in one page that loads nothing."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import BASELINES, TEXT, Element, copied, metrics, read_page, write_run
from PIL import Image

from gpt_lightning.runs.charts import by_tokens, format_count, loss_chart, metric_chart
from gpt_lightning.runs.folder import find_run
from gpt_lightning.runs.html_report import format_amount, render_report
from gpt_lightning.runs.records import read_run
from gpt_lightning.runs.sample_text import MOST_CHARACTERS, choose_samples, describe_sample
from gpt_lightning.runs.svg import spread, thin

HOSTILE = (
    "</q><script>alert('1')</script> \"&quot;' \x1b[31mred\x00 "
    "\u202egnp.exe \u0633\u0644\u0627\u0645 \U0001f600 \x9b \r"
)
NOTHING = "\u2013"  # in a table


def report(*folders: Path) -> Element:
    return read_page(render_report([read_run(folder) for folder in folders]))


def cells(table: Element) -> list[list[str]]:
    return [[cell.words for cell in row.children if isinstance(cell, Element)] for row in table.all("tr")]


def section(page: Element, name: str) -> Element:
    return page.one("section", id=name)


def test_the_verdict_comes_first_and_then_the_advice_and_the_main_numbers(tmp_path: Path) -> None:
    page = report(write_run(tmp_path / "runs" / "tiny" / "3"))

    first = page.all("section")[0]
    assert first.attributes["id"] == "verdict"
    assert [one.words for one in first.all("p")] == [
        "It memorized its text.",
        "The best step is 6.",
        "Next: Train on more text.",
    ]
    tiles = [[part.words for part in tile.all() if part.tag in ("dt", "dd")] for tile in first.one("dl").all("div")]
    assert tiles == [
        ["best validation loss", "4.200", "step 6, perplexity 66.69"],  # exp(4.2) = 66.686
        ["last validation loss", "5.700", "step 12"],
        ["last training loss", "1.125", "step 12"],
        ["by counting: trigram", "2.237", "the best validation loss is 1.963 above it"],
        ["copied", "48 %", "of the tokens of the last samples"],
    ]
    assert page.one("h1").words == "tiny/3"
    assert page.one("p", class_="subtitle").words == "2 epochs, 12 optimizer steps, 1,200 tokens, 1.25 minutes"
    order = [one.attributes["id"] for one in page.all("section")]
    assert order == ["verdict", "losses", "steps", "samples", "settings", "machine", "commands"]


def test_the_numbers_of_every_evaluation_are_in_a_folded_table(tmp_path: Path) -> None:
    losses = section(report(write_run(tmp_path / "run")), "losses")

    header, *rows = cells(losses.all("details")[0].one("table"))
    assert header == ["step", "epoch", "tokens seen", "training loss", "validation loss"]
    assert rows == [
        ["0", "0.00", "0", "5.625", "5.700"],
        ["3", "0.50", "300", "4.500", "4.950"],
        ["6", "1.00", "600", "3.375", "4.200"],
        ["9", "1.50", "900", "2.250", "4.950"],
        ["12", "2.00", "1,200", "1.125", "5.700"],
    ]
    ranges = losses.one("div", class_="scroll ranges")
    assert cells(ranges) == [["loss", "expected", "reached", ""], ["best Val loss", "4 to 4.5", "4.200", "✓ inside"]]


def test_the_curves_have_the_values_of_the_files(tmp_path: Path) -> None:
    record = read_run(write_run(tmp_path / "run"))
    chart = loss_chart([record], ["run"], 1000, 420)

    lines = chart.axes.get_lines()
    curves = [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]
    assert ([0, 3, 6, 9, 12], [5.7, 4.95, 4.2, 4.95, 5.7]) in curves
    assert ([0, 3, 6, 9, 12], [5.625, 4.5, 3.375, 2.25, 1.125]) in curves
    assert (list(range(1, 13)), [row["train_loss"] for row in metrics() if "train_loss" in row]) in curves
    for name in ("uniform", "unigram", "bigram", "trigram"):
        assert [BASELINES[name]] * 2 in [ys for _, ys in curves]
    spans = [(patch.get_y(), patch.get_height()) for patch in chart.axes.patches]  # type: ignore[attr-defined]
    assert (4.0, 0.5) in [(low, pytest.approx(height)) for low, height in spans]  # the expected range
    turn = [patch for patch in chart.axes.patches if patch.get_width() == 6]  # type: ignore[attr-defined]
    assert [patch.get_x() for patch in turn] == [6]  # type: ignore[attr-defined]
    assert [label.text for label in chart.labels[:2]] == ["training 1.125", "validation 5.700"]


def test_the_svg_draws_losses_in_proportion_and_as_text(tmp_path: Path) -> None:
    page = report(write_run(tmp_path / "run"))
    svg = page.one("div", class_="wide").one("svg")

    paths = [one for one in svg.all("path") if "stroke: var(--val)" in one.attributes.get("style", "")]
    points = [re.findall(r"[ML] (\S+) (\S+)", path.attributes["d"]) for path in paths]
    (curve,) = [[(float(x), float(y)) for x, y in one] for one in points if len(one) == 5]
    slopes = [(y - curve[0][1]) / (val - 5.7) for (_, y), val in zip(curve[1:4], [4.95, 4.2, 4.95], strict=True)]
    assert slopes == pytest.approx([slopes[0]] * 3, rel=1e-2)  # pixels per nat: tenths of pixels in the file
    assert slopes[0] < -10  # greater losses are drawn higher, and the y-axis of SVG points down
    assert [x for x, _ in curve] == pytest.approx(
        [curve[0][0] + i * (curve[1][0] - curve[0][0]) for i in range(5)], abs=0.5
    )
    texts = [one.words for one in svg.all("text")]
    assert {"uniform 5.549", "bigram 2.411", "best 4.200, step 6", "memorizes", "optimizer steps"} <= set(texts)
    assert svg.one("title").words == "Training and validation loss"
    assert "best validation loss 4.200 at step 6" in svg.one("desc").words
    assert "#0000" not in svg.attributes["viewbox"] + "".join(str(one.attributes) for one in svg.all())


def test_metrics_of_the_steps_are_drawn_with_the_limit_of_the_gradient(tmp_path: Path) -> None:
    settings = {"trainer": {"gradient_clip_val": 2.0}}
    folder = write_run(tmp_path / "run", settings=settings)
    figures = section(report(folder), "steps").all("figure")

    captions = [(one.one("h3").words, one.one("figcaption").words) for one in figures]
    assert captions == [
        ("Learning rate", "median 0.0006190, most 0.004".replace("0.0006190", "0.000619")),
        ("Gradient norm", "median 3, most 5, clipped at 2 (dotted)"),
        ("Tokens per second", "median 906.5, most 912"),
    ]
    chart = metric_chart([read_run(folder)], "gradient_norm", 2.0)
    assert chart is not None
    curve, limit = chart.axes.get_lines()
    assert list(curve.get_ydata()) == [1 + step % 5 for step in range(1, 13)]
    assert list(limit.get_ydata()) == [2.0, 2.0]


def test_copied_runs_are_marked_and_lead_to_their_sources(tmp_path: Path) -> None:
    page = report(write_run(tmp_path / "run"))

    assert "do not count; where none counts, the longest is underlined." in section(page, "samples").words
    newest, oldest = section(page, "samples").all("div", class_="epoch")
    assert newest.one("div", class_="when").words == "Epoch 2 step 12"
    assert [one.words for one in newest.all("mark")][:2] == [
        "and the keeper went down to",
        "It was the hour of the lamp",
    ]
    quote = newest.one("blockquote")
    assert quote.text_without("sup", "span") == "So and the keeper went down to a \nhouse. It was the hour of the lamp"
    assert quote.one("span", class_="newlines").text == "\u21b5 \u00d74"
    for number, mark in enumerate(newest.one("ol").all("li"), start=1):
        (link,) = [one for one in quote.all("a") if one.text == str(number)]
        assert link.attributes["href"] == f"#{mark.attributes['id']}"
        words, source = mark.one("q").one("mark").text, int(re.findall(r"character (\d+)", mark.text)[0])
        assert TEXT[source : source + len(words)] == words
        assert (
            mark.one("q").text
            == f"…{TEXT[max(0, source - 40) : source + len(words) + 40][: len(mark.one('q').text) - 2]}…"
        )
    assert newest.one("summary").words == "48 % copied: 19 of 40 tokens; longest run 10 tokens"
    assert oldest.one("blockquote").text == "So it the the the"
    assert not oldest.all("mark")
    assert "0 % copied" in oldest.words


@given(st.data())
def test_the_pieces_of_a_sample_are_its_text_with_each_copied_character_in_a_mark(data: st.DataObject) -> None:
    text = data.draw(st.text(st.sampled_from("ab\n<\x00\u202e"), max_size=30))
    places = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).map(sorted)
    runs = sorted(data.draw(st.lists(places, max_size=4)))
    row = {"step": 1, "epoch": 1, "prompt": "p", "completion": text}
    row["copied"] = {"share": 0.5, "tokens": 9, "of": 18, "longest": 9, "runs": [
        {"begin": begin, "end": end, "tokens": 9, "source": 0, "before": "", "after": ""} for begin, end in runs
    ]}  # fmt: skip

    pieces = describe_sample(row, "x")["pieces"]

    flat = [(part, "source" in one) for one in pieces for part in (one["pieces"] if "source" in one else [one])]
    assert "".join(part["text"] + "\n" * part["newlines"] for part, _ in flat) == text
    marked = [is_marked for part, is_marked in flat for _ in part["text"] + "\n" * part["newlines"]]
    copied_places = {i for begin, end in runs for i in range(begin, end)}
    assert {i for i, is_marked in enumerate(marked) if is_marked} <= copied_places
    assert all(marked[i] or text[i] == "\n" for i in copied_places)  # newlines at the end of a run are not marked


@pytest.mark.parametrize(("recorded", "is_counted"), [({}, True), ({"at_least": 8}, True), ({"at_least": 32}, False)])
def test_a_run_counts_if_it_has_the_tokens_that_the_sample_says(
    tmp_path: Path, recorded: dict[str, int], is_counted: bool
) -> None:
    completion = "and the keeper went down to"
    marks = copied(completion, (0, len(completion), 27)) | recorded
    sample = {"step": 12, "epoch": 2, "prompt": "So ", "completion": completion, "copied": marks}

    samples = section(report(write_run(tmp_path / "run", samples=[sample])), "samples")

    assert [mark.attributes.get("class") for mark in samples.one("blockquote").all("mark")] == [
        None if is_counted else "short"
    ]
    assert ("(fewer than 32 tokens: not counted)" in samples.one("ol").words) != is_counted


def test_the_number_of_a_source_is_before_the_newlines_that_end_the_run(tmp_path: Path) -> None:
    marks = {"share": 1, "tokens": 9, "of": 9, "longest": 9, "runs": [
        {"begin": 0, "end": 5, "tokens": 9, "source": 0, "before": "", "after": ""}
    ]}  # fmt: skip
    sample = {"step": 12, "epoch": 2, "prompt": "So ", "completion": "low\n\nwater", "copied": marks}

    quote = section(report(write_run(tmp_path / "run", samples=[sample])), "samples").one("blockquote")

    assert quote.one("mark").text == "low"
    assert quote.text == "So low1\n\nwater"


def test_settings_are_shown_beside_their_defaults_and_all_of_them_folded(tmp_path: Path) -> None:
    settings = section(report(write_run(tmp_path / "run")), "settings")

    changed, everything = (cells(table) for table in settings.all("table"))
    assert changed == [["setting", "value", "default"], ["model.emb_dim", "16", "768"], ["seed_everything", "7", "123"]]
    assert everything == [
        ["model.emb_dim", "16"],
        ["model.n_heads", "12"],
        ["prompt", "[So]"],
        ["seed_everything", "7"],
    ]
    assert settings.one("details").one("summary").words == "All 4 settings"


def test_text_machine_and_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = report(write_run(tmp_path / "runs" / "tiny" / "1", settings={"prompt": ["it's $HOME"]}))

    machine = section(page, "machine")
    facts = dict(zip([one.words for one in machine.all("dt")], [one.words for one in machine.all("dd")], strict=True))
    assert facts == {
        "text": "story.txt: 80 characters, 80 tokens",
        "started": "2026-11-25T10:00:00+00:00",
        "steps": "0 to 12",
        "time": "1.25 minutes",
        "device": "cpu, 2 threads",
        "versions": "torch 2.13.0",
    }
    commands = [one.text for one in section(page, "commands").all("pre")]
    quoted = """'it'"'"'s $HOME'"""
    program, best = "python -m gpt_lightning", "runs/tiny/1/checkpoints/best.ckpt"
    assert commands == [
        f"{program} predict --ckpt_path {best} --prompt {quoted} --sampling.temperature 0.8",
        f"{program} inspect --ckpt_path {best} --prompt {quoted}",
        f"{program} validate --ckpt_path {best}",
        f"{program} fit --config runs/tiny/1/tiny.yaml --run_dir runs/tiny/1 --resume",
        f"{program} fit --config runs/tiny/1/tiny.yaml",
        f"{program} report runs/tiny/1",
    ]


def test_commands_for_missing_checkpoints_are_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")

    def commands() -> list[str]:
        return [one.text.split()[3] for one in section(report(folder), "commands").all("pre")]

    (folder / "checkpoints" / "best.ckpt").unlink()
    assert commands() == ["fit", "fit", "report"]
    (folder / "checkpoints" / "last.ckpt").rename(folder / "checkpoints" / "prev.ckpt")
    assert commands() == ["fit", "fit", "report"]
    (folder / "checkpoints" / "prev.ckpt").unlink()
    assert commands() == ["fit", "report"]
    assert "--resume" not in section(report(folder), "commands").text


@pytest.mark.parametrize("name", ["metrics", "samples", "baselines", "summary", "environment", "settings"])
def test_every_file_may_be_missing(tmp_path: Path, name: str) -> None:
    page = report(write_run(tmp_path / "run", **{name: None}))

    words = page.one("main").words
    assert ("There is no summary.json, which has the verdict; the last process ended after step 12." in words) == (
        name == "summary"
    )
    assert ("There is no evaluation yet." in words) == (name == "metrics")
    assert ("There are no samples." in words) == (name == "samples")
    assert ("does not say what the defaults were" in words) == (name == "environment")
    assert ("has no file of settings" in words) == (name == "settings")
    assert ("bigram" in words) == (name not in ("baselines", "metrics"))


def test_a_run_that_has_just_started_has_a_report(tmp_path: Path) -> None:
    names = ("metrics", "samples", "baselines", "summary", "environment", "settings")
    empty = report(write_run(tmp_path / "empty", **dict.fromkeys(names)))
    started = report(write_run(tmp_path / "started", **{**dict.fromkeys(names), "metrics": metrics()[:1]}))

    assert section(empty, "verdict").words.startswith("The run has no evaluation yet.")
    assert "validation loss is 5.700 nats per token" in section(started, "verdict").words
    assert [one.words for one in started.all("h1")] == [f"{tmp_path.name}/started"]


def test_a_run_without_summary_says_what_its_losses_say(tmp_path: Path) -> None:
    lines = section(report(write_run(tmp_path / "run", summary=None)), "verdict").all("p")

    assert [one.words for one in lines] == [
        "The best validation loss is 4.200 nats per token, at step 6.",
        "The last evaluation, at step 12: training loss 1.125, validation loss 5.700.",
        "There is no summary.json, which has the verdict; the last process ended after step 12.",
    ]


@pytest.mark.parametrize(
    ("rows", "last"),
    [(metrics()[:9], "ends with that of step 6"), (None, "has no evaluation")],
)
def test_a_verdict_about_other_evaluations_is_left_out(
    tmp_path: Path, rows: list[dict[str, Any]] | None, last: str
) -> None:
    page = report(write_run(tmp_path / "run", metrics=rows))

    *derived, warning = [one.words for one in section(page, "verdict").all("p")]
    assert warning == (
        f"summary.json is about the evaluations up to step 12, but metrics.jsonl {last}: its verdict is left out."
    )
    assert derived == [
        *(["The best validation loss is 4.200 nats per token, at step 6."] if rows else []),
        "The last evaluation, at step 6: training loss 3.375, validation loss 4.200."
        if rows
        else "The run has no evaluation yet.",
    ]


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (
            "non-finite gradient at step 2; the weights were not changed; try a lower model.learning_rate",
            [
                "The run diverged at step 2: non-finite gradient.",
                "The weights were not changed; try a lower model.learning_rate.",
            ],
        ),
        (
            "non-finite loss in the evaluation at step 1,200 (Train loss nan, Val loss nan)",
            ["The run diverged at step 1,200: non-finite loss in the evaluation (Train loss nan, Val loss nan)."],
        ),
        ("non-finite <loss>", ["The run diverged: non-finite <loss>."]),
    ],
)
def test_the_headline_of_a_diverged_run_is_its_error(tmp_path: Path, error: str, lines: list[str]) -> None:
    environment = {"sessions": [{"from_step": 0, "to_step": 1, "error": error}]}
    rows = [{**row, "learning_rate": 1e30} if "learning_rate" in row else row for row in metrics()[:2]]
    page = report(write_run(tmp_path / "run", environment=environment, summary=None, metrics=rows))

    assert [one.words for one in section(page, "verdict").all("p")] == [
        *lines,
        "Before the first optimizer step, the validation loss is 5.700 nats per token.",
    ]
    assert "median 1e+30, most 1e+30" in [one.words for one in section(page, "steps").all("figcaption")]
    assert page.one("p", class_="subtitle").words == "0.17 epochs, 1 optimizer step, 100 tokens"


@pytest.mark.parametrize(
    ("value", "words"),
    [(1, "1 minute"), (0.057, "0.06 minutes"), (0.001, "less than 0.01 minutes"), (0, "0 minutes"),
     (1_234_567, "1,234,567 minutes"), (1.5, "1.5 minutes"), (100, "100 minutes")],
)  # fmt: skip
def test_amounts_have_a_plural_and_two_digits(value: float, words: str) -> None:
    assert format_amount(value, "minute") == words


@pytest.mark.parametrize(
    ("sessions", "words"),
    [
        (None, "There is no summary.json: the run has not finished, or an older version made it."),
        ([], "There is no summary.json: the run has not finished, or an older version made it."),
        ([{"from_step": 0}], "The run has not finished: it is under way, or its process was killed."),
        (
            [{"from_step": 0, "to_step": 6, "error": "interrupted"}, {"from_step": 6}],
            "The run has not finished: it is under way, or its process was killed.",
        ),
        (
            [{"from_step": 0, "to_step": 1200, "error": "stopped <early>"}],
            "The run has not finished: its last process ended after step 1,200 (stopped <early>).",
        ),
    ],
)
def test_a_run_without_summary_says_how_it_ended(
    tmp_path: Path, sessions: list[dict[str, Any]] | None, words: str
) -> None:
    environment = None if sessions is None else {"sessions": sessions}
    page = report(write_run(tmp_path / "run", environment=environment, summary=None))
    both = report(tmp_path / "run", write_run(tmp_path / "other"))

    assert section(page, "verdict").all("p", class_="note")[0].words == words
    assert [one.words for one in section(both, "results").all("p", class_="note")] == [words]


@pytest.mark.parametrize("error", ["interrupted", "stopped by signal 15", "non-finite <loss>"])
def test_the_error_that_ended_a_session_is_shown(tmp_path: Path, error: str) -> None:
    environment = {"sessions": [{"from_step": 0, "to_step": 6, "minutes": 0.5, "error": error}, {"from_step": 6}]}
    page = report(write_run(tmp_path / "run", environment=environment))

    first, second = section(page, "machine").all("dl")
    assert first.text.replace("\n", "") == f"steps0 to 6end{error}time0.50 minutes"
    assert "end" not in [one.text for one in second.all("dt")]


def test_a_session_that_was_killed_has_no_time(tmp_path: Path) -> None:
    environment = {"sessions": [{"from_step": 0}, {"from_step": 6, "to_step": 12, "minutes": 0.5}]}
    page = report(write_run(tmp_path / "run", environment=environment, summary=None))

    first, second = (one.text.replace("\n", "") for one in section(page, "machine").all("dl"))
    assert first == "stepsfrom 0timenot recorded: the process was killed, or is running"
    assert second == "steps6 to 12time0.50 minutes"
    assert "minutes" not in page.one("p", class_="subtitle").words  # the sum is not known


def test_the_row_that_a_killed_process_left_incomplete_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run")
    whole = render_report([read_run(folder)])
    for name in ("metrics.jsonl", "samples.jsonl"):
        with open(folder / name, "a") as file:
            file.write('{"step": 13, "epoch": 2.5, "tokens_se')

    assert render_report([read_run(folder)]) == whole
    assert capsys.readouterr().err == ""


def test_hostile_text_appears_as_text(tmp_path: Path) -> None:
    folder = tmp_path / "<b>&" / "'1\x1b\U0001f600"
    samples = [{"step": 12, "epoch": 2, "prompt": HOSTILE, "completion": HOSTILE, "copied": copied(HOSTILE)}]
    samples[0]["copied"]["runs"] = [  # type: ignore[index]
        {"begin": 3, "end": 30, "tokens": 9, "source": 5, "before": HOSTILE[:40], "after": "\ud800"}
    ]
    summary = {"verdict": [HOSTILE], "advice": HOSTILE, "copied": 0.5}
    environment = {"text": HOSTILE, "defaults": {"data.text": None}, "sessions": [{"device": HOSTILE}]}
    printable = re.sub("[\x00\x1b\x9b]", "", HOSTILE)  # YAML has no others
    settings = {"data": {"text": printable}, "prompt": [HOSTILE[:20]]}
    write_run(folder, samples=samples, summary=summary, environment=environment, settings=settings)
    other = write_run(tmp_path / "other")

    page, both = report(folder), report(folder, other)

    shown = (
        "</q><script>alert('1')</script> \"&quot;' \\x1b[31mred\\x00 \\u202egnp.exe "
        "\u0633\u0644\u0627\u0645 \U0001f600 \\x9b \\r"
    )
    assert section(page, "verdict").all("p")[0].text == shown
    assert page.one("blockquote").text_without("sup") == shown + shown
    assert section(page, "machine").all("dd")[0].text == shown
    before, words = "</q><script>alert('1')</script> \"&quot;'", "><script>alert('1')</script"
    assert page.one("q").text == f"…{before}{words}\\ud800…"
    assert page.one("h1").text == "<b>&/'1\\x1b\U0001f600"
    assert "<b>&/'1\\x1b\U0001f600" in [one.words for one in section(both, "results").all("h3")]
    for one in (page, both):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", one.text)


def test_equal_files_make_equal_pages(tmp_path: Path) -> None:
    record = read_run(write_run(tmp_path / "run"))

    assert render_report([record]) == render_report([record])


def verdict_like(folder: Path) -> Path:
    """90 steps and 10 epochs with samples of 50 tokens, half of them copied."""
    rng = random.Random(1)
    samples = []
    for epoch in range(1, 11):
        completion = "".join(rng.choice([TEXT[11:60], "\n\n", '"--', " it"]) for _ in range(9))
        places = [(m.start(), m.end(), 12) for m in re.finditer(re.escape(TEXT[11:60]), completion)]
        row = {"step": 9 * epoch, "epoch": epoch, "prompt": "Every effort", "completion": completion}
        samples.append({**row, "copied": copied(completion, *places)})
    return write_run(folder, metrics=metrics(90, 5), samples=samples)


def test_the_page_of_a_short_run_is_small(tmp_path: Path) -> None:
    html = render_report([read_run(verdict_like(tmp_path / "run"))])

    assert len(html.encode()) < 150_000
    assert len(read_page(html).all("div", class_="epoch")) == 10


def test_the_page_of_long_runs_is_small(tmp_path: Path) -> None:
    completion = (TEXT * 60)[:MOST_CHARACTERS] + '"' * 3000
    places = [(100 * i, 100 * i + 79, 15) for i in range(0, 40, 4)]
    long = {"step": 0, "epoch": 0, "prompt": '"' * 10_000, "completion": completion}
    marks = {"share": 0.5, "tokens": 150, "of": 300, "longest": 15, "runs": [
        {"begin": begin, "end": end, "tokens": tokens, "source": 0, "before": '"' * 40, "after": '"' * 40}
        for begin, end, tokens in places
    ]}  # fmt: skip
    samples = [{**long, "step": 100 * i, "epoch": i, "copied": marks} for i in range(1, 51) for _ in range(2)]
    rng = random.Random(1)
    rows = [{**row, "gradient_norm": rng.random()} for row in metrics(20_000, 10)]
    record = read_run(write_run(tmp_path / "0", metrics=rows, samples=samples))

    one = render_report([record])
    eight = render_report([replace(record, path=tmp_path / f"{number}") for number in range(8)])

    assert len(one.encode()) < 500_000
    assert len(eight.encode()) < 500_000
    page = read_page(one)
    assert "of 2,001 evaluations" in page.words
    assert "of 100 samples; samples.jsonl has all" in page.words
    kept = cells(section(page, "losses").all("details")[0].one("table"))
    assert ["10,000", "1666.67"] in [row[:2] for row in kept]  # the best
    assert kept[-1][0] == "20,000"


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=200), st.integers(4, 40))
def test_thinned_curves_keep_their_ends_and_extremes(values: list[float], most: int) -> None:
    x, y = thin(range(len(values)), values, most)

    assert len(x) <= max(most, 2)
    assert x == sorted(set(x))
    assert [values[int(place)] for place in x] == y
    assert (x[0], x[-1]) == (0, len(values) - 1)
    assert (min(y), max(y)) == (min(values), max(values))


@given(st.lists(st.floats(0, 100), max_size=6).map(sorted))
def test_labels_are_moved_apart_within_the_chart(wanted: list[float]) -> None:
    places = spread(wanted, 10, 0, 100)

    assert all(after - before >= 10 - 1e-9 for before, after in pairwise(places))
    assert all(-1e-9 <= place <= 100 for place in places)
    if all(after - before >= 10 for before, after in pairwise(wanted)):
        assert places == wanted


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30), st.integers(0, 20_000))
def test_samples_are_chosen_at_equal_distances_up_to_the_last(lengths: list[int], budget: int) -> None:
    rows = [{"step": 10 * i, "prompt": "", "completion": "a" * n} for i, n in enumerate(lengths)]

    chosen = choose_samples(rows, budget)

    assert chosen[-1] == rows[-1]
    assert len({b["step"] - a["step"] for a, b in pairwise(chosen)}) <= 1
    cost = sum(400 + 6 * len(row["completion"]) for row in rows)
    assert (chosen == rows) == (cost <= budget or len(rows) == 1)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.0003, "3e-4"), (0.00015, "1.5e-4"), (0.5, "0.5"), (60.0, "60"), (500, "500"), (1500, "1,500"),
     (2000, "2k"), (12_500, "12.5k"), (1.5e6, "1.5M"), (2e9, "2B"), (9.99e29, "9.99e29")],
)  # fmt: skip
def test_numbers_of_an_axis(value: float, shown: str) -> None:
    assert format_count(value) == shown


def test_several_runs_are_compared(tmp_path: Path) -> None:
    other = {"model": {"emb_dim": 32, "n_heads": 12}, "prompt": ["So"], "init_from": "gpt2.ckpt"}
    lower = [{**row, "val_loss": row["val_loss"] - 1} if "val_loss" in row else row for row in metrics()]
    summary = {"verdict": ["It memorized its text.", "a verdict of its own."]}
    write_run(tmp_path / "runs" / "a" / "1", summary=summary)
    write_run(tmp_path / "runs" / "a" / "2", settings=other, metrics=lower, summary=None)

    page = report(tmp_path / "runs" / "a" / "1", tmp_path / "runs" / "a" / "2")

    assert page.one("h1").words == "2 runs"
    results = section(page, "results")
    assert cells(results.one("table"))[1:] == [
        ["a/1", "4.200", "6", "5.700", "1.125", "12", "1,200", "48 %", "1.25"],
        ["a/2", "3.200", "6", "4.700", "1.125", "12", "1,200", "48 %", "1.25"],
    ]
    assert [row.all("td")[0].words for row in results.all("tr", class_="best")] == ["a/2"]
    assert "It memorized its text." in results.words
    assert "A verdict of its own." in results.words
    assert cells(section(page, "differing").one("table")) == [
        ["setting", "a/1", "a/2"],
        ["model.emb_dim", "16", "32"],
        ["seed_everything", "7", NOTHING],
        ["init_from", NOTHING, "gpt2.ckpt"],
    ]
    columns = section(page, "samples").one("div", class_="columns")
    assert [one.words for one in columns.all("h3")] == ["a/1", "a/2"]
    assert len(columns.all("blockquote")) == 2  # of the last epoch only
    texts = [one.words for one in page.one("div", class_="wide").all("text")]
    assert {"a/1", "a/2", "uniform 5.549"} <= set(texts)
    assert [one.words.partition(":")[0] for one in section(page, "losses").all("summary")] == [
        "The numbers of a/1",
        "The numbers of a/2",
    ]


def test_runs_with_other_steps_are_compared_by_tokens(tmp_path: Path) -> None:
    small = read_run(write_run(tmp_path / "small"))
    large = read_run(write_run(tmp_path / "large", metrics=metrics(tokens=200), baselines={"bigram": 3.0}))
    twin = read_run(write_run(tmp_path / "twin"))

    assert by_tokens([small, large])
    assert not by_tokens([small, twin])
    chart = loss_chart([small, large], ["small", "large"], 1000, 420)
    assert [list(line.get_xdata())[-1] for line in chart.axes.get_lines()] == [1200, 1200, 2400, 2400]
    assert chart.axes.get_xlabel() == "tokens seen"
    assert not [label for label in chart.labels if "gram" in label.text]  # of different texts
    assert "small" in [label.text for label in chart.labels]
    assert loss_chart([small, twin], ["a", "b"], 1000, 420).axes.get_xlabel() == "optimizer steps"


def test_losses_of_other_tokenizers_are_not_compared(tmp_path: Path) -> None:
    names = ("bytes", "gpt2", "gpt2")
    folders = [
        write_run(
            tmp_path / str(number), settings={"data": {"tokenizer": name}}, baselines=None if number else BASELINES
        )
        for number, name in enumerate(names)
    ]

    other, same = report(*folders[:2]), report(*folders[1:])

    (warning,) = section(other, "losses").all("p", class_="warning")
    assert warning.words == (
        "The tokenizers of these runs differ (bytes, gpt2), so their losses per token cannot be compared. "
        "The command evaluate compares bits per byte."
    )
    assert not section(same, "losses").all("p", class_="warning")
    assert [len(section(page, "results").all("tr", class_="best")) for page in (other, same)] == [0, 2]
    assert not [label for label in other.one("div", class_="wide").all("text") if "gram" in label.words]
    assert not report(folders[0]).all("p", class_="warning")


@pytest.mark.parametrize(
    ("data", "split", "unigram", "shown"),
    [
        ({"text": "b/story.txt", "train_ratio": 0.9}, 10, 3.05, None),
        ({"text": "a/other.txt", "train_ratio": 0.9}, 10, 3.05,
         "other.txt, train_ratio 0.9, 10 characters; story.txt, train_ratio 0.9, 10 characters"),
        ({"text": "a/story.txt", "train_ratio": 0.5}, 50, 3.05,
         "story.txt, train_ratio 0.5, 50 characters; story.txt, train_ratio 0.9, 10 characters"),
        ({"text": "a/story.txt", "train_ratio": 0.9, "val_text": "a/val.txt"}, 90, 3.05,
         "story.txt, train_ratio 0.9, 10 characters; val.txt, 90 characters"),
        ({"text": "a/story.txt", "train_ratio": 0.9}, 10, 3.15, "as their baselines do"),
    ],
)  # fmt: skip
def test_losses_of_other_validation_texts_are_not_compared(
    tmp_path: Path, data: dict[str, Any], split: int, unigram: float, shown: str | None
) -> None:
    first = {"text": "a/story.txt", "train_ratio": 0.9}
    for name, settings, size, loss in (("1", first, 10, 3.05), ("2", data, split, unigram)):
        baselines = {**BASELINES, "validation_tokens": 512, "unigram": loss}
        environment = {"split": f"90 / {size} characters, 90 / {size} tokens for training / validation"}
        write_run(tmp_path / name, settings={"data": settings}, environment=environment, baselines=baselines)

    page = report(tmp_path / "1", tmp_path / "2")

    warnings = [one.words for one in section(page, "losses").all("p", class_="warning")]
    cause = f"The validation texts of these runs differ ({shown}), so their losses cannot be compared."
    assert warnings == ([] if shown is None else [cause])
    assert len(section(page, "results").all("tr", class_="best")) == (2 if shown is None else 0)
    has_baselines = "uniform 5.549" in [one.words for one in page.one("div", class_="wide").all("text")]
    assert has_baselines == (shown is None)


def test_training_texts_may_differ_if_the_validation_text_is_the_same(tmp_path: Path) -> None:
    for name, loss in (("1", 3.05), ("2", 3.15)):
        settings = {"data": {"text": f"{name}.txt", "val_text": "val.txt"}}
        baselines = {**BASELINES, "validation_tokens": 512, "unigram": loss}
        write_run(tmp_path / name, settings=settings, baselines=baselines)

    assert not report(tmp_path / "1", tmp_path / "2").all("p", class_="warning")


def test_the_axis_at_the_top_has_tokens_at_their_steps(tmp_path: Path) -> None:
    rows = metrics()
    for row in rows:
        row["tokens_seen"] = 100 * min(row["step"], 6) + 50 * max(row["step"] - 6, 0)  # 600, then 300 more
    chart = loss_chart([read_run(write_run(tmp_path / "run", metrics=rows))], ["run"], 1000, 420)

    above = chart.figure.axes[1]
    shown = {text.get_text(): place for text, place in zip(above.get_xticklabels(), above.get_xticks(), strict=True)}
    assert shown == {"200": 2, "400": 4, "600": 6, "800": pytest.approx(10)}


def test_the_axis_of_tokens_begins_with_the_first_evaluation(tmp_path: Path) -> None:
    rows = [row for row in metrics(20, 5) if row["step"] >= 5]  # 500 tokens
    chart = loss_chart([read_run(write_run(tmp_path / "run", metrics=rows))], ["run"], 1000, 420)

    above = chart.figure.axes[1]
    shown = {text.get_text(): place for text, place in zip(above.get_xticklabels(), above.get_xticks(), strict=True)}
    assert shown == {"500": 5, "1k": 10, "1,500": 15, "2k": 20}


def test_runs_of_equal_names_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [write_run(tmp_path / one / "x" / "1") for one in ("a", "b")]

    titles = section(report(*folders), "results").all("h3")

    assert [one.words for one in titles] == ["a/x/1", "b/x/1"]


def test_expected_ranges_come_from_the_summary_else_from_the_settings(tmp_path: Path) -> None:
    ranges = {"best_val_loss": [3, 4], "untrained_val_loss": [5, 6], "last_train_eval_loss": None}
    settings = {"expected": {"sha256": "0" * 64, **ranges}}
    ended = read_run(write_run(tmp_path / "ended", settings=settings))
    going_on = read_run(write_run(tmp_path / "going_on", settings=settings, summary=None))
    changed = read_run(write_run(tmp_path / "changed", settings={"expected": ranges}, summary=None))

    assert ended.expected_ranges == {"best_val_loss": (4.0, 4.5)}
    assert going_on.expected_ranges == {"untrained_val_loss": (5.0, 6.0), "best_val_loss": (3.0, 4.0)}
    assert changed.expected_ranges == {}  # the command line dropped the checksum
    rows = cells(section(report(tmp_path / "going_on"), "losses").all("table")[0])
    assert ["untrained Val loss", "5 to 6", NOTHING, "not yet known"] in rows


@pytest.mark.parametrize(("steps", "word"), [(6, "memorizes"), (0, "rises")])
def test_the_steps_after_the_turn_are_named(tmp_path: Path, steps: int, word: str) -> None:
    record = read_run(write_run(tmp_path / "run", summary={"turn": {"step": 6}, "memorizing_steps": steps}))

    texts = [one.get_text() for one in loss_chart([record], ["run"], 1000, 420).axes.texts]
    assert word in texts


def test_a_value_outside_of_its_range_is_said_in_words(tmp_path: Path) -> None:
    summary = {"expected": {"best_val_loss": {"range": [1.0, 2.0], "value": 4.2, "inside": False}}}
    losses = section(report(write_run(tmp_path / "run", summary=summary)), "losses")

    assert ["best Val loss", "1 to 2", "4.200", "✗ outside"] in cells(losses.all("table")[0])


def test_paths_that_lead_to_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in ("2", "10"):
        write_run(tmp_path / "runs" / "tiny" / number)

    assert find_run("runs/tiny/2/checkpoints") == tmp_path / "runs" / "tiny" / "2"
    assert find_run("runs/tiny/latest") == tmp_path / "runs" / "tiny" / "10"  # without a link
    os.symlink("2/checkpoints", "runs/tiny/latest")
    assert find_run("runs/tiny/latest") == tmp_path / "runs" / "tiny" / "2"


def test_a_trained_run_has_a_report(trained: Path) -> None:
    page = read_page((trained / "report.html").read_text(encoding="utf-8"))

    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [f"{row['val_loss']:.3f}" for row in rows if "val_loss" in row]
    table = cells(section(page, "losses").all("details")[0].one("table"))
    assert [row[4] for row in table[1:]] == losses
    samples = [json.loads(line) for line in (trained / "samples.jsonl").read_text().splitlines()]
    shown = [one.text_without("sup", "span") for one in page.all("blockquote")]
    assert all(one.isprintable() for one in shown)
    assert shown == [one["prompt"] + one["completion"] for one in reversed(samples)]
    assert ["model.emb_dim", "16", "768"] in cells(section(page, "settings").all("table")[0])
    assert page.one("h1").words == f"{trained.parent.name}/run"


def chromium(*arguments: str) -> subprocess.CompletedProcess[str]:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs chromium or google-chrome in PATH")
    options = ("--headless", "--no-sandbox", "--enable-unsafe-swiftshader", "--use-gl=swiftshader", "--hide-scrollbars")
    return subprocess.run([browser, *options, *arguments], capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "background"), [("1", (255, 255, 255)), ("0", (18, 23, 30))])
def test_a_browser_shows_the_page_without_errors(tmp_path: Path, scheme: str, background: tuple[int, ...]) -> None:
    folder = verdict_like(tmp_path / "run")
    (folder / "report.html").write_text(render_report([read_run(folder)]), encoding="utf-8")

    address = (folder / "report.html").as_uri()
    shot = tmp_path / "shot.png"
    size = ("--window-size=1400,1200", f"--screenshot={shot}", f"--blink-settings=preferredColorScheme={scheme}")
    done = chromium("--enable-logging=stderr", *size, address)

    assert "CONSOLE" not in done.stderr
    colours = {colour: count for count, colour in Image.open(shot).convert("RGB").getcolors(1 << 24) or []}
    assert max(colours, key=colours.__getitem__) == background  # of the sections
    for light, dark in (("0757ab", "6cb2ff"), ("a14b00", "ffa657")):  # both curves
        colour = bytes.fromhex(light if scheme == "1" else dark)
        assert colours.get((colour[0], colour[1], colour[2]), 0) > 200


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_the_page_is_not_wider_than_a_small_screen(tmp_path: Path, count: int) -> None:
    folders = [verdict_like(tmp_path / f"{number}") for number in range(count)]
    html = render_report([read_run(folder) for folder in folders])
    frame = f'<iframe width="400" height="900" srcdoc="{escape(html)}"></iframe>'  # a window may not be that narrow
    measure = "frames[0].document.documentElement.scrollWidth"
    script = f"<script>onload = () => document.title = `width ${{{measure}}}`</script>"
    (tmp_path / "page.html").write_text(f"<title></title>{frame}{script}", encoding="utf-8")

    done = chromium("--dump-dom", (tmp_path / "page.html").as_uri())

    assert re.findall("<title>(.*)</title>", done.stdout)[0] == "width 400"
