from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import flip_a_bit
from conftest import Result
from lightning.pytorch import Trainer

import gpt_lightning
from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.checkpoints.loading import check_weights
from gpt_lightning.errors import InputError
from gpt_lightning.files import read_rows
from gpt_lightning.training.callbacks.checkpointing import AtomicCheckpointIO, Checkpointing
from gpt_lightning.training.callbacks.samples import Samples
from gpt_lightning.training.module import GPTModule

Command = Callable[..., Result]

# Names of the stored weights; changing one would break all existing checkpoints.
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


def test_checkpoints_have_the_documented_content(trained: Path) -> None:
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
    assert last["TextDataModule"] == {"epoch": 3, "windows": 0, "windows_per_batch": 56}


def test_a_short_run_has_no_prev_ckpt(trained: Path) -> None:
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def changed(trained: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    checkpoint = torch.load(trained / "checkpoints/best.ckpt")
    change(checkpoint)
    torch.save(checkpoint, target)
    return target


def test_non_finite_or_misshapen_weights_are_refused(trained: Path, tmp_path: Path) -> None:
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


def test_checkpoints_are_saved_by_minutes_and_by_steps(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = Checkpointing._save

    def recording(self: Checkpointing, trainer: Trainer) -> None:
        saved.append(trainer.global_step)
        save(self, trainer)

    monkeypatch.setattr(Checkpointing, "_save", recording)
    command("fit", "--config", config, "--run_dir", "always", "--save_minutes=1e-9")
    command("fit", "--config", config, "--run_dir", "both", "--save_minutes=60", "--save_every=6")

    assert saved == [*range(1, 16), 6, 12, 15]


@pytest.mark.parametrize(
    "command_line", [("predict", "--ckpt_path", "pipe", "--prompt=x"), ("fit", "--config", "pipe")]
)
def test_a_pipe_is_neither_checkpoint_nor_config(command: Command, in_tmp: Path, command_line: tuple[str, ...]) -> None:
    os.mkfifo("pipe")

    result = command(*command_line)

    assert (result.code, result.error) == (2, "pipe: must be a regular file")


def test_a_kill_between_the_two_renames_of_a_save_loses_nothing(
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
    assert torch.load(previous) == {"step": 1}  # a run would resume from it
    for step in (2, 3, 4):
        io.save_checkpoint({"step": step}, last, names)

    assert [torch.load(path)["step"] for path in (previous, last)] == [3, 4]
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "prev.ckpt"]


def test_a_run_whose_checkpoint_cannot_be_read_fails(
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
    assert re.search(r"last.ckpt: checksum mismatch in data/\d+, although it was just written$", result.error)
    assert "Training completed" not in result.out


def test_a_foreign_damaged_or_missing_best_ckpt_is_replaced(command: Command, config: Path) -> None:
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


# ---- divergence


@pytest.mark.parametrize("setting", ["--save_every=1", "--trainer.max_steps=1"])
def test_a_diverged_run_saves_no_non_finite_checkpoint(command: Command, config: Path, setting: str) -> None:
    result = command("fit", "--config", config, "--run_dir", "run", "--model.learning_rate=1e38", setting)

    assert result.code == 3
    assert result.error.startswith("non-finite ")
    assert "; no checkpoint was saved; try a lower model.learning_rate, " in result.error
    assert not list(Path("run/checkpoints").glob("*.ckpt"))


def test_a_divergence_error_names_the_step_of_last_ckpt(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = GPTModule.training_step

    def spoil(self: GPTModule, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == 4:
            with torch.no_grad():
                self.model.final_norm.bias[0] = torch.inf
        return step(self, batch, batch_idx)

    monkeypatch.setattr(GPTModule, "training_step", spoil)
    result = command("fit", "--config", config, "--run_dir", "run", "--save_every=3", "--evaluate_every=1")

    advice = "try a lower model.learning_rate, more model.warmup_steps or trainer.gradient_clip_val"
    what = "non-finite gradient at step 5; the weights were not changed; last.ckpt is of step 3"
    assert (result.code, result.error) == (3, f"{what}; {advice}")
    assert torch.load("run/checkpoints/best.ckpt")["global_step"] == 3  # the weights of step 4 are discarded
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_non_finite_weights_are_not_saved_if_the_evaluation_misses_them(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: dict[str, float] = {"train_eval_loss": 1.0, "val_loss": 1.0}
    monkeypatch.setattr(GPTModule, "on_validation_epoch_end", lambda self: setattr(self, "evaluated", evaluated))
    monkeypatch.setattr(Samples, "after_step", lambda *_, **__: None)  # a sample would notice

    arguments = ("--trainer.max_steps=1", "--model.learning_rate=1e38")
    result = command("fit", "--config", config, "--run_dir", "run", *arguments)

    assert result.code == 3
    assert "non-finite weights or optimizer state after step 1; no checkpoint was saved; " in result.error


def test_best_ckpt_has_the_averaged_weights_that_were_evaluated(command: Command, config: Path) -> None:
    averaging = "--trainer.callbacks=[{class_path: EMAWeightAveraging, init_args: {decay: 0.8}}]"
    command("fit", "--config", config, "--run_dir", "run", "--trainer.max_epochs=1", averaging)

    shown = command("validate", "--ckpt_path", "run/checkpoints/best.ckpt")

    best = min(row["val_loss"] for row in read_rows(Path("run/metrics.jsonl")) if "val_loss" in row)
    assert f": loss {best:.6f} nats per token" in shown.out


@pytest.mark.parametrize("ending", ["--trainer.max_steps=3", "--early_stopping_patience=1"])
def test_the_last_save_of_a_run_comes_after_its_sample_and_final_metrics(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    save = AtomicCheckpointIO.save_checkpoint
    sampled, summed_up = [], []  # at each save: a run that is killed after its last save must be complete

    def recording(self: AtomicCheckpointIO, content: dict[str, Any], *rest: Any, **named: Any) -> None:
        save(self, content, *rest, **named)
        sampled.append((content["global_step"], [row["step"] for row in read_rows(Path("run/samples.jsonl"))]))
        summed_up.append(any(b"loss_final/best_val_loss" in path.read_bytes() for path in Path("run").glob("events.*")))

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", recording)
    result = command(
        "fit", "--config", config, "--run_dir", "run", "--model.learning_rate=1", "--evaluate_every=3", ending
    )

    assert result.code == 0, result.err
    step, steps = sampled[-1]
    assert step % 5 != 0
    assert steps[-1] == step
    assert summed_up[-1]
