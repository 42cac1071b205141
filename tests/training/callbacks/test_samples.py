from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compared import rows
from conftest import STORY, Result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from gpt_lightning.checkpoints.compare import first_difference
from gpt_lightning.console import visible
from gpt_lightning.training.callbacks.samples import samples_table

Command = Callable[..., Result]


def test_samples_are_what_predict_writes(command: Command, config: Path) -> None:
    settings = ["--sampling.temperature=0.8", "--sampling.top_k=20", "--sampling.max_new_tokens=30"]
    fit = command("fit", "--config", config, "--run_dir", "run", "--prompt", "First", "--prompt", "Then", *settings)
    prompts = ["--prompt", "First", "--prompt", "Then"]
    predict = command("predict", "--ckpt_path", "run/checkpoints/last.ckpt", *prompts, *settings)

    samples = [line for line in fit.out.splitlines() if line.startswith(("First", "Then"))]
    assert len(samples) == 2 * 3
    table = rows("run", "samples")
    assert [visible(" ".join((row["prompt"] + row["completion"]).splitlines())) for row in table] == samples
    assert predict.out == "".join(row["prompt"] + row["completion"] + "\n" for row in table[-2:])


@pytest.mark.parametrize("limit", ["--trainer.max_epochs=1", "--trainer.max_steps=4"])
def test_samples_use_the_averaged_weights_that_are_saved(command: Command, config: Path, limit: str) -> None:
    averaging = "--trainer.callbacks=[{class_path: EMAWeightAveraging, init_args: {decay: 0.8}}]"
    sampling = ("--sampling.max_new_tokens=40", "--sampling.temperature=1")
    prompt = "Every effort"
    assert command("fit", "--config", config, "--run_dir", "plain", limit, "--sample_every=2", *sampling).code == 0
    fit = command("fit", "--config", config, "--run_dir", "run", limit, "--sample_every=2", *sampling, averaging)

    predicted = command("predict", "--ckpt_path", "run/checkpoints/last.ckpt", "--prompt", prompt, *sampling)

    sample = rows("run", "samples")[-1]
    assert predicted.out == f"{prompt}{sample['completion']}\n", fit.err
    assert sample["completion"] != rows("plain", "samples")[-1]["completion"]


def test_sampling_from_averaged_weights_does_not_change_the_weights(command: Command, config: Path) -> None:
    averaging = "--trainer.callbacks=[{class_path: EMAWeightAveraging, init_args: {decay: 0.8}}]"
    command("fit", "--config", config, "--run_dir", "plain")
    command("fit", "--config", config, "--run_dir", "averaged", averaging, "--sample_every=1")

    plain, averaged = (torch.load(f"{run}/checkpoints/last.ckpt") for run in ("plain", "averaged"))
    assert first_difference(plain["state_dict"], averaged["current_model_state"], "weights") is None
    assert first_difference(plain["state_dict"], averaged["state_dict"], "weights") is not None


def test_samples_every_n_steps_and_after_each_epoch_are_not_repeated(command: Command, config: Path) -> None:
    for every, steps in ((5, [5, 10]), (3, [3, 5, 6, 9, 10])):
        folder = f"run{every}"
        command("fit", "--config", config, "--run_dir", folder, "--sample_every", every, "--trainer.max_epochs=2")

        assert [row["step"] for row in rows(folder, "samples")] == steps


def test_each_sample_says_how_much_of_it_is_copied(command: Command, config: Path) -> None:
    Path("rhyme.txt").write_text("lamp, " * 3500)  # learned within seven epochs
    training = "lamp, " * 3150
    settings = [
        "--data.text=rhyme.txt",
        "--trainer.max_epochs=7",
        "--sampling.max_new_tokens=50",
        "--prompt",
        "The lamp",
        "--prompt",
        "lamp",
    ]

    fit = command("fit", "--config", config, "--run_dir", "run", *settings)

    table = rows("run", "samples")
    lines = fit.out.splitlines()
    assert len(table) == 2 * 7
    for row in table:
        copied, text = row["copied"], row["completion"]
        pieces = [text[begin:end] for begin in range(50) for end in range(begin + 1, 51)]
        longest = max((piece for piece in pieces if piece in training), key=len, default="")
        assert (copied["of"], copied["longest"], copied["at_least"]) == (50, len(longest), 32)
        is_copied = {place for i in range(19) if text[i : i + 32] in training for place in range(i, i + 32)}
        assert (copied["tokens"], copied["share"]) == (len(is_copied), len(is_copied) / 50)
        for run in copied["runs"]:
            assert text[run["begin"] : run["end"]] == training[run["source"] :][: run["tokens"]]
        place = lines.index(visible(" ".join((row["prompt"] + text).splitlines())))
        assert lines[place + 1].startswith(f"copied      {len(is_copied)} of 50 tokens, longest run {len(longest)}: ")
    events = EventAccumulator("run").Reload().Scalars("memorization/copied_share")
    shares = [sum(row["copied"]["tokens"] for row in table if row["step"] == step) / 100 for step in range(5, 40, 5)]
    assert [(event.step, event.value) for event in events] == [
        (step, pytest.approx(share)) for step, share in zip(range(5, 40, 5), shares, strict=True)
    ]
    assert 0 == shares[0] < shares[-1]


def test_a_long_training_text_is_searched_in_its_first_tokens(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = STORY.read_text()[:18_413]
    for most, note in ((1000, "; searched in the first 1,000 training tokens"), (18_413, "")):
        monkeypatch.setattr("gpt_lightning.training.callbacks.samples.MOST_SEARCHED", most)

        fit = command("fit", "--config", config, "--run_dir", f"run{most}", "--trainer.max_epochs=1")

        (row,) = rows(f"run{most}", "samples")
        text, copied = row["completion"], row["copied"]
        pieces = [text[begin:end] for begin in range(8) for end in range(begin + 1, 9)]
        longest = max(len(piece) for piece in pieces if piece in training[:most])
        (run,) = copied["runs"]
        assert (copied["longest"], run["tokens"]) == (longest, longest)
        assert run["source"] == training[:most].index(text[run["begin"] : run["end"]])
        (line,) = [line for line in fit.out.splitlines() if line.startswith("copied ")]
        assert line.endswith(f"(character {run['source']:,}){note}")


def test_the_table_of_samples_escapes_markup() -> None:
    rows = [{"step": 5, "epoch": 1, "prompt": "a|b", "completion": " <b>\nc  "}]

    assert samples_table(rows).splitlines() == [
        "| epoch | step | prompt | completion |",
        "|---|---|---|---|",
        "| 1 | 5 | a&#124;b | &lt;b&gt; c |",
    ]


@pytest.mark.parametrize("has_tensorboard", [True, False])
def test_the_newest_samples_of_a_resumed_run_are_in_tensorboards_table(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch, has_tensorboard: bool
) -> None:
    monkeypatch.setattr("gpt_lightning.training.callbacks.samples.ROWS_SHOWN", 3)
    tables: list[str] = []
    monkeypatch.setattr(SummaryWriter, "add_text", lambda *values: tables.append(values[2]))
    run = ("fit", "--config", config, "--run_dir", "run", f"--trainer.logger={str(has_tensorboard).lower()}")
    assert command(*run, "--trainer.max_steps=1").code == 0
    earlier = [{"step": 1, "epoch": 1, "prompt": "It", "completion": f" was {i}"} for i in range(5)]
    damaged = [{"step": 1}, {"step": 1, "prompt": "It", "completion": " is"}]
    Path("run/samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*earlier, *damaged]))

    result = command(*run, "--trainer.max_steps=2", "--resume")

    assert result.code == 0, result.err
    assert "run/samples.jsonl: 2 damaged lines are skipped (first: line 6)\n" in result.err
    if has_tensorboard:
        assert tables[-1].splitlines()[2:4] == ["| 1 | 1 | It | was 3 |", "| 1 | 1 | It | was 4 |"]
        assert tables[-1].splitlines()[4].startswith("| 1 | 2 | Every effort | ")
        assert len(tables[-1].splitlines()) == 5
    else:
        assert tables == []


def test_out_of_memory_while_sampling_names_the_settings_of_sampling(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000 bytes.")

    monkeypatch.setattr("gpt_lightning.training.callbacks.samples.complete_all", refuse)

    result = command("fit", "--config", config, "--run_dir", "run", "--trainer.max_steps=2")

    assert result.code == 1
    assert result.error.startswith("out of memory while sampling (tried to allocate 4.0 GB, ")
    assert re.search(r": lower sampling.batch_size \(8\) or sampling.max_new_tokens \(\d+\)$", result.error)
