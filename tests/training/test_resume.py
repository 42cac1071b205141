from __future__ import annotations

import gc
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import assert_equal_weights, flip_a_bit, rows_without_times
from conftest import STORY, Result
from lightning.pytorch import Trainer

from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.files import read_rows
from gpt_lightning.training import results
from gpt_lightning.training.callbacks.checkpointing import Checkpointing

Command = Callable[..., Result]
draw_figure = results.draw_figure  # before a fixture replaces it


def test_a_run_keeps_its_validation_text_by_path_and_content(command: Command, config: Path, trained: Path) -> None:
    text = STORY.read_text()
    Path("val.txt").write_text(text[:3000])
    arguments = ("fit", "--config", config, "--run_dir", "run", "--data.val_text=val.txt")
    command(*arguments, "--trainer.max_epochs=1")

    resumed = command(*arguments, "--resume", "--trainer.max_epochs=2")
    shown = command("validate", "--ckpt_path", "run/checkpoints/last.ckpt")
    limited = command("validate", "--ckpt_path", "run/checkpoints/last.ckpt", "--trainer.limit_val_batches=1")
    Path("val.txt").write_text(text[:3001])
    other = command(*arguments, "--resume", "--trainer.max_epochs=3")

    assert resumed.code == 0
    assert shown.out.startswith("all of val.txt: loss ")
    assert "over 2,944 tokens in 46 windows of 64; 55 trailing tokens are unused\n" in shown.out
    assert "over 2,944 tokens" in limited.out  # 46 windows are one batch of 56
    assert other.code == 2
    assert "val.txt: is not the validation text that run/checkpoints/last.ckpt was evaluated on" in other.error


def test_resuming_with_another_text_in_the_yaml_warns(command: Command, config: Path) -> None:
    Path("other.txt").write_text(STORY.read_text()[:19000])
    command("fit", "--config", config, "--run_dir", "run", "--data.text=other.txt", "--trainer.max_epochs=1")

    result = command("fit", "--config", config, "--run_dir", "run", "--resume", "--trainer.max_epochs=2")

    assert result.code == 0
    assert f"warning: using {Path('other.txt').absolute()}, the text of run/checkpoints/last.ckpt" in result.err


def test_a_run_that_max_time_ended_is_finished(command: Command, config: Path) -> None:
    arguments = ("fit", "--config", config, "--run_dir", "run", "--trainer.max_time=00:00:00:01")
    first = command(*arguments, "--trainer.max_epochs=100000")

    result = command(*arguments, "--trainer.max_epochs=100000", "--resume")

    step = torch.load("run/checkpoints/last.ckpt")["global_step"]
    assert f"Stopped by trainer.max_time after step {step}. To resume with more time:\n  python -m " in first.out
    assert result.code == 0
    assert "finished; nothing to do: trainer.max_time or a callback stops it at once" in result.out


def test_missing_checkpoints_are_reported(command: Command, config: Path) -> None:
    arguments = ("fit", "--config", config, "--run_dir", "run", "--save_every=6")
    assert "Stopped by" not in command(*arguments).out
    steps = read_rows(Path("run/metrics.jsonl"))[-1]["step"]

    Path("run/checkpoints/last.ckpt").unlink()
    from_previous = command(*arguments, "--resume", "--trainer.max_epochs=4")
    for name in ("last.ckpt", "prev.ckpt"):
        Path("run/checkpoints", name).unlink()
    from_none = command(*arguments, "--resume")

    assert from_previous.code == from_none.code == 0
    missing = "run/checkpoints/last.ckpt: no such file; resuming from the previous checkpoint, prev.ckpt"
    assert from_previous.err.startswith(f"gpt_lightning: warning: {missing}\n")
    again = f"run: has no checkpoint to resume from; restarting from step 0 ({steps // 3 * 4} steps are lost)"
    assert from_none.err.startswith(f"gpt_lightning: warning: {again}\n")


def test_a_finished_run_resumes_with_more_epochs(command: Command, config: Path, trained: Path) -> None:
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_epochs", 2)

    result = command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert result.code == 0
    assert rows_without_times("run") == rows_without_times(trained)
    assert Path("run/samples.jsonl").read_text() == (trained / "samples.jsonl").read_text()
    again = command("fit", "--config", config, "--run_dir", "run", "--resume")
    assert (again.code, again.err) == (0, "")
    assert "finished; nothing is left to do" in again.out


def test_logs_are_cut_back_to_the_checkpoint(command: Command, config: Path, trained: Path) -> None:
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps", 4)
    with open("run/metrics.jsonl", "a") as file:
        file.write('{"step": 5, "tokens_seen": 1, "train_loss": 1.0}\n{"step": 6, "tok')

    command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert rows_without_times("run") == rows_without_times(trained)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--data.batch_size=28", "has data.batch_size 56, the settings say 28"),
        ("--model.learning_rate=0.02", "has model.learning_rate 0.01, the settings say 0.02"),
        ("--seed_everything=7", "has seed_everything 123, the settings say 7"),
        ("--trainer.accumulate_grad_batches=2", "has trainer.accumulate_grad_batches 1, the settings say 2"),
        ("--trainer.precision=bf16-mixed", "has trainer.precision 32-true, the settings say bf16-mixed"),
        ("--init_from=other.ckpt", "has no init_from, the settings say "),
        ("--trainer.gradient_clip_val=0.5", "has no trainer.gradient_clip_val, the settings say 0.5"),
    ],
)
def test_resuming_with_other_settings_is_refused(
    command: Command, config: Path, trained: Path, tmp_path: Path, setting: str, message: str
) -> None:
    shutil.copytree(trained, "run")
    shutil.copy(trained / "checkpoints/best.ckpt", "other.ckpt")

    result = command("fit", "--config", config, "--run_dir", "run", "--resume", "--trainer.max_epochs=4", setting)

    assert result.code == 2
    assert message in result.error


def test_resuming_without_a_setting_of_the_run_is_refused(command: Command, config: Path) -> None:
    arguments = ("fit", "--config", config, "--run_dir", "run", "--resume")
    command(*arguments, "--trainer.max_steps=1", "--trainer.gradient_clip_val=0.5")

    result = command(*arguments, "--trainer.gradient_clip_val=null")

    assert result.code == 2
    assert result.error.endswith("last.ckpt has trainer.gradient_clip_val 0.5, the settings have none")


def test_resuming_from_incomplete_checkpoints_is_refused(command: Command, config: Path, trained: Path) -> None:
    def forget(checkpoint: dict[str, Any]) -> None:
        checkpoint["optimizer_states"] = [{"state": {}, "param_groups": []}]

    shutil.copytree(trained, "run")
    last = Path("run/checkpoints/last.ckpt")
    last.write_bytes((trained / "checkpoints/best.ckpt").read_bytes())
    weights_only = command("fit", "--config", config, "--run_dir", "run", "--resume", "--trainer.max_epochs", 4)
    everything = torch.load(trained / "checkpoints/last.ckpt")
    forget(everything)
    torch.save(everything, last)
    unfit = command("fit", "--config", config, "--run_dir", "run", "--resume", "--trainer.max_epochs", 4)

    everything.pop("loops")
    torch.save(everything, last)
    torn = command("fit", "--config", config, "--run_dir", "run", "--resume", "--trainer.max_epochs", 4)

    assert (weights_only.code, unfit.code, torn.code) == (2, 2, 2)
    assert torn.error == (
        "run/checkpoints/last.ckpt: loops is missing or of the wrong type; "
        "no other checkpoint of the run is valid, remove it to train from the start"
    )
    assert "last.ckpt: has weights but no optimizer state; resume from a run's last.ckpt" in weights_only.error
    assert "last.ckpt: a run cannot be resumed from it (ValueError: loaded state dict has a different" in unfit.error


def test_resuming_with_another_text_is_refused(command: Command, config: Path, trained: Path) -> None:
    shutil.copytree(trained, "run")
    Path("other.txt").write_text("another text " * 2000)

    other = ["--data.text", "other.txt", "--trainer.max_epochs", 4]
    result = command("fit", "--config", config, "--run_dir", "run", "--resume", *other)

    assert result.code == 2
    assert "is not the text that run/checkpoints/last.ckpt was trained on" in result.error


def test_a_run_resumes_from_the_previous_checkpoint_if_the_newest_is_damaged(
    command: Command, config: Path, trained: Path
) -> None:
    arguments = ("fit", "--config", config, "--run_dir", "run", "--save_every=4")
    command(*arguments, "--trainer.max_steps=8")
    steps = [torch.load(f"run/checkpoints/{name}.ckpt")["global_step"] for name in ("prev", "last")]
    assert steps == [4, 8]
    flip_a_bit(Path("run/checkpoints/last.ckpt"))

    result = command(*arguments, "--resume")

    assert result.code == 0, result.err
    assert "resumed     after step 4" in result.out
    warning = "warning: run/checkpoints/last.ckpt: checksum mismatch"
    assert [warning in line for line in result.err.splitlines()].count(True) == 1
    assert "resuming from the previous checkpoint, prev.ckpt" in result.err
    assert_equal_weights(trained, Path("run"))
    assert sorted(os.listdir("run/checkpoints")) == ["best.ckpt", "last.ckpt", "last.damaged", "prev.ckpt"]
    assert torch.load("run/checkpoints/prev.ckpt")["global_step"] == 12


def test_a_run_with_only_damaged_checkpoints_does_not_restart(command: Command, config: Path) -> None:
    arguments = ("fit", "--config", config, "--run_dir", "run", "--save_every=4")
    command(*arguments, "--trainer.max_steps=8")
    for name in ("last", "prev"):
        flip_a_bit(Path(f"run/checkpoints/{name}.ckpt"))

    result = command(*arguments, "--resume")

    assert result.code == 2
    assert result.error.startswith("run/checkpoints/last.ckpt: checksum mismatch")


@pytest.mark.parametrize("part", ["state_dict", "optimizer_states"])
def test_a_run_resumes_from_the_previous_checkpoint_if_the_newest_is_not_finite(
    command: Command, config: Path, trained: Path, part: str
) -> None:
    arguments = ("fit", "--config", config, "--run_dir", "run", "--save_every=4")
    command(*arguments, "--trainer.max_steps=8")
    last = Path("run/checkpoints/last.ckpt")
    content = torch.load(last)
    if part == "state_dict":
        content["state_dict"]["model.final_norm.bias"][3] = torch.nan
        name = "state_dict.model.final_norm.bias"
    else:
        content["optimizer_states"][0]["state"][2]["exp_avg"][3] = torch.inf
        name = "optimizer_states[0].state.2.exp_avg"
    torch.save(content, last)

    result = command(*arguments, "--resume")

    assert result.code == 0, result.err
    (warning,) = [line for line in result.err.splitlines() if "warning" in line]
    assert warning == (
        f"gpt_lightning: warning: run/checkpoints/last.ckpt: {name} is not finite, so a run cannot be resumed from it; "
        "resuming from the previous checkpoint, prev.ckpt"
    )
    assert_equal_weights(trained, Path("run"))


def test_a_run_that_restarts_without_last_ckpt_keeps_the_old_best_ckpt(command: Command, config: Path) -> None:
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=2")
    folder = Path("run/checkpoints")
    lost = (folder / "best.ckpt").read_bytes()
    for name in ("last.ckpt", "prev.ckpt"):
        (folder / name).unlink(missing_ok=True)

    result = command("fit", "--config", config, "--run_dir", "run", "--resume", "--trainer.max_steps=1")

    assert "has no last.ckpt to resume from and restarts; its best.ckpt is kept as best.kept" in result.err
    assert (folder / "best.kept").read_bytes() == lost


def test_missing_metrics_are_reported(command: Command, config: Path) -> None:
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=2")
    Path("run/metrics.jsonl").unlink()

    result = command("fit", "--config", config, "--run_dir", "run", "--resume", "--trainer.max_steps=3")

    assert result.code == 0
    assert "metrics.jsonl: has no row up to step 2; the curves start there" in result.err


def test_resuming_with_another_text_needs_allow_data_change(command: Command, config: Path) -> None:
    Path("other.txt").write_text(STORY.read_text()[:15000])
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_epochs=1", "--save_every=2")
    other = ("--resume", "--trainer.max_epochs=2", "--data.text", "other.txt")

    refused = command("fit", "--config", config, "--run_dir", "run", *other)
    result = command("fit", "--config", config, "--run_dir", "run", *other, "--allow_data_change")
    again = command("validate", "--ckpt_path", "run/checkpoints/last.ckpt")

    assert refused.code == 2
    assert refused.error.endswith("; to continue with this text, give --allow_data_change")
    assert result.code == 0, result.err
    assert torch.load("run/checkpoints/last.ckpt")["gpt_lightning"]["text"]["characters"] == 15000
    assert "validation split of other.txt" in again.out
    command("fit", "--config", config, "--run_dir", "inside", "--trainer.max_steps=2")
    inside = command("fit", "--config", config, "--run_dir", "inside", *other, "--allow_data_change")
    assert inside.code == 2
    assert "was saved 112 windows into an epoch; --allow_data_change needs one from the end of an epoch" in inside.error


def test_a_text_change_resets_the_best_loss_and_early_stopping(command: Command, config: Path) -> None:
    noise = random.Random(1)
    Path("noise.txt").write_text("".join(chr(noise.randrange(33, 127)) for _ in range(15000)))
    fit = ("fit", "--config", config, "--run_dir", "run", "--early_stopping_patience=3")
    command(*fit, "--trainer.max_epochs=3")
    result = command(*fit, "--resume", "--trainer.max_epochs=5", "--data.text=noise.txt", "--allow_data_change")

    rows = read_rows(Path("run/metrics.jsonl"))
    before = min(row["val_loss"] for row in rows if "val_loss" in row and row["step"] <= 15)
    after = {row["val_loss"]: row["step"] for row in rows if "val_loss" in row and row["step"] > 15}
    assert min(after) > before
    assert f"best.ckpt is of step {after[min(after)]} (Val loss {min(after):.3f})" in result.out
    assert read_checkpoint("run/checkpoints/best.ckpt")["gpt_lightning"]["text"]["name"].endswith("noise.txt")


def test_a_resumed_run_does_not_keep_its_checkpoint_mapped(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=2")
    save, maps = Checkpointing._save, []

    def recording(self: Checkpointing, trainer: Trainer) -> None:
        gc.collect()
        maps.append([line for line in Path("/proc/self/maps").read_text().splitlines() if "run/checkpoints" in line])
        save(self, trainer)

    monkeypatch.setattr(Checkpointing, "_save", recording)
    command("fit", "--config", config, "--run_dir", "run", "--resume", "--trainer.max_steps=4", "--save_every=1")

    assert maps == [[], []]


def test_resuming_a_finished_run_draws_missing_figures(
    command: Command, config: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "draw_figure", draw_figure)
    shutil.copytree(trained, "run")
    for name in ("loss.pdf", "loss.png"):
        Path("run", name).unlink()

    result = command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert (result.code, result.out) == (
        0,
        "run: finished; nothing is left to do within trainer.max_epochs, "
        "trainer.max_steps and early_stopping_patience\n",
    )
    assert Path("run/loss.pdf").read_bytes() == (trained / "loss.pdf").read_bytes()
    assert Path("run/loss.png").read_bytes() == (trained / "loss.png").read_bytes()


def test_resuming_a_finished_run_without_a_valid_best_ckpt_fails(command: Command, config: Path, trained: Path) -> None:
    shutil.copytree(trained, "run")
    best = Path("run/checkpoints/best.ckpt")
    flip_a_bit(best)
    damaged = command("fit", "--config", config, "--run_dir", "run", "--resume")
    best.unlink()
    missing = command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert (damaged.code, missing.code) == (2, 2)
    assert damaged.error.startswith(f"run: finished, but {best}: checksum mismatch in data/")
    assert damaged.error.endswith("; its last.ckpt is intact")
    assert missing.error == f"run: finished, but {best}: no such file; its last.ckpt is intact"
