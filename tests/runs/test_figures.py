"""Loss figures show each evaluation at its position; invalid input is refused in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Result
from pages import write_run

from gpt_lightning.errors import InputError
from gpt_lightning.runs.figures import Curve, bar_figure, loss_figure, read_curve, save_figure

Command = Callable[..., Result]
REFERENCE = ROOT / "configs" / "reference"


def test_a_run_draws_its_figure_when_it_ends(trained: Path) -> None:
    assert (trained / "loss.pdf").read_bytes().startswith(b"%PDF")
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_each_evaluation_is_plotted_at_its_epoch(trained: Path) -> None:
    curve = read_curve(trained)
    axes, above = loss_figure([curve]).axes

    # 15 optimizer steps of 56 * 64 tokens, 5 per epoch; evaluated every 2 steps and after the last.
    steps = [2, 4, 6, 8, 10, 12, 14, 15]
    assert curve.epochs == pytest.approx([step / 5 for step in steps])
    assert curve.tokens == [step * 56 * 64 for step in steps]
    train, val, baseline = axes.get_lines()
    assert list(train.get_xdata()) == curve.epochs
    assert (list(train.get_ydata()), list(val.get_ydata())) == (curve.train, curve.val)
    assert train.get_linestyle() != val.get_linestyle()
    assert baseline.get_label() == "Trigram baseline"
    assert (axes.get_xlabel(), above.get_xlabel()) == ("Epochs", "Tokens seen")
    assert above.get_xlim() == pytest.approx([limit * 5 * 56 * 64 for limit in axes.get_xlim()])


def test_the_axis_of_tokens_needs_equal_tokens_per_epoch() -> None:
    one = Curve("one", [1.0, 2.0], [100, 200], [3.0, 2.0], [3.1, 2.5])
    same = Curve("same", [1.0], [100], [3.0], [3.1])
    other = Curve("other", [1.0], [300], [3.0], [3.1])

    assert len(loss_figure([one, same]).axes) == 2
    assert len(loss_figure([one, other]).axes) == 1
    labels = [text.get_text() for text in loss_figure([one, other]).axes[0].get_legend().get_texts()]
    assert labels[::2] == ["one: Training loss", "other: Training loss"]


@pytest.mark.parametrize(("name", "rows", "best"), [("verdict", 18, (59, 6.099)), ("world_war", 56, (160, 7.425))])
def test_the_tables_of_the_reference_notes(name: str, rows: int, best: tuple[int, float]) -> None:
    table = [json.loads(line) for line in (REFERENCE / f"{name}.jsonl").read_text().splitlines()]

    assert len(table) == rows
    lowest = min(table, key=lambda row: row["val_loss"])
    assert (lowest["step"], lowest["val_loss"]) == best
    per_step = 512 if name == "verdict" else 256
    assert all(row["tokens_seen"] == row["step"] * per_step for row in table)


def test_plot_draws_runs_and_the_reference_notes_in_one_figure(command: Command, trained: Path, in_tmp: Path) -> None:
    alone = command("plot", trained)
    os.mkdir("new")
    several = command("plot", trained, REFERENCE / "verdict.jsonl", "--output", "new/both")

    assert alone.out.split() == [str(trained / "loss.pdf"), str(trained / "loss.png")]
    assert several.out.split() == ["new/both.pdf", "new/both.png"]
    assert sorted(os.listdir("new")) == ["both.pdf", "both.png"]
    again = command("plot", trained, "--output=new/both.png")
    assert (again.code, again.error) == (2, "--output new/both.pdf: already exists; choose another or remove it")
    assert command("plot", trained, "--output=new/third.png").out.split() == ["new/third.pdf", "new/third.png"]
    assert command("plot", trained).out == alone.out  # a run's own figure is drawn again
    assert command("plot", trained / "checkpoints").out == alone.out
    assert command("plot", trained, "--output=new/v1.2").out.split() == ["new/v1.2.pdf", "new/v1.2.png"]


def test_equal_figures_are_equal_files(in_tmp: Path) -> None:
    curve = Curve("one", [1.0, 2.0], [100, 200], [3.0, 2.0], [3.1, 2.5])

    first, second = (save_figure(loss_figure([curve]), stem) for stem in ("a", "b"))

    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_bars_have_the_heights_of_their_probabilities() -> None:
    figure = bar_figure(["a", "b"], {"T = 1": [0.25, 0.75], "T = 5": [0.4, 0.6]})

    heights = [[bar.get_height() for bar in container] for container in figure.axes[0].containers]
    assert heights == [[0.25, 0.75], [0.4, 0.6]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "has no evaluation after the first optimizer step"),
        ('{"step": 3, "epoch": 1, "tokens_seen": 5, "train_eval_loss": null, "val_loss": 1}\n', "has no evaluation"),
        ("[1]\nnonsense\n", "has no evaluation after the first optimizer step"),
        ("[" * 100_000 + "\n", "has no evaluation after the first optimizer step"),
        ('{"step": 3, "epoch": 0, "tokens_seen": 5, "train_eval_loss": 1, "val_loss": 1}\n', "has no evaluation"),
        *(
            (
                f'{{"step": 3, "epoch": 1, "tokens_seen": 5, "train_eval_loss": {many}, "val_loss": 1}}\n',
                "has no evaluation",
            )
            for many in ("1" * 400, "1e400", "NaN")
        ),
    ],
)
def test_a_table_without_losses_is_refused(in_tmp: Path, command: Command, content: str | None, message: str) -> None:
    if content is not None:
        Path("metrics.jsonl").write_text(content)

    with pytest.raises(InputError, match=f"metrics.jsonl: {message}"):
        read_curve(".")
    assert command("plot", ".").code == 2


def test_bad_arguments_of_plot_get_one_line(command: Command, trained: Path) -> None:
    assert command("plot").error == "the following arguments are required: RUN"
    assert command("plot", trained, "--outputt", "x").error == "unrecognized arguments: --outputt x"
    assert command("plot", "").error == "RUN is empty"
    assert command("plot", trained, trained).error.endswith("is given twice")
    assert command("plot", trained, "--output", "").error == "--output is empty"
    assert "at most 10 runs at once, got 11" in command("plot", *[trained] * 11).error
    nowhere, file = command("plot", trained, "--output", "no/x"), trained / "metrics.jsonl"
    assert (nowhere.code, nowhere.error) == (2, "--output no/x: folder no does not exist")
    assert not Path("no").exists()
    assert command("plot", trained, "--output", file / "x").error == f"--output {file / 'x'}: {file} is not a folder"


def test_both_files_of_a_figure_are_written_or_none(
    command: Command, trained: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def refuse(path: Path, content: bytes) -> int:
        if "png" in path.name:
            raise OSError(27, "File too large", str(path))
        return write(path, content)

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    result = command("plot", trained, "--output", "limp")

    assert (result.code, result.error) == (1, "limp.png: file too large")
    assert os.listdir() == []


def test_plot_warns_of_different_tokenizers(command: Command, in_tmp: Path) -> None:
    for number, name in enumerate(("gpt2", "bytes", "bytes")):
        write_run(in_tmp / str(number), settings={"data": {"tokenizer": name}})

    warning = "the tokenizers of these runs differ (bytes, gpt2), so their losses cannot be compared"
    assert command("plot", "0", "1", "--output", "a").err == f"gpt_lightning: warning: {warning}\n"
    assert command("plot", "1", "2", "--output", "b").err == ""


def test_plot_warns_of_damaged_lines(command: Command, trained: Path, in_tmp: Path) -> None:
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    Path("table.jsonl").write_text("\n".join([lines[0], "nonsense", *lines[1:]]) + "\n")

    result = command("plot", "table.jsonl", "--output", "both")

    assert result.code == 0
    assert result.err == "gpt_lightning: warning: table.jsonl: 1 damaged line is skipped (first: line 2)\n"
    assert read_curve("table.jsonl").val == read_curve(trained).val


def test_read_curve_keeps_the_order_and_values_of_a_table() -> None:
    curve = read_curve(REFERENCE / "verdict.jsonl")

    assert (curve.name, curve.val[:3], curve.train[-1]) == ("reference/verdict", [8.888, 7.465, 6.693], 0.749)


@pytest.mark.parametrize(
    ("baselines", "best"),
    [
        ({"uniform": 5.5, "unigram": None, "bigram": 2.0, "trigram": 2.5, "training_tokens": 1}, ("bigram", 2.0)),
        ({"uniform": 2.5, "unigram": 2.6}, ("uniform", 2.5)),
        ({"unigram": None}, None),
        (None, None),
    ],
)
def test_a_curve_has_the_best_baseline_that_is_known(
    tmp_path: Path, baselines: dict[str, float | None] | None, best: tuple[str, float] | None
) -> None:
    folder = write_run(tmp_path / "runs" / "v1.2", baselines=baselines, summary="of another version")

    curve = read_curve(folder)

    assert (curve.name, curve.baseline) == ("runs/v1.2", best)


def test_damaged_baselines_are_named_with_what_to_do(command: Command, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", baselines={"bigram": "low"})

    assert command("plot", folder).error.endswith(
        "run/baselines.json: bigram is damaged, it must be a finite number; remove it to continue without it"
    )


def test_labels_of_bars_may_contain_dollar_signs_and_missing_glyphs(tmp_path: Path) -> None:
    written = save_figure(bar_figure(["' $$'", "'\u4e0d'"], {"T = 1": [0.5, 0.5]}), tmp_path / "bars")

    assert [path.name for path in written] == ["bars.pdf", "bars.png"]
