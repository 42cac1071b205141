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
from conftest import STORY, Result
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import gpt_lightning
from gpt_lightning.checkpoints.compare import first_difference
from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.checkpoints.loading import check_weights
from gpt_lightning.errors import InputError
from gpt_lightning.files import read_rows
from gpt_lightning.training.callbacks.checkpointing import AtomicCheckpointIO, Checkpointing
from gpt_lightning.training.callbacks.exact_resume import get_rng_states, set_rng_states
from gpt_lightning.training.module import GPTModule
from gpt_lightning.training.optimizers import learning_rate_factor

Command = Callable[..., Result]

# The names under which weights are stored: whoever changes one breaks every checkpoint there is.
WEIGHTS = {
    "model.tok_emb.weight": (257, 16),
    "model.pos_emb.weight": (64, 16),
    "model.trf_blocks.0.att.qkv.weight": (48, 16),
    "model.trf_blocks.0.att.out_proj.weight": (16, 16),
    "model.trf_blocks.0.att.out_proj.bias": (16,),
    "model.trf_blocks.0.ff.0.weight": (64, 16),
    "model.trf_blocks.0.ff.0.bias": (64,),
    "model.trf_blocks.0.ff.2.weight": (16, 64),
    "model.trf_blocks.0.ff.2.bias": (16,),
    "model.trf_blocks.0.norm1.weight": (16,),
    "model.trf_blocks.0.norm1.bias": (16,),
    "model.trf_blocks.0.norm2.weight": (16,),
    "model.trf_blocks.0.norm2.bias": (16,),
    "model.final_norm.weight": (16,),
    "model.final_norm.bias": (16,),
    "model.out_head.weight": (257, 16),
}
DESCRIPTION = {
    "epoch",
    "global_step",
    "pytorch-lightning_version",
    "state_dict",
    "hyper_parameters",
    "datamodule_hyper_parameters",
    "gpt_lightning",
}
EVERYTHING = DESCRIPTION | {
    "callbacks",
    "hparams_name",
    "datamodule_hparams_name",
    "loops",
    "lr_schedulers",
    "optimizer_states",
    "rng_states",
    "TextDataModule",
}


def test_the_contract_of_a_checkpoint(trained: Path) -> None:
    best, last = (torch.load(trained / f"checkpoints/{name}.ckpt", weights_only=True) for name in ("best", "last"))

    assert set(best) == DESCRIPTION
    assert set(last) <= EVERYTHING
    assert set(last) >= EVERYTHING - {"hparams_name", "datamodule_hparams_name"}
    assert {key: tuple(tensor.shape) for key, tensor in last["state_dict"].items()} == WEIGHTS
    assert best["state_dict"].keys() == WEIGHTS.keys()
    own = last["gpt_lightning"]
    assert own["format"] == 1
    assert own["versions"]["gpt_lightning"] == gpt_lightning.__version__
    assert own["text"]["name"] == "the-lamp-at-low-water.txt"
    assert own["progress"] == {"epochs": 3, "steps": 15, "tokens_seen": 15 * 56 * 64}
    assert own["fit"]["trainer.precision"] == "32-true"
    assert last["hyper_parameters"]["vocab_size"] == 257
    assert last["datamodule_hyper_parameters"]["tokenizer"] == "bytes"
    assert last["TextDataModule"] == {"epoch": 3, "batches": 0}


def test_a_finished_run_keeps_best_and_last_only(trained: Path) -> None:
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def changed(trained: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    checkpoint = torch.load(trained / "checkpoints/best.ckpt")
    change(checkpoint)
    torch.save(checkpoint, target)
    return target


def test_weights_that_are_not_finite_or_do_not_fit_are_refused(trained: Path, tmp_path: Path) -> None:
    def spoil(checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"]["model.final_norm.bias"][0] = torch.nan

    def enlarge(checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"]["model.final_norm.bias"] = torch.zeros(17)

    def deepen(checkpoint: dict[str, Any]) -> None:
        checkpoint["hyper_parameters"]["n_layers"] = 10**9

    for change, message in (
        (spoil, "non-finite weights"),
        (enlarge, r"weights do not fit the model \(final_norm.bias\)"),
        (deepen, "has weights of 1 layers, its settings say 1000000000"),
    ):
        checkpoint = read_checkpoint(changed(trained, tmp_path / "a.ckpt", change))
        with pytest.raises(InputError, match=message):
            check_weights(checkpoint, "a.ckpt")


def test_random_states_come_back_from_plain_data(tmp_path: Path) -> None:
    import random

    import numpy as np

    torch.save(get_rng_states(), tmp_path / "states")
    expected = (torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist())

    set_rng_states(torch.load(tmp_path / "states", weights_only=True))

    assert (torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist()) == expected


def strip_times(run: str | Path) -> list[str]:
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    return [line.split(', "tokens_per_second"')[0] for line in lines]


@pytest.mark.parametrize("stops", [[5], [1, 2, 4, 5, 6, 9, 10, 14]])
def test_a_run_in_pieces_equals_the_run_in_one(command: Command, config: Path, trained: Path, stops: list[int]) -> None:
    for number, step in enumerate([*stops, -1]):
        arguments = ["--resume"] if number else []
        result = command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps", step, *arguments)
        assert result.code == 0, result.err

    whole = torch.load(trained / "checkpoints/last.ckpt")
    pieces = torch.load("run/checkpoints/last.ckpt")
    for key, tensor in whole["state_dict"].items():
        assert torch.equal(pieces["state_dict"][key], tensor)
    train_rows = [line for line in strip_times("run") if "train_loss" in line]
    assert train_rows == [line for line in strip_times(trained) if "train_loss" in line]
    assert pieces["gpt_lightning"]["progress"] == whole["gpt_lightning"]["progress"]


def test_a_run_in_pieces_keeps_to_its_schedule_of_accumulation(command: Command, config: Path) -> None:
    schedule = "--trainer.callbacks=[{class_path: GradientAccumulationScheduler, init_args: {scheduling: {1: 2}}}]"
    command("fit", "--config", config, "--run_dir", "whole", schedule, "--trainer.max_epochs=2")
    for steps in (4, 5, 6, 7, 8):  # of 5 in the first epoch and 3 in the second
        command("fit", "--config", config, "--run_dir", "run", "--resume", schedule, f"--trainer.max_steps={steps}")

    assert [row["step"] for row in read_rows(Path("whole/metrics.jsonl")) if "train_loss" in row] == list(range(1, 9))
    assert_equal_weights(Path("whole"), Path("run"))


@pytest.mark.parametrize("steps", [2, 3])
def test_monitors_of_lightning_keep_to_the_steps(command: Command, config: Path, steps: int) -> None:
    arguments = ("fit", "--config", config, "--run_dir", "run", "--evaluate_every=3", "--save_every=1")
    monitor = "--trainer.callbacks=[{class_path: LearningRateMonitor, init_args: {logging_interval: step}}]"
    command(*arguments, f"--trainer.max_steps={steps + 1}")
    os.replace("run/checkpoints/prev.ckpt", "run/checkpoints/last.ckpt")  # saved after a batch, or an evaluation

    command(*arguments, monitor, "--resume", "--trainer.max_epochs=2")

    rates = EventAccumulator("run").Reload().Scalars("lr-AdamW")
    assert [one.step for one in rates] == list(range(steps, 10))


def test_a_run_with_more_epochs_follows_the_longer_schedule(command: Command, config: Path) -> None:
    schedule = ("--model.warmup_steps=2", "--model.min_learning_rate=0.001")
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_epochs=1", *schedule)
    result = command("fit", "--config", config, "--run_dir", "run", "--resume", *schedule)

    rates = [row["learning_rate"] for row in read_rows(Path("run/metrics.jsonl")) if "learning_rate" in row]
    expected = [0.01 * learning_rate_factor(step, 2, 5 if step < 5 else 15, 0.1) for step in range(15)]
    assert result.code == 0
    assert rates == pytest.approx(expected, rel=1e-12)


def test_the_validation_text_is_remembered_by_path_and_content(command: Command, config: Path, trained: Path) -> None:
    text = STORY.read_text()
    Path("val.txt").write_text(text[:3000])
    arguments = ("fit", "--config", config, "--run_dir", "run", "--data.val_text=val.txt")
    command(*arguments, "--trainer.max_epochs=1")

    goes_on = command(*arguments, "--resume", "--trainer.max_epochs=2")
    shown = command("validate", "--ckpt_path", "run/checkpoints/last.ckpt")
    limited = command("validate", "--ckpt_path", "run/checkpoints/last.ckpt", "--trainer.limit_val_batches=1")
    Path("val.txt").write_text(text[:3001])
    other = command(*arguments, "--resume", "--trainer.max_epochs=3")

    assert goes_on.code == 0
    assert shown.out.startswith("all of val.txt: loss ")
    assert "over 2,944 tokens in 46 windows of 64; no window predicts the last 55\n" in shown.out
    assert "over 2,944 tokens" in limited.out  # 46 windows are one batch of 56
    assert other.code == 2
    assert "val.txt: is not the data.val_text that run/checkpoints/last.ckpt was evaluated on" in other.error


def test_a_limited_evaluation_says_over_how_much(command: Command, trained: Path) -> None:
    arguments = ("--data.batch_size=4", "--trainer.limit_val_batches=2")

    shown = command("validate", "--ckpt_path", trained / "checkpoints/last.ckpt", *arguments)

    assert shown.out.endswith("over 512 tokens in 8 windows of 64; 23 windows left out by a limit\n")


def test_another_text_in_the_yaml_gets_a_warning_when_resumed(command: Command, config: Path) -> None:
    Path("other.txt").write_text(STORY.read_text()[:19000])
    command("fit", "--config", config, "--run_dir", "run", "--data.text=other.txt", "--trainer.max_epochs=1")

    result = command("fit", "--config", config, "--run_dir", "run", "--resume", "--trainer.max_epochs=2")

    assert result.code == 0
    assert f"warning: using {Path('other.txt').absolute()}, the text of run/checkpoints/last.ckpt" in result.err


def test_a_run_that_its_time_ended_is_finished(command: Command, config: Path) -> None:
    arguments = ("fit", "--config", config, "--run_dir", "run", "--trainer.max_time=00:00:00:01")
    first = command(*arguments, "--trainer.max_epochs=100000")

    result = command(*arguments, "--trainer.max_epochs=100000", "--resume")

    step = torch.load("run/checkpoints/last.ckpt")["global_step"]
    assert f"Stopped by trainer.max_time after step {step}. To resume with more time:\n  python -m " in first.out
    assert result.code == 0
    assert "finished; nothing to do: trainer.max_time or a callback stops it at once" in result.out


def test_checkpoints_that_somebody_took_away_are_missed(command: Command, config: Path) -> None:
    arguments = ("fit", "--config", config, "--run_dir", "run", "--save_every=6")
    assert "Stopped by" not in command(*arguments).out
    steps = read_rows(Path("run/metrics.jsonl"))[-1]["step"]

    Path("run/checkpoints/last.ckpt").unlink()
    from_previous = command(*arguments, "--resume", "--trainer.max_epochs=4")
    for name in ("last.ckpt", "prev.ckpt"):
        Path("run/checkpoints", name).unlink()
    from_none = command(*arguments, "--resume")

    assert from_previous.code == from_none.code == 0
    missing = "run/checkpoints/last.ckpt: no such file; resuming from prev.ckpt, the one before"
    assert from_previous.err.startswith(f"gpt_lightning: warning: {missing}\n")
    again = f"run: has no checkpoint to resume from; restarting from step 0, {steps // 3 * 4} steps are lost"
    assert from_none.err.startswith(f"gpt_lightning: warning: {again}\n")


@pytest.mark.parametrize(
    "ending",
    ["monitor: train_loss, patience: 1", "monitor: val_loss, patience: 1", "monitor: val_loss, stopping_threshold: 99"],
)
def test_a_run_that_a_callback_ended_is_finished(command: Command, config: Path, ending: str) -> None:
    stopping = f"--trainer.callbacks=[{{class_path: EarlyStopping, init_args: {{{ending}}}}}]"
    arguments = ("--run_dir", "run", stopping, "--model.learning_rate=1", "--evaluate_every=3")
    first = command("fit", "--config", config, *arguments, "--trainer.max_epochs=9")
    before = Path("run/checkpoints/last.ckpt").read_bytes()

    again = command("fit", "--config", config, *arguments, "--trainer.max_epochs=9", "--resume")

    assert (first.code, again.code) == (0, 0), first.err + again.err
    assert again.out.endswith("run: finished; nothing to do: trainer.max_time or a callback stops it at once\n")
    assert Path("run/checkpoints/last.ckpt").read_bytes() == before


def test_a_run_that_a_callback_ended_goes_on_with_more_patience_and_on_another_text(
    command: Command, config: Path
) -> None:
    def fit(patience: int, *arguments: str) -> int:
        """The step at which it ends."""
        ending = f"monitor: val_loss, patience: {patience}, min_delta: 99"
        stopping = f"--trainer.callbacks=[{{class_path: EarlyStopping, init_args: {{{ending}}}}}]"
        always = ("--run_dir=run", stopping, "--evaluate_every=5", "--trainer.max_epochs=9")
        result = command("fit", "--config", config, *always, *arguments)
        assert result.code == 0, result.err
        return int(read_rows(Path("run/metrics.jsonl"))[-1]["step"])

    assert fit(1) == 10  # the first evaluation is always the best so far
    assert fit(1, "--resume") == 10
    assert fit(2, "--resume") == 15
    Path("other.txt").write_text(STORY.read_text().replace("lamp", "lantern"))
    assert fit(2, "--resume", "--allow_data_change", "--data.text=other.txt") > 15


def test_a_finished_run_goes_on_when_it_is_given_more_epochs(command: Command, config: Path, trained: Path) -> None:
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_epochs", 2)

    result = command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert result.code == 0
    assert strip_times("run") == strip_times(trained)
    assert Path("run/samples.jsonl").read_text() == (trained / "samples.jsonl").read_text()
    again = command("fit", "--config", config, "--run_dir", "run", "--resume")
    assert (again.code, again.err) == (0, "")
    assert "finished; nothing is left to do" in again.out


def test_logs_after_the_checkpoint_are_cut(command: Command, config: Path, trained: Path) -> None:
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps", 4)
    with open("run/metrics.jsonl", "a") as file:
        file.write('{"step": 5, "tokens_seen": 1, "train_loss": 1.0}\n{"step": 6, "tok')

    command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert strip_times("run") == strip_times(trained)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--data.batch_size=28", "has data.batch_size 56, the settings say 28"),
        ("--model.learning_rate=0.02", "has model.learning_rate 0.01, the settings say 0.02"),
        ("--seed_everything=7", "has seed_everything 123, the settings say 7"),
        ("--trainer.accumulate_grad_batches=2", "has trainer.accumulate_grad_batches 1, the settings say 2"),
        ("--trainer.precision=bf16-mixed", "has trainer.precision 32-true, the settings say bf16-mixed"),
    ],
)
def test_a_resumed_run_keeps_what_makes_it(
    command: Command, config: Path, trained: Path, tmp_path: Path, setting: str, message: str
) -> None:
    shutil.copytree(trained, "run")

    result = command("fit", "--config", config, "--run_dir", "run", "--resume", "--trainer.max_epochs=4", setting)

    assert result.code == 2
    assert message in result.error


def test_a_run_does_not_go_on_from_weights_alone_or_from_what_cannot_be_restored(
    command: Command, config: Path, trained: Path
) -> None:
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
    assert torn.error == "run/checkpoints/last.ckpt: loops is missing or of the wrong type"
    assert "last.ckpt: has weights but no optimizer state; resume from a run's last.ckpt" in weights_only.error
    assert "last.ckpt: a run cannot be resumed from it (ValueError: loaded state dict has a different" in unfit.error


def test_a_resumed_run_keeps_to_its_text(command: Command, config: Path, trained: Path) -> None:
    shutil.copytree(trained, "run")
    Path("other.txt").write_text("another text " * 2000)

    other = ["--data.text", "other.txt", "--trainer.max_epochs", 4]
    result = command("fit", "--config", config, "--run_dir", "run", "--resume", *other)

    assert result.code == 2
    assert "is not the text that run/checkpoints/last.ckpt was trained on" in result.error


# ---- the newest good checkpoint, and other texts


def flip_a_bit(path: Path) -> None:
    """In the token embedding."""
    content = path.read_bytes()
    weights = torch.load(path)["state_dict"]["model.tok_emb.weight"].numpy().tobytes()
    place = content.index(weights) + 100
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(command: Command, config: Path, trained: Path) -> None:
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
    assert "resuming from prev.ckpt, the one before" in result.err
    assert_equal_weights(trained, Path("run"))
    assert sorted(os.listdir("run/checkpoints")) == ["best.ckpt", "last.ckpt", "last.damaged", "prev.ckpt"]
    assert torch.load("run/checkpoints/prev.ckpt")["global_step"] == 12


def assert_equal_weights(one: Path, other: Path) -> None:
    left, right = (torch.load(run / "checkpoints/last.ckpt")["state_dict"] for run in (one, other))
    assert first_difference(left, right, "weights") is None


def test_a_run_all_of_whose_checkpoints_are_damaged_is_not_begun_anew(command: Command, config: Path) -> None:
    arguments = ("fit", "--config", config, "--run_dir", "run", "--save_every=4")
    command(*arguments, "--trainer.max_steps=8")
    for name in ("last", "prev"):
        flip_a_bit(Path(f"run/checkpoints/{name}.ckpt"))

    result = command(*arguments, "--resume")

    assert result.code == 2
    assert result.error.startswith("run/checkpoints/last.ckpt: checksum mismatch")


def test_saves_come_by_minutes_too(command: Command, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = Checkpointing._save

    def noting(self: Checkpointing, trainer: Trainer) -> None:
        saved.append(trainer.global_step)
        save(self, trainer)

    monkeypatch.setattr(Checkpointing, "_save", noting)
    command("fit", "--config", config, "--run_dir", "always", "--save_minutes=1e-9")
    command("fit", "--config", config, "--run_dir", "both", "--save_minutes=60", "--save_every=6")

    assert saved == [*range(1, 16), 6, 12, 15]


def test_another_text_is_trained_on_only_when_that_is_typed(command: Command, config: Path) -> None:
    Path("other.txt").write_text(STORY.read_text()[:15000])
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_epochs=1", "--save_every=2")
    other = ("--resume", "--trainer.max_epochs=2", "--data.text", "other.txt")

    refused = command("fit", "--config", config, "--run_dir", "run", *other)
    result = command("fit", "--config", config, "--run_dir", "run", *other, "--allow_data_change")
    again = command("validate", "--ckpt_path", "run/checkpoints/last.ckpt")

    assert refused.code == 2
    assert refused.error.endswith("; --allow_data_change trains the run on this one")
    assert result.code == 0, result.err
    assert torch.load("run/checkpoints/last.ckpt")["gpt_lightning"]["text"]["characters"] == 15000
    assert "validation split of other.txt" in again.out
    command("fit", "--config", config, "--run_dir", "inside", "--trainer.max_steps=2")
    inside = command("fit", "--config", config, "--run_dir", "inside", *other, "--allow_data_change")
    assert inside.code == 2
    assert "is 2 batches into an epoch; --allow_data_change resumes from the end of an epoch only" in inside.error


def test_losses_of_another_text_are_forgotten(command: Command, config: Path) -> None:
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


def test_a_resumed_run_lets_go_of_the_file_it_went_on_from(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=2")
    save, maps = Checkpointing._save, []

    def noting(self: Checkpointing, trainer: Trainer) -> None:
        gc.collect()
        maps.append([line for line in Path("/proc/self/maps").read_text().splitlines() if "run/checkpoints" in line])
        save(self, trainer)

    monkeypatch.setattr(Checkpointing, "_save", noting)
    command("fit", "--config", config, "--run_dir", "run", "--resume", "--trainer.max_steps=4", "--save_every=1")

    assert maps == [[], []]


@pytest.mark.parametrize("command_line", [("predict", "--ckpt_path", "pipe"), ("fit", "--config", "pipe")])
def test_a_pipe_is_neither_checkpoint_nor_config(command: Command, in_tmp: Path, command_line: tuple[str, ...]) -> None:
    os.mkfifo("pipe")

    result = command(*command_line)

    assert (result.code, result.error) == (2, "pipe: must be a regular file")


def test_a_kill_between_the_two_names_of_a_save_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io, last, previous = AtomicCheckpointIO(), tmp_path / "last.ckpt", tmp_path / "prev.ckpt"
    names = {"previous": previous}
    io.save_checkpoint({"step": 1}, last, names)
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"step": 2}, last, names)
    monkeypatch.setattr(os, "replace", replace)
    assert torch.load(previous) == {"step": 1}  # what a run goes on from
    for step in (2, 3, 4):
        io.save_checkpoint({"step": step}, last, names)

    assert [torch.load(path)["step"] for path in (previous, last)] == [3, 4]
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "prev.ckpt"]


def test_a_run_whose_checkpoint_cannot_be_read_back_does_not_end_with_0(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = AtomicCheckpointIO.save_checkpoint

    def save_badly(
        self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Path, storage_options: Any = None
    ) -> None:
        save(self, checkpoint, path, storage_options)
        flip_a_bit(path)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save_badly)

    result = command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=1")

    assert result.code == 1
    assert result.error.endswith("best.ckpt: checksum mismatch in data/0, though it was just written")
    assert "Training completed" not in result.out


def test_a_best_checkpoint_that_is_not_the_runs_is_replaced(command: Command, config: Path) -> None:
    command("fit", "--config", config, "--run_dir", "other", "--model.learning_rate=0.02", "--trainer.max_steps=5")
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=5")
    best = Path("run/checkpoints/best.ckpt")
    for number, damage in enumerate(
        (
            lambda: shutil.copy("other/checkpoints/best.ckpt", best),
            lambda: best.write_bytes(best.read_bytes()[:1000]),
            best.unlink,
        )
    ):
        damage()
        result = command("fit", "--config", config, "--run_dir", "run", "--resume", f"--trainer.max_steps={6 + number}")

        assert result.code == 0
        assert result.err.count("gpt_lightning: warning: run/checkpoints/best.ckpt: ") == 1
        assert f"best.ckpt is of step {6 + number} " in result.out
        assert read_checkpoint(best)["hyper_parameters"]["learning_rate"] == 0.01


def test_a_run_that_lost_its_last_checkpoints_keeps_its_best(command: Command, config: Path) -> None:
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=2")
    folder = Path("run/checkpoints")
    lost = (folder / "best.ckpt").read_bytes()
    for name in ("last.ckpt", "prev.ckpt"):
        (folder / name).unlink(missing_ok=True)

    result = command("fit", "--config", config, "--run_dir", "run", "--resume", "--trainer.max_steps=1")

    assert "has no last.ckpt to resume from and restarts; its best.ckpt is kept as best.kept" in result.err
    assert (folder / "best.kept").read_bytes() == lost


def test_lost_metrics_are_said(command: Command, config: Path) -> None:
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=2")
    Path("run/metrics.jsonl").unlink()

    result = command("fit", "--config", config, "--run_dir", "run", "--resume", "--trainer.max_steps=3")

    assert result.code == 0
    assert "metrics.jsonl: has no row up to step 2; the curves begin there" in result.err


# ---- numbers that are none


@pytest.mark.parametrize("setting", ["--save_every=1", "--trainer.max_steps=1"])
def test_a_run_that_left_the_numbers_saves_none_of_them(command: Command, config: Path, setting: str) -> None:
    result = command("fit", "--config", config, "--run_dir", "run", "--model.learning_rate=1e38", setting)

    assert result.code == 3
    assert result.error.startswith("non-finite ")
    assert ", none was saved; try a lower model.learning_rate, a warm-up or " in result.error
    assert not list(Path("run/checkpoints").glob("*.ckpt"))


def test_the_step_of_the_kept_checkpoint_is_said(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = GPTModule.training_step

    def spoil(self: GPTModule, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == 4:
            with torch.no_grad():
                self.model.final_norm.bias[0] = torch.inf
        return step(self, batch, batch_idx)

    monkeypatch.setattr(GPTModule, "training_step", spoil)
    result = command("fit", "--config", config, "--run_dir", "run", "--save_every=3")

    advice = "try a lower model.learning_rate, a warm-up or trainer.gradient_clip_val"
    what = "non-finite gradient at step 5; stopped before the update, last.ckpt is of step 3"
    assert (result.code, result.error) == (3, f"{what}; {advice}")


def test_weights_that_no_evaluation_has_seen_are_not_saved_either(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: dict[str, float] = {"train_eval_loss": 1.0, "val_loss": 1.0}
    monkeypatch.setattr(GPTModule, "on_validation_epoch_end", lambda self: setattr(self, "evaluated", evaluated))

    arguments = ("--trainer.max_steps=1", "--model.learning_rate=1e38")
    result = command("fit", "--config", config, "--run_dir", "run", *arguments)

    assert result.code == 3
    assert "non-finite weights or optimizer state after step 1, not saved, none was saved; " in result.error


@pytest.mark.parametrize("part", ["state_dict", "optimizer_states"])
def test_a_newest_checkpoint_with_no_numbers_gives_way_to_the_one_before(
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
        "resuming from prev.ckpt, the one before"
    )
    assert_equal_weights(trained, Path("run"))


def test_the_best_weights_are_those_that_were_evaluated(command: Command, config: Path) -> None:
    averaging = "--trainer.callbacks=[{class_path: EMAWeightAveraging, init_args: {decay: 0.8}}]"
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_epochs=1", averaging)

    shown = command("validate", "--ckpt_path", "run/checkpoints/best.ckpt")

    best = min(row["val_loss"] for row in read_rows(Path("run/metrics.jsonl")) if "val_loss" in row)
    assert f": loss {best:.6f} nats per token" in shown.out


@pytest.mark.parametrize("ending", ["--trainer.max_steps=3", "--early_stopping_patience=1"])
def test_a_run_that_ends_inside_an_epoch_has_its_sample_and_summary_when_it_is_saved(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    save = AtomicCheckpointIO.save_checkpoint
    sampled, summed_up = [], []  # when last.ckpt is intact: a kill then leaves a finished run

    def recording(self: AtomicCheckpointIO, content: dict[str, Any], *rest: Any, **named: Any) -> None:
        save(self, content, *rest, **named)
        sampled.append((content["global_step"], [row["step"] for row in read_rows(Path("run/samples.jsonl"))]))
        summed_up.append(any(b"final/best_val_loss" in path.read_bytes() for path in Path("run").glob("events.*")))

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", recording)
    result = command(
        "fit", "--config", config, "--run_dir", "run", "--model.learning_rate=1", "--evaluate_every=3", ending
    )

    assert result.code == 0, result.err
    step, steps = sampled[-1]
    assert step % 5 != 0
    assert steps[-1] == step
    assert summed_up[-1]


# ---- tuners


FINDER = (
    "--trainer.callbacks=[{class_path: LearningRateFinder, init_args: {num_training_steps: 14, min_lr: 1e-4}}]",
    "--model.warmup_steps=2",
    "--model.min_learning_rate=1e-5",
)


def test_a_run_goes_on_with_the_learning_rate_that_was_found(command: Command, config: Path) -> None:
    whole = command("fit", "--config", config, "--run_dir", "whole", *FINDER)
    first = command("fit", "--config", config, "--run_dir", "pieces", *FINDER, "--trainer.max_steps=7")
    second = command("fit", "--config", config, "--run_dir", "pieces", *FINDER, "--resume")

    assert (whole.code, first.code, second.code) == (0, 0, 0), whole.err + first.err + second.err
    rate = read_checkpoint("whole/checkpoints/last.ckpt")["hyper_parameters"]["learning_rate"]
    assert f"learning rate {rate:.3g} found by LearningRateFinder; {rate:.3g} is used\n" in whole.out
    assert "found by" not in second.out
    rates = [row["learning_rate"] for row in read_rows(Path("whole/metrics.jsonl")) if "learning_rate" in row]
    expected = [rate * learning_rate_factor(step, 2, 15, 1e-5 / rate) for step in range(15)]
    assert rates == pytest.approx(expected, rel=1e-12)
    resumed = torch.load("pieces/checkpoints/last.ckpt")
    assert resumed["hyper_parameters"]["learning_rate"] == rate
    typed = command("fit", "--config", config, "--run_dir", "pieces", *FINDER, "--resume", "--model.learning_rate=0.5")
    assert f"has model.learning_rate {rate}, the settings say 0.5" in typed.error
    assert sorted(os.listdir()) == ["pieces", "tiny.yaml", "whole"]


def test_check_does_not_look_for_a_learning_rate(command: Command, config: Path) -> None:
    result = command("check", "--config", config, *FINDER)

    assert (result.code, os.listdir()) == (0, ["tiny.yaml"]), result.err


# ---- finished runs


def test_a_finished_run_that_was_killed_before_its_figures_gets_them(
    command: Command, config: Path, trained: Path
) -> None:
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


def test_a_finished_run_without_its_best_weights_does_not_end_with_0(
    command: Command, config: Path, trained: Path
) -> None:
    shutil.copytree(trained, "run")
    best = Path("run/checkpoints/best.ckpt")
    flip_a_bit(best)
    damaged = command("fit", "--config", config, "--run_dir", "run", "--resume")
    best.unlink()
    missing = command("fit", "--config", config, "--run_dir", "run", "--resume")

    assert (damaged.code, missing.code) == (2, 2)
    assert damaged.error == f"run: finished, but {best}: checksum mismatch in data/0; its last.ckpt is intact"
    assert missing.error == f"run: finished, but {best}: no such file; its last.ckpt is intact"
