from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result

import gpt_lightning
from gpt_lightning.checkpoint import AtomicCheckpointIO, get_rng_states, load_weights, read_checkpoint, set_rng_states
from gpt_lightning.errors import InputError, MachineError
from gpt_lightning.module import GPTModule

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


def test_every_flipped_bit_is_seen(trained: Path, tmp_path: Path) -> None:
    good = (trained / "checkpoints/best.ckpt").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for position in torch.randint(len(good), (40,), generator=generator).tolist():
        damaged = bytearray(good)
        damaged[position] ^= 1 << int(position % 8)
        path = tmp_path / "damaged.ckpt"
        path.write_bytes(damaged)
        try:
            read = read_checkpoint(path)
        except InputError:
            continue
        # What is left are bytes of padding that hold nothing.
        for key, tensor in torch.load(trained / "checkpoints/best.ckpt")["state_dict"].items():
            assert torch.equal(read["state_dict"][key], tensor)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files_are_refused(trained: Path, tmp_path: Path, share: float) -> None:
    good = (trained / "checkpoints/last.ckpt").read_bytes()
    (tmp_path / "a.ckpt").write_bytes(good[: int(share * len(good))])

    with pytest.raises(InputError, match="a.ckpt: not a complete checkpoint"):
        read_checkpoint(tmp_path / "a.ckpt")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_code_in_a_checkpoint_does_not_run(in_tmp: Path) -> None:
    torch.save({"gpt_lightning": {"format": 1}, "bomb": Bomb()}, "bomb.ckpt")
    Path("raw.ckpt").write_bytes(pickle.dumps(Bomb()))

    with pytest.raises(InputError, match="bomb.ckpt: refused, contains more than tensors and plain data"):
        read_checkpoint("bomb.ckpt")
    with pytest.raises(InputError, match="raw.ckpt: not a complete checkpoint"):
        read_checkpoint("raw.ckpt")
    assert not Path("exploded").exists()


def changed(trained: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    checkpoint = torch.load(trained / "checkpoints/best.ckpt")
    change(checkpoint)
    torch.save(checkpoint, target)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["gpt_lightning"].update(format=2), "has checkpoint format 2; this program reads format 1"),
        (lambda c: c.pop("gpt_lightning"), "not a checkpoint of gpt_lightning"),
    ],
)
def test_other_formats_are_refused(
    trained: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_checkpoint(changed(trained, tmp_path / "a.ckpt", change))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nope.ckpt", "nope.ckpt: no such file"),
        ("https://example.org/a.ckpt", "checkpoints are local files only"),
        (".", "is a folder, not a checkpoint"),
    ],
)
def test_what_is_no_file_is_refused(in_tmp: Path, path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_checkpoint(path)


def test_weights_that_are_not_finite_or_do_not_fit_are_refused(trained: Path, tmp_path: Path) -> None:
    def spoil(checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"]["model.final_norm.bias"][0] = torch.nan

    def enlarge(checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"]["model.final_norm.bias"] = torch.zeros(17)

    for change, message in ((spoil, "non-finite weights"), (enlarge, "weights do not fit the model: size mismatch")):
        checkpoint = read_checkpoint(changed(trained, tmp_path / "a.ckpt", change))
        with pytest.raises(InputError, match=message):
            load_weights(GPTModule(**checkpoint["hyper_parameters"]), checkpoint, "a.ckpt")


def test_saving_keeps_the_previous_file(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    last, previous = tmp_path / "last.ckpt", tmp_path / "prev.ckpt"
    for step in range(3):
        io.save_checkpoint({"step": step}, last, {"previous": previous})

    assert (torch.load(last)["step"], torch.load(previous)["step"]) == (2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "prev.ckpt"]


def test_a_full_disk_leaves_the_previous_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io = AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, tmp_path / "last.ckpt")

    def full(*_: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos") from None

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(MachineError, match="no space left on device while saving; last.ckpt of before is intact"):
        io.save_checkpoint({"step": 2}, tmp_path / "last.ckpt")

    assert torch.load(tmp_path / "last.ckpt") == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


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


def test_a_resumed_run_keeps_to_its_text(command: Command, config: Path, trained: Path) -> None:
    shutil.copytree(trained, "run")
    Path("other.txt").write_text("another text " * 2000)

    other = ["--data.text", "other.txt", "--trainer.max_epochs", 4]
    result = command("fit", "--config", config, "--run_dir", "run", "--resume", *other)

    assert result.code == 2
    assert "is not the text that run/checkpoints/last.ckpt was trained on" in result.error
