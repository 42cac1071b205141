from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, Result

from gpt_lightning.checkpoints.compare import compare_runs
from gpt_lightning.errors import InputError, MachineError
from gpt_lightning.files import append_row, read_rows
from gpt_lightning.runs import folder
from gpt_lightning.runs.folder import Run

Command = Callable[..., Result]


def test_each_fit_gets_the_next_number_and_latest_follows(command: Command, config: Path) -> None:
    for number in (1, 2):
        result = command("fit", "--config", config, "--trainer.max_steps=1")

        assert result.code == 0
        assert f"run folder  runs/tiny/{number};" in result.out
        assert Path("runs/tiny/latest").readlink() == Path(f"{number}/checkpoints")
        assert f"--ckpt_path runs/tiny/{number}/checkpoints/best.ckpt" in result.out
    assert sorted(os.listdir("runs/tiny")) == ["1", "2", "latest"]
    names = {path.name.split(".")[0] for path in Path("runs/tiny/1").iterdir()}
    tables = {"baselines", "environment", "metrics", "samples", "summary"}
    assert names == tables | {"", "checkpoints", "events", "hparams", "tiny"}


def test_the_saved_settings_reproduce_the_run(command: Command, config: Path) -> None:
    command("fit", "--config", config, "--model.learning_rate=0.02", "--trainer.max_steps=3")
    saved = yaml.safe_load(Path("runs/tiny/1/tiny.yaml").read_text())

    result = command("fit", "--config", "runs/tiny/1/tiny.yaml")

    assert saved["model"]["learning_rate"] == 0.02
    assert os.path.isabs(saved["data"]["text"])
    assert result.code == 0
    one, two = (torch.load(f"runs/tiny/{number}/checkpoints/last.ckpt")["state_dict"] for number in (1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_resume_takes_the_newest_run_and_no_other(command: Command, config: Path) -> None:
    started = command("fit", "--config", config, "--resume", "--trainer.max_steps=1")
    command("fit", "--config", config, "--trainer.max_steps=2")

    finished = command("fit", "--config", config, "--resume", "--trainer.max_steps=2")  # run 1 is unfinished
    resumed = command("fit", "--config", config, "--resume", "--trainer.max_steps=3")

    assert "run folder  runs/tiny/1;" in started.out
    limits = "trainer.max_epochs, trainer.max_steps and early_stopping_patience"
    assert (finished.code, finished.out) == (0, f"runs/tiny/2: finished; nothing is left to do within {limits}\n")
    assert "run folder  runs/tiny/2;" in resumed.out
    assert "resumed     after step 2" in resumed.out


def test_a_run_resumes_if_its_text_is_given_on_the_command_line(command: Command, config: Path) -> None:
    described = config.with_name("described.yaml")
    settings = yaml.safe_load(config.read_text())
    settings["data"] |= {"url": "http://127.0.0.1:1/a.txt", "fallback_text": settings["data"]["text"]}
    described.write_text(yaml.safe_dump(settings))
    command("fit", "--config", described, "--run_dir", "run", "--trainer.max_steps=1")

    text = ("--data.text", settings["data"]["text"])
    result = command("fit", "--config", described, "--run_dir", "run", "--resume", "--trainer.max_steps=2", *text)

    assert result.code == 0, result.err
    assert "resumed     after step 1" in result.out


def test_a_named_folder_must_be_empty_or_resumed(command: Command, config: Path) -> None:
    Path("empty").mkdir()
    assert command("fit", "--config", config, "--run_dir", "empty", "--trainer.max_steps=1").code == 0
    assert command("fit", "--config", config, "--run_dir", "new", "--resume", "--trainer.max_steps=1").code == 0

    taken = command("fit", "--config", config, "--run_dir", "empty")

    assert taken.code == 2
    assert taken.error == "--run_dir empty already contains a run; add --resume to resume it, or name another folder"
    assert not Path("runs").exists()


def test_resuming_a_run_without_a_checkpoint_starts_it_again(command: Command, config: Path) -> None:
    shutil.rmtree(Path("run"), ignore_errors=True)
    Path("run/checkpoints").mkdir(parents=True)
    Path("run/checkpoints/last.ckpt.tmp-1").write_text("half")
    Path("run/events.out.tfevents.1.tmp-1").write_text("half")
    rows = ['{"step": 1, "train_loss": 1.0}', "[]", "3", "null", "{}", '{"step": "x"}', '{"step": 1, "tr']
    Path("run/metrics.jsonl").write_text("\n".join(rows))

    result = command("fit", "--config", config, "--run_dir", "run", "--resume", "--trainer.max_steps=1")

    assert result.code == 0
    assert "Untrained (Step 000000)" in result.out
    assert not list(Path("run").rglob("*.tmp-*"))
    assert Path("run/metrics.jsonl").read_text().count('"step": 1,') == 2  # training and evaluation of step 1


def test_a_folder_in_use_is_refused(command: Command, config: Path) -> None:
    other = Run(Path("run"))
    other.open()

    result = command("fit", "--config", config, "--run_dir", "run", "--resume")
    other.close()

    assert result.code == 2
    assert result.error == f"run is in use by process {os.getpid()}"


def test_the_second_of_two_processes_keeps_the_folder_of_the_first(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both processes find no folder of that name; then the other one creates and locks it."""
    other = Run(Path("run"))
    opened = Run.open

    def open_after_the_other(self: Run) -> None:
        opened(other)
        opened(self)

    monkeypatch.setattr(Run, "open", open_after_the_other)
    result = command("fit", "--config", config, "--run_dir", "run")

    assert result.error == f"run is in use by process {os.getpid()}"
    assert Path("run/checkpoints").is_dir()
    other.close()


def test_a_file_system_without_locks_is_named(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(MachineError, match=r"^run/.lock: cannot be locked \(No locks available\)$"):
        Run(in_tmp / "run").open()


def test_too_little_disk_space_is_refused_before_the_first_step(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = 257 * 16 * 2 + 64 * 16 + (12 * 256 + 10 * 16) + 2 * 16
    enough_when_done = 4 * 4 * weights  # best and last; while it runs, best and three times last
    free = shutil.disk_usage(".")._replace(free=enough_when_done)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)

    result = command("fit", "--config", config, "--run_dir", "run")

    assert result.code == 1
    assert "run: the run needs up to 500.5 kB for its checkpoints, but the disk has 200.2 kB free" in result.error


def test_a_folder_that_cannot_be_created_is_a_machine_error(command: Command, config: Path) -> None:
    Path("file").write_text("")

    with pytest.raises(MachineError, match="^file/run/checkpoints: not a directory$"):
        Run(Path("file/run")).open()
    assert command("fit", "--config", config, "--run_dir", "file/run").code == 1
    with pytest.raises(InputError, match="file: is a file, not a folder"):
        folder.check_empty(Path("file"))


def test_a_run_that_did_not_start_leaves_no_folder(command: Command, config: Path) -> None:
    broken = "--trainer.callbacks=[{class_path: BackboneFinetuning}]"
    assert command("fit", "--config", config, broken).code == 2
    assert os.listdir() == ["tiny.yaml"]
    command("fit", "--config", config, "--trainer.max_steps=1")

    assert command("fit", "--config", config, broken).code == 2
    assert command("fit", "--config", config, broken, "--run_dir", "named").code == 2

    assert sorted(os.listdir("runs/tiny")) == ["1", "latest"]
    assert os.readlink("runs/tiny/latest") == "1/checkpoints"
    assert not Path("named").exists()


def test_torchrun_and_slurm_need_run_dir(command: Command, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")

    result = command("fit", "--config", config)

    assert result.code == 2
    assert "--run_dir DIR is needed under torchrun and SLURM" in result.error


@pytest.mark.slow
def test_two_processes_share_a_folder_and_average_the_loss_over_all_tokens(command: Command, config: Path) -> None:
    two = [
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--data.batch_size=28",
        "--data.train_ratio=0.995",  # one validation window: one of the ranks gets none
        "--trainer.enable_progress_bar=false",
    ]
    program = [sys.executable, "-m", "gpt_lightning", "fit", "--config", str(config), *two]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=100)

    assert done.returncode == 0, done.stderr
    assert os.listdir("runs/tiny") == ["1", "latest"] or os.listdir("runs/tiny") == ["latest", "1"]
    assert done.stdout.count("Untrained") == 1
    both = read_rows(Path("runs/tiny/1/metrics.jsonl"))
    single = command("fit", "--config", config, *two[2:], "--data.batch_size=56", "--run_dir", "single")
    assert single.code == 0
    alone = read_rows(Path("single/metrics.jsonl"))
    assert [row["step"] for row in both] == [row["step"] for row in alone]
    # Before the first optimizer step the weights are equal, and so are the losses, because no rank repeats a window.
    assert both[0]["val_loss"] == pytest.approx(alone[0]["val_loss"], abs=1e-6)


@pytest.mark.slow
def test_two_processes_draw_masks_of_their_own_and_resume_exactly(config: Path) -> None:
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=28", "--model.drop_rate=0.2"]
    program = [sys.executable, "-m", "gpt_lightning", "fit", "--config", str(config), *two]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    for arguments in (
        ["--run_dir=whole"],
        ["--run_dir=part", "--trainer.max_epochs=2"],
        ["--run_dir=part", "--resume"],
    ):
        done = subprocess.run([*program, *arguments], env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr

    content = torch.load("whole/checkpoints/last.ckpt", weights_only=True)
    first, second = (states["torch"] for states in content["rng_states"])
    assert not torch.equal(first, second)
    assert compare_runs(Path("whole"), Path("part")) is None


def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    run, again = Run(tmp_path / "run"), Run(tmp_path / "run")
    run.open()
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writable, b"x")
        signal.pause()
    os.read(readable, 1)
    try:
        with pytest.raises(InputError, match="is in use by process"):
            again.open()
        run.close()
        again.open()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(readable)
        os.close(writable)
        again.close()


def test_a_full_disk_error_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")

    with pytest.raises(MachineError, match="metrics.jsonl: no space left on device$"):
        append_row(tmp_path / "metrics.jsonl", {"step": 1})
