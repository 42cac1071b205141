from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STORY, Result

from gpt_lightning.evaluation.baselines import measure_baselines

Command = Callable[..., Result]
KEYS = {"checkpoint", "text", "tokens", "bytes", "loss", "perplexity", "bits_per_byte", "bits_per_byte_interval"}
KEYS |= {"accuracy", "baselines", "overlap"}
OTHER = "A lamp burned in the harbour, and the tide went out. " * 12


@pytest.fixture
def best(trained: Path, in_tmp: Path) -> Path:
    shutil.copy(trained / "checkpoints/best.ckpt", "best.ckpt")
    Path("other.txt").write_text(OTHER)
    return Path("best.ckpt")


def rows(result: Result) -> list[dict[str, object]]:
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def test_the_own_validation_split_has_the_loss_that_fit_recorded(command: Command, best: Path) -> None:
    stored = torch.load(best, weights_only=True)["gpt_lightning"]

    (row,) = rows(command("evaluate", "--ckpt_path", best, "--json"))

    assert row.keys() >= KEYS
    assert row["loss"] == pytest.approx(stored["evaluated"]["val_loss"], abs=1e-5)
    assert (row["checkpoint"], row["text"]) == ("best.ckpt", f"validation split of {STORY.name}")
    assert row["tokens"] == row["bytes"] == 31 * 64
    counted = {name: row["baselines"][name] for name in ("uniform", "unigram", "bigram", "trigram")}  # type: ignore[index]
    assert counted == pytest.approx({name: stored["baselines"][name] for name in counted})
    assert row["overlap"] == 0.0
    assert row["baselines"]["training_tokens"] == stored["baselines"]["training_tokens"] == 18413  # type: ignore[index]
    assert row["published"] == {"debug": [2.1, 2.4]}  # that of configs/debug.yaml, whose text and split it shares


def test_baselines_and_overlap_of_another_text(command: Command, best: Path) -> None:
    story = STORY.read_text(encoding="utf-8")
    Path("mixed.txt").write_text(OTHER[:500] + story[1000:1500])

    (row,) = rows(command("evaluate", "--ckpt_path", best, "--text", "mixed.txt", "--stride=32", "--json"))

    data = Path("mixed.txt").read_bytes()
    weights = np.zeros(1000, np.int64)
    weights[1 : 1 + (1000 - 65) // 32 * 32 + 64] = 1
    training = story[: int(0.9 * len(story))].encode()
    ids, evaluated = np.frombuffer(training, np.uint8), np.frombuffer(data, np.uint8)
    expected = measure_baselines(ids, evaluated, weights, 257)
    assert row["tokens"] == weights.sum()
    assert row["baselines"]["trigram"] == pytest.approx(expected.trigram)  # type: ignore[index]
    assert row["overlap"] == pytest.approx(0.5, abs=0.01)
    assert (row["context_length"], row["stride"]) == (64, 32)
    assert row["published"] == {}


def test_the_table_of_two_checkpoints_and_two_texts(command: Command, best: Path) -> None:
    content = torch.load(best, weights_only=True)
    content["state_dict"]["model.out_head.weight"] *= 0.5
    torch.save(content, "weaker.ckpt")

    texts = ("--text", "other.txt", "--text", STORY)
    result = command("evaluate", "--ckpt_path", best, "--ckpt_path", "weaker.ckpt", *texts)

    assert result.code == 0, result.err
    first, second = result.out.split("\n\n")
    assert first.startswith("other.txt: 576 bytes in 9 windows of 64 tokens, stride 64\n")
    assert "  95 % intervals need at least 10 windows; there are 9." in first
    assert "\n  weaker.ckpt - best.ckpt: +" in first
    assert second.startswith(f"{STORY.name}: 20,416 bytes in 319 windows")
    assert "best.ckpt: 90.0% of the tokens are in runs of 50 or more that the training text contains." in second
    labels = [line.split("  ")[1].strip() for line in second.splitlines()[2:4]]
    assert labels == ["best.ckpt", "weaker.ckpt"]
    both = rows(command("evaluate", "--ckpt_path", best, "--ckpt_path", "weaker.ckpt", *texts, "--json"))
    difference = both[3]["bits_per_byte"] - both[1]["bits_per_byte"]  # type: ignore[operator]
    assert f"weaker.ckpt - best.ckpt: {difference:+.4f} [" in second


def test_losses_that_configs_expect_are_converted_for_the_table(command: Command, best: Path) -> None:
    result = command("evaluate", "--ckpt_path", best)

    assert result.code == 0, result.err
    (line,) = (line for line in result.out.splitlines() if "debug.yaml" in line)
    ranges = ["2.1 to 2.4", "8 to 11", "3.03 to 3.46", "3.03 to 3.46"]  # exp(2.1), 2.1 / ln 2
    assert re.split("  +", line.strip()) == ["best of debug.yaml (390,336 parameters)", *ranges]
    (row,) = rows(command("evaluate", "--ckpt_path", best, "--stride=32", "--json"))
    assert row["published"] == {}  # other windows than those of training


def test_other_splits_are_not_compared_with_what_configs_expect(command: Command, best: Path) -> None:
    content = torch.load(best, weights_only=True)
    content["datamodule_hyper_parameters"]["train_ratio"] = 0.8
    torch.save(content, "other.ckpt")

    (row,) = rows(command("evaluate", "--ckpt_path", "other.ckpt", "--json"))

    assert row["published"] == {}


def test_checkpoints_with_different_tokenizers(command: Command, best: Path, config: Path) -> None:
    settings = "--data.tokenizer=gpt2", "--model.emb_dim=4", "--data.batch_size=8", "--trainer.max_steps=1"
    assert command("fit", "--config", config, *settings, "--run_dir", "run").code == 0
    checkpoints = "--ckpt_path", best, "--ckpt_path", "run/checkpoints/best.ckpt"

    result = command("evaluate", *checkpoints, "--text", "other.txt", "--stride", "8")
    both = rows(command("evaluate", *checkpoints, "--text", "other.txt", "--stride", "8", "--json"))

    assert result.code == 0, result.err
    assert "  The tokenizers differ: compare bits per byte, not losses per token." in result.out
    assert " - best.ckpt: " not in result.out  # no difference of windows with other tokens
    assert [row["tokenizer"] for row in both] == ["bytes", "gpt2"]
    assert both[0]["baselines"] != both[1]["baselines"]
    assert both[1]["bits_per_byte"] == pytest.approx(
        both[1]["loss"] * both[1]["tokens"] / np.log(2) / both[1]["bytes"]  # type: ignore[operator]
    )


def test_the_baselines_of_equal_texts_are_computed_once(
    command: Command, best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    module = "gpt_lightning.evaluation.text_evaluation.measure_baselines"
    monkeypatch.setattr(module, lambda *arguments: calls.append(arguments) or measure_baselines(*arguments))
    shutil.copy(best, "copy.ckpt")
    checkpoints = "--ckpt_path", best, "--ckpt_path", "copy.ckpt"
    Path("longer.txt").write_text(OTHER * 2)

    both = rows(command("evaluate", *checkpoints, "--text", "other.txt", "--text", "longer.txt", "--json"))

    assert len(calls) == 2
    assert (both[0]["baselines"], both[1]["baselines"]) == (both[2]["baselines"], both[3]["baselines"])
    assert both[0]["baselines"] != both[1]["baselines"]


def test_the_device_is_checked(command: Command, best: Path) -> None:
    result = command("evaluate", "--ckpt_path", best, "--trainer.accelerator", "quantum")

    assert (result.code, result.error) == (
        2,
        "trainer.accelerator must be one of auto, cpu, gpu, cuda, mps, tpu, got 'quantum'",
    )


def test_without_the_training_text(command: Command, best: Path) -> None:
    content = torch.load(best, weights_only=True)
    content["datamodule_hyper_parameters"]["text"] = "/nowhere/lost.txt"
    torch.save(content, "lost.ckpt")

    result = command("evaluate", "--ckpt_path", "lost.ckpt", "--text", "other.txt", "--json")

    (row,) = rows(result)
    baselines = row["baselines"]
    assert isinstance(baselines, dict)
    assert {name for name, value in baselines.items() if value is None} == {
        "unigram",
        "bigram",
        "trigram",
        "training_tokens",
        "gzip_given_training",
        "xz_given_training",
    }
    assert row["overlap"] is None
    assert "warning: no baselines and no overlap for lost.ckpt: /nowhere/lost.txt: no such file" in result.err

    result = command("evaluate", "--ckpt_path", "lost.ckpt")
    assert (result.code, result.error.startswith("/nowhere/lost.txt: no such file")) == (2, True)
    assert result.error.endswith("; --text evaluates another text")


def test_baselines_of_the_first_training_tokens_only(
    command: Command, best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("evaluate", "--ckpt_path", best, "--text", "other.txt")
    whole = command(*arguments)
    monkeypatch.setattr("gpt_lightning.evaluation.baselines.MOST_TRAINING_TOKENS", 18_413)
    all_counted = command(*arguments)
    monkeypatch.setattr("gpt_lightning.evaluation.baselines.MOST_TRAINING_TOKENS", 1000)

    result = command(*arguments)
    (row,) = rows(command(*arguments, "--json"))

    words = "  Unigram, bigram and trigram count the first 1,000 of 18,413 training tokens.\n"
    assert words in result.out
    assert "count the first" not in whole.out + all_counted.out
    assert row["baselines"]["training_tokens"] == 1000  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "none.txt"], "none.txt: no such file"),
        (["--text", "empty.txt"], "empty.txt: is empty"),
        (["--text", "pipe"], "pipe: --text must be a regular file"),
        (["--text", "https://a.org/b.txt"], "https://a.org/b.txt: --text must be a file; download it first"),
        (
            ["--text", "short.txt"],
            "short.txt has 5 tokens, but one window needs 65: model.context_length (64) and one more as the last "
            "target; use a longer text",
        ),
        (["--stride", "65"], "--stride must be an int from 1 to 64, got 65"),
        (["--stride", "0"], "--stride must be an int from 1 to 64, got 0"),
        (["--text", ""], "--text is empty"),
        (["--text", "short.txt", "--text", "short.txt"], "--text short.txt is given twice"),
        (["--ckpt_path", "best.ckpt"], "--ckpt_path best.ckpt is given twice"),
        (["best.ckpt"], "unrecognized arguments: best.ckpt"),
    ],
)
def test_bad_input(command: Command, best: Path, arguments: list[str], message: str) -> None:
    os.mkfifo("pipe")
    Path("empty.txt").write_text("")
    Path("short.txt").write_text("short")

    result = command("evaluate", "--ckpt_path", best, *arguments)

    assert result.code == 2
    assert result.error.startswith(message)


def test_another_validation_text_is_refused(command: Command, best: Path) -> None:
    content = torch.load(best, weights_only=True)
    content["datamodule_hyper_parameters"]["val_text"] = "other.txt"
    content["gpt_lightning"]["text"]["val_sha256"] = hashlib.sha256(OTHER.encode()).hexdigest()
    torch.save(content, "own.ckpt")

    (row,) = rows(command("evaluate", "--ckpt_path", "own.ckpt", "--json"))
    Path("other.txt").write_text(OTHER + ".")
    changed = command("evaluate", "--ckpt_path", "own.ckpt")

    assert row["text"] == "all of other.txt"
    message = "other.txt: is not the validation text that own.ckpt was evaluated on; --text evaluates another text"
    assert (changed.code, changed.error) == (2, message)


@pytest.mark.parametrize(("setting", "kind"), [("text", "training"), ("val_text", "validation")])
def test_a_text_of_the_checkpoint_that_is_not_a_file_is_named_as_such(
    command: Command, best: Path, setting: str, kind: str
) -> None:
    os.mkfifo("pipe")
    content = torch.load(best, weights_only=True)
    content["datamodule_hyper_parameters"][setting] = "pipe"
    torch.save(content, "moved.ckpt")

    result = command("evaluate", "--ckpt_path", "moved.ckpt")

    assert result.error == (
        f"pipe: the {kind} text of moved.ckpt must be a regular file; --text evaluates another text"
    )


def test_another_text_at_the_path_of_the_training_text_is_refused(command: Command, best: Path) -> None:
    content = torch.load(best, weights_only=True)
    content["datamodule_hyper_parameters"]["text"] = str(Path("other.txt").absolute())
    torch.save(content, "moved.ckpt")

    result = command("evaluate", "--ckpt_path", "moved.ckpt")

    assert (result.code, "other.txt: is not the text that moved.ckpt was trained on" in result.error) == (2, True)
