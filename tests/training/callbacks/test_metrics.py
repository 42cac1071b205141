from __future__ import annotations

import csv
import errno
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from compared import rows
from conftest import Result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt_lightning.files import read_rows

Command = Callable[..., Result]


def test_tensorboard_has_every_scalar_at_its_step(trained: Path) -> None:
    events = EventAccumulator(str(trained)).Reload()
    table = rows(trained)

    assert set(events.Tags()["scalars"]) == {
        "loss/train_eval_loss",
        "loss/train_loss",
        "loss/val_loss",
        "loss_by_tokens/train_eval_loss",
        "loss_by_tokens/train_loss",
        "loss_by_tokens/val_loss",
        "loss_final/best_val_loss",
        "loss_final/train_eval_loss",
        "loss_final/val_loss",
        "memorization/copied_share",
        "optimizer/gradient_norm",
        "optimizer/learning_rate",
        "perplexity/train_eval_perplexity",
        "perplexity/train_perplexity",
        "perplexity/val_perplexity",
        "throughput/tokens_per_second",
        "throughput/tokens_seen",
    }
    assert events.Tags()["tensors"] == ["samples/text_summary"]
    evaluated = [0, 2, 4, 6, 8, 10, 12, 14, 15]
    for name, steps in (("train_loss", range(1, 16)), ("val_loss", evaluated), ("train_eval_loss", evaluated)):
        scalars = events.Scalars(f"loss/{name}")
        assert [one.step for one in scalars] == list(steps)
        in_table = [row[name] for row in table if name in row]
        assert [one.value for one in scalars] == pytest.approx(in_table, rel=1e-6)
    assert [one.value for one in events.Scalars("throughput/tokens_seen")] == [56 * 64 * step for step in range(1, 16)]


def test_perplexity_is_exp_of_the_mean_loss(trained: Path) -> None:
    for row in rows(trained):
        for name in ("train", "train_eval", "val"):
            if f"{name}_loss" in row:
                assert row[f"{name}_perplexity"] == pytest.approx(math.exp(row[f"{name}_loss"]), rel=1e-12)


def test_metrics_are_logged_every_n_steps(command: Command, config: Path) -> None:
    command("fit", "--config", config, "--run_dir", "run", "--trainer.log_every_n_steps=4")

    assert [row["step"] for row in rows("run") if "train_loss" in row] == [4, 8, 12]


def test_mfu_is_the_share_of_the_peak_rate_that_the_model_uses(command: Command, config: Path) -> None:
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=2", "--peak_flops=1e9")

    width, context, vocabulary = 16, 64, 257
    in_products = 12_512 - (vocabulary + context) * width  # all parameters but the embeddings
    flops = 6 * in_products + 12 * width * context  # Chowdhery et al. 2022, appendix B
    table = rows("run")
    shares = [row["mfu"] for row in table if "train_loss" in row]
    assert shares == pytest.approx([row["tokens_per_second"] * flops / 1e9 for row in table if "train_loss" in row])
    logged = [event.value for event in tensorboard(Path("run")).Scalars("throughput/mfu")]
    assert logged == pytest.approx(shares, rel=1e-6)


def test_tensorboard_shows_losses_by_tokens_final_losses_and_samples(trained: Path) -> None:
    events = tensorboard(trained)
    table = rows(trained)

    for name in ("train_loss", "val_loss", "train_eval_loss"):
        own = [row for row in table if name in row]
        by_tokens = events.Scalars(f"loss_by_tokens/{name}")
        assert [event.step for event in by_tokens] == [row["tokens_seen"] for row in own]
        assert [event.value for event in by_tokens] == pytest.approx([row[name] for row in own])
    val_losses = [row["val_loss"] for row in table if "val_loss" in row]
    assert events.Scalars("loss_final/val_loss")[0].value == pytest.approx(val_losses[-1])
    assert events.Scalars("loss_final/best_val_loss")[0].value == pytest.approx(min(val_losses))
    assert "_hparams_/experiment" in events.summary_metadata
    assert events.Tags()["images"] == ["loss_figure"]
    samples = events.Tensors("samples/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert len(samples.splitlines()) == 2 + 3  # a row for each epoch


def test_tensorboard_shows_each_step_of_a_resumed_run_once(command: Command, config: Path, trained: Path) -> None:
    # As after a kill: events of all steps, but a checkpoint of step 6.
    command("fit", "--config", config, "--run_dir", "part", "--trainer.max_steps=6")
    shutil.copytree(trained, "run")
    shutil.copy("part/checkpoints/last.ckpt", "run/checkpoints/last.ckpt")
    (events,) = Path("run").glob("events.*")
    with open(events, "ab") as file:
        file.write(b"cut short")

    result = command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert result.code == 0, result.err
    pieces, whole = tensorboard(Path("run")), tensorboard(trained)
    for name in ("loss/train_loss", "loss_by_tokens/train_loss", "loss_final/val_loss", "memorization/copied_share"):
        got, expected = ([(one.step, one.value) for one in events.Scalars(name)] for events in (pieces, whole))
        assert got == expected
    got, expected = (events.Tensors("samples/text_summary")[-1].tensor_proto for events in (pieces, whole))
    assert got == expected  # all samples, also those before step 6


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


def test_a_full_disk_during_tensorboard_logging_is_reported_in_one_line(
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


def tensorboard(run: Path) -> EventAccumulator:
    """Return all TensorBoard events of a run."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return events
