from __future__ import annotations

import csv
import errno
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt_lightning.checkpoints.compare import first_difference
from gpt_lightning.files import read_rows
from gpt_lightning.training.callbacks.samples import samples_table

Command = Callable[..., Result]

LINE = re.compile(r"Ep (\d+) \(Step (\d{6})\): Train loss (\d+\.\d{3}), Val loss (\d+\.\d{3})")


def rows(run: str | Path, table: str = "metrics") -> list[dict[str, Any]]:
    return read_rows(Path(run, f"{table}.jsonl"))


def evaluated_steps(result: Result) -> list[tuple[int, int]]:
    """(epoch, step) of each printed line."""
    return [(int(found[1]), int(found[2])) for found in LINE.finditer(result.out)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # 5 batches an epoch, 3 epochs
        ([], [(1, 2), (1, 4), (2, 6), (2, 8), (2, 10), (3, 12), (3, 14), (3, 15)]),
        (["--trainer.accumulate_grad_batches=2"], [(1, 2), (2, 4), (2, 6), (3, 8), (3, 9)]),
        (["--trainer.accumulate_grad_batches=3"], [(1, 2), (2, 4), (3, 6)]),
        (["--trainer.max_steps=3"], [(1, 2), (1, 3)]),
        (["--trainer.max_steps=3", "--trainer.accumulate_grad_batches=2"], [(1, 2), (1, 3)]),
        (["--evaluate_every=100", "--trainer.max_epochs=1"], [(1, 5)]),
        (["--evaluate_every=100", "--trainer.max_epochs=-1", "--trainer.max_steps=7"], [(2, 7)]),
    ],
)
def test_evaluations_come_every_n_optimizer_steps_and_after_the_last(
    command: Command, config: Path, settings: list[str], expected: list[tuple[int, int]]
) -> None:
    result = command("fit", "--config", config, "--run_dir", "run", *settings)

    assert evaluated_steps(result) == expected
    assert rows("run")[0]["step"] == 0
    assert [row["step"] for row in rows("run") if "val_loss" in row] == [0, *(step for _, step in expected)]


def test_a_stop_by_time_waits_for_the_optimizer_step(command: Command, config: Path) -> None:
    settings = ["--trainer.max_time=00:00:00:01", "--trainer.max_epochs=-1", "--trainer.accumulate_grad_batches=5"]

    result = command("fit", "--config", config, "--run_dir", "run", "--evaluate_every=1000", *settings)

    ((_, step),) = evaluated_steps(result)
    assert rows("run")[-1]["step"] == step
    assert rows("run")[-1]["tokens_seen"] == step * 5 * 56 * 64


def test_what_a_run_prints(trained: Path, command: Command, config: Path) -> None:
    result = command("fit", "--config", config, "--run_dir", "run")

    lines = result.out.splitlines()
    assert lines[:3] == [
        "text        the-lamp-at-low-water.txt: 20,459 characters, 20,459 tokens (bytes, 257 in the vocabulary)",
        "split       18,413 / 2,046 characters, 18,413 / 2,046 tokens for training / validation",
        "windows     287 + 31 of 64 tokens, stride 64; no window predicts the last 44 + 61 tokens",
    ]
    assert lines[3].startswith("batches     5 + 1 of 56 windows; 5 optimizer steps per epoch, 7 windows that fill no")
    assert lines[4].startswith("model       12,512 parameters: 1 layers, 2 heads, width 16, context 64, untied head")
    assert lines[5].startswith(
        "device      cpu (as trainer.accelerator says), precision 32-true (as the settings say), "
    )
    assert lines[6].startswith("run folder  run; checkpoints take 350.3 kB when done, up to 500.5 kB while it runs")
    untrained = r"Untrained \(Step 000000\): Train loss \d\.\d{3}, Val loss \d\.\d{3}; uniform baseline: ln 257 = 5.549"
    assert re.fullmatch(untrained, lines[7])
    assert re.fullmatch(r"Training completed in \d+\.\d\d minutes\.", lines[-4])
    assert re.match(
        r"53,760 tokens seen, [\d,]+ tokens per second in the training steps \(utilization of the peak rate n/a\), \d",
        lines[-3],
    )
    assert re.match(r"best.ckpt is of step 15 \(Val loss \d\.\d{3}\), last.ckpt of step 15. To sample:", lines[-2])
    assert lines[-1] == (
        '  python -m gpt_lightning predict --ckpt_path run/checkpoints/best.ckpt --prompt "Every effort"'
    )
    assert "training: 100%" in result.err
    assert "15/15" in result.err


def test_samples_are_what_predict_writes(command: Command, config: Path) -> None:
    settings = ["--sampling.temperature=0.8", "--sampling.top_k=20", "--sampling.max_new_tokens=30"]
    fit = command("fit", "--config", config, "--run_dir", "run", "--prompt", "First", "--prompt", "Then", *settings)
    prompts = ["--prompt", "First", "--prompt", "Then"]
    predict = command("predict", "--ckpt_path", "run/checkpoints/last.ckpt", *prompts, *settings)

    samples = [line for line in fit.out.splitlines() if line.startswith(("First", "Then"))]
    assert len(samples) == 2 * 3
    table = rows("run", "samples")
    assert [" ".join((row["prompt"] + row["completion"]).splitlines()) for row in table] == samples
    assert predict.out == "".join(row["prompt"] + row["completion"] + "\n" for row in table[-2:])


@pytest.mark.parametrize("limit", ["--trainer.max_epochs=1", "--trainer.max_steps=4"])
def test_samples_are_of_the_averages_that_are_saved(command: Command, config: Path, limit: str) -> None:
    averaging = "--trainer.callbacks=[{class_path: EMAWeightAveraging, init_args: {decay: 0.8}}]"
    sampling = ("--sampling.max_new_tokens=40", "--sampling.temperature=1")
    prompt = "Every effort"
    assert command("fit", "--config", config, "--run_dir", "plain", limit, "--sample_every=2", *sampling).code == 0
    fit = command("fit", "--config", config, "--run_dir", "run", limit, "--sample_every=2", *sampling, averaging)

    predicted = command("predict", "--ckpt_path", "run/checkpoints/last.ckpt", "--prompt", prompt, *sampling)

    sample = rows("run", "samples")[-1]
    assert predicted.out == f"{prompt}{sample['completion']}\n", fit.err
    assert sample["completion"] != rows("plain", "samples")[-1]["completion"]


def test_sampling_from_averages_leaves_the_weights(command: Command, config: Path) -> None:
    averaging = "--trainer.callbacks=[{class_path: EMAWeightAveraging, init_args: {decay: 0.8}}]"
    command("fit", "--config", config, "--run_dir", "plain")
    command("fit", "--config", config, "--run_dir", "averaged", averaging, "--sample_every=1")

    plain, averaged = (torch.load(f"{run}/checkpoints/last.ckpt") for run in ("plain", "averaged"))
    assert first_difference(plain["state_dict"], averaged["current_model_state"], "weights") is None
    assert first_difference(plain["state_dict"], averaged["state_dict"], "weights") is not None


def test_samples_also_come_every_n_steps_once(command: Command, config: Path) -> None:
    for every, steps in ((5, [5, 10]), (3, [3, 5, 6, 9, 10])):
        folder = f"run{every}"
        command("fit", "--config", config, "--run_dir", folder, "--sample_every", every, "--trainer.max_epochs=2")

        assert [row["step"] for row in rows(folder, "samples")] == steps


def test_a_bar_can_be_turned_off(command: Command, config: Path) -> None:
    result = command("fit", "--config", config, "--run_dir", "run", "--trainer.enable_progress_bar=false")

    assert result.err == ""


def test_tensorboard_has_every_scalar_at_its_step(trained: Path) -> None:
    events = EventAccumulator(str(trained)).Reload()
    table = rows(trained)

    assert set(events.Tags()["scalars"]) == {
        "by_tokens/train_eval_loss",
        "by_tokens/train_loss",
        "by_tokens/val_loss",
        "final/best_val_loss",
        "final/train_eval_loss",
        "final/val_loss",
        "gradient_norm",
        "learning_rate",
        "tokens_per_second",
        "tokens_seen",
        "train_eval_loss",
        "train_eval_perplexity",
        "train_loss",
        "train_perplexity",
        "val_loss",
        "val_perplexity",
    }
    assert events.Tags()["tensors"] == ["samples/text_summary"]
    for name, steps in (("train_loss", range(1, 16)), ("val_loss", [0, 2, 4, 6, 8, 10, 12, 14, 15])):
        scalars = events.Scalars(name)
        assert [one.step for one in scalars] == list(steps)
        in_table = [row[name] for row in table if name in row]
        assert [one.value for one in scalars] == pytest.approx(in_table, rel=1e-6)
    assert [one.value for one in events.Scalars("tokens_seen")] == [56 * 64 * step for step in range(1, 16)]


def test_perplexity_is_exp_of_the_mean_loss(trained: Path) -> None:
    for row in rows(trained):
        for name in ("train", "train_eval", "val"):
            if f"{name}_loss" in row:
                assert row[f"{name}_perplexity"] == pytest.approx(math.exp(row[f"{name}_loss"]), rel=1e-12)


def test_log_every_n_steps_thins_the_table(command: Command, config: Path) -> None:
    command("fit", "--config", config, "--run_dir", "run", "--trainer.log_every_n_steps=4")

    assert [row["step"] for row in rows("run") if "train_loss" in row] == [4, 8, 12]


def test_samples_are_a_table_in_which_nothing_is_markup() -> None:
    rows = [{"step": 5, "epoch": 1, "prompt": "a|b", "completion": " <b>\nc  "}]

    assert samples_table(rows).splitlines() == [
        "| epoch | step | prompt | completion |",
        "|---|---|---|---|",
        "| 1 | 5 | a&#124;b | &lt;b&gt; c |",
    ]


def tensorboard(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return events


def test_tensorboard_shows_losses_by_steps_and_by_tokens_and_the_settings(trained: Path) -> None:
    events = tensorboard(trained)
    rows = read_rows(trained / "metrics.jsonl")

    for name in ("train_loss", "val_loss", "train_eval_loss"):
        own = [row for row in rows if name in row]
        assert [event.step for event in events.Scalars(name)] == [row["step"] for row in own]
        by_tokens = events.Scalars(f"by_tokens/{name}")
        assert [event.step for event in by_tokens] == [row["tokens_seen"] for row in own]
        assert [event.value for event in by_tokens] == pytest.approx([row[name] for row in own])
    assert {"learning_rate", "gradient_norm", "tokens_seen", "tokens_per_second"} <= set(events.Tags()["scalars"])
    val_losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert events.Scalars("final/val_loss")[0].value == pytest.approx(val_losses[-1])
    assert events.Scalars("final/best_val_loss")[0].value == pytest.approx(min(val_losses))
    assert "_hparams_/experiment" in events.summary_metadata
    assert events.Tags()["images"] == ["loss"]
    table = events.Tensors("samples/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert len(table.splitlines()) == 2 + 3  # a row for each epoch


def test_a_resumed_run_shows_every_step_once(command: Command, config: Path, trained: Path) -> None:
    # The events of the whole run with the checkpoint of step 6: as after a kill.
    command("fit", "--config", config, "--run_dir", "part", "--trainer.max_steps=6")
    shutil.copytree(trained, "run")
    shutil.copy("part/checkpoints/last.ckpt", "run/checkpoints/last.ckpt")
    (events,) = Path("run").glob("events.*")
    with open(events, "ab") as file:
        file.write(b"cut short")

    result = command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert result.code == 0, result.err
    pieces, whole = tensorboard(Path("run")), tensorboard(trained)
    for name in ("train_loss", "by_tokens/train_loss", "val_loss", "final/val_loss"):
        got, expected = ([(one.step, one.value) for one in events.Scalars(name)] for events in (pieces, whole))
        assert got == expected


def test_early_stopping_waits_and_can_be_given_more_patience(command: Command, config: Path) -> None:
    arguments = ("fit", "--config", config, "--run_dir", "run", "--model.learning_rate=1e-30")  # changes no weight

    stopped = command(*arguments, "--early_stopping_patience=2")
    finished = command(*arguments, "--early_stopping_patience=2", "--resume")
    goes_on = command(*arguments, "--early_stopping_patience=50", "--resume")

    losses = [row["val_loss"] for row in read_rows(Path("run/metrics.jsonl")) if "val_loss" in row]
    evaluated = stopped.out.count("Val loss") - 2  # the first and the farewell name it too
    assert (stopped.code, finished.code, goes_on.code) == (0, 0, 0)
    assert "Stopping early: the validation loss has not fallen for 2 evaluations." in stopped.out
    assert evaluated == 3
    assert "finished; nothing is left to do" in finished.out
    assert "resumed     after step" in goes_on.out
    assert len(losses) > evaluated + 1


def test_lightnings_loggers_work_beside_tensorboard(command: Command, config: Path) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "csv"}}
    Path("logger.yaml").write_text(yaml.safe_dump({"trainer": {"logger": [logger], "max_epochs": 1}}))

    result = command("fit", "--config", config, "--config", "logger.yaml", "--run_dir", "run")

    assert result.code == 0, result.err
    (table,) = Path("csv").rglob("metrics.csv")
    with open(table) as file:
        logged = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
    assert logged == pytest.approx(
        [row["val_loss"] for row in read_rows(Path("run/metrics.jsonl")) if "val_loss" in row]
    )
    assert "context_length: 64" in table.with_name("hparams.yaml").read_text()
    assert list(Path("run").glob("events.*"))


def test_a_disk_that_is_full_for_tensorboard_is_said_in_one_line(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, written = RecordWriter.write, []

    def full(self: RecordWriter, data: bytes) -> None:
        written.append(len(data))
        if len(written) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    result = command("fit", "--config", config, "--run_dir", "run", "--trainer.enable_progress_bar=false")

    assert result.code == 1
    assert result.err == f"gpt_lightning: error: {Path('run').absolute()}: no space left on device\n"
