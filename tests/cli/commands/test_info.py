"""What `info` says about checkpoints, compared with the content of the files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import STORY, Result

from gpt_lightning.cli.commands import info

Command = Callable[..., Result]
Content = dict[str, Any]
PARAMETERS = 2 * 257 * 16 + 64 * 16 + 12 * 16**2 + 6 * 16 + 4 * 16 + 2 * 16  # of `tiny_settings`, without QKV biases
MODEL = f"model       {PARAMETERS:,} parameters: 1 layer, 2 heads, width 16, context 64, untied head"
TEXT = STORY.read_text()
TOKENS = len(TEXT.encode())
SHORT = hashlib.sha256(STORY.read_bytes()).hexdigest()[:12] + "..."


@pytest.fixture
def files(trained: Path, in_tmp: Path) -> Path:
    """Copy the checkpoints of the trained run to the current folder."""
    for name in ("best.ckpt", "last.ckpt"):
        shutil.copy(trained / "checkpoints" / name, name)
    return in_tmp


def load(name: str) -> Content:
    content: Content = torch.load(name, weights_only=True)
    return content


def save_changed(change: Callable[[Content], object], name: str = "changed.ckpt", of: str = "best.ckpt") -> None:
    content = load(of)
    change(content)
    torch.save(content, name)


def labels(result: Result) -> dict[str, str]:
    """Return the text after each label of the output; the last one if a label is repeated."""
    assert result.code == 0, result.err
    return {line[:12].strip(): line[12:] for line in result.out.splitlines()}


def size(name: str) -> str:
    return f"{os.path.getsize(name) / 1e3:.1f} kB"


def test_every_line_about_a_checkpoint(command: Command, files: Path) -> None:
    for name, contents in (("best.ckpt", "weights only"), ("last.ckpt", "weights, optimizer and random states")):
        stored = load(name)["gpt_lightning"]
        evaluated, versions, steps = stored["evaluated"], stored["versions"], stored["progress"]["steps"]
        train, val = evaluated["train_eval_loss"], evaluated["val_loss"]
        epochs = f"{steps // 5} epoch{'s' * (steps // 5 != 1)}"

        assert command("info", name).out.splitlines() == [
            MODEL,
            "tokenizer   bytes; 257 token ids in the model",
            f"text        {STORY.name}: {len(TEXT):,} characters, {TOKENS:,} tokens, sha256 {SHORT}",
            "weights     trained from random weights",
            f"progress    step {steps}, {epochs} finished, {steps * 56 * 64:,} tokens seen",
            f"evaluated   Train loss {train:.3f} (perplexity {math.exp(train):,.2f}), "
            f"Val loss {val:.3f} (perplexity {math.exp(val):,.2f})",
            "baselines   uniform 5.549, unigram 2.987, bigram 2.183, trigram 1.616",
            f"versions    gpt_lightning {versions['gpt_lightning']}, torch {torch.__version__}, "
            f"lightning {versions['lightning']}",
            f"file        {name}: {size(name)}, {contents}, float32",
            f"sha256      {hashlib.sha256(Path(name).read_bytes()).hexdigest()}",
        ]


def test_the_json_of_a_checkpoint(command: Command, files: Path) -> None:
    content = load("last.ckpt")
    stored = content["gpt_lightning"]

    found = json.loads(command("info", "last.ckpt", "--json").out)

    assert found["text"] == stored["text"]
    assert found["progress"] == {"epochs": 3, "steps": 15, "tokens_seen": 15 * 56 * 64}
    assert found["evaluated"] == stored["evaluated"]
    assert found["baselines"] == stored["baselines"] != {}
    assert found["versions"] == stored["versions"]
    assert (found["tokenizer"], found["format"]) == ("bytes", 1)
    assert found["weights"] == {"types": ["float32"], "imported": None, "init_from": None, "optimizer": True}
    assert found["file"] == {
        "path": "last.ckpt",
        "bytes": os.path.getsize("last.ckpt"),
        "sha256": hashlib.sha256(Path("last.ckpt").read_bytes()).hexdigest(),
    }
    assert found["model"].pop("description") == MODEL[12:]
    assert found["model"].pop("parameters") == PARAMETERS == sum(one.numel() for one in content["state_dict"].values())
    assert found["model"].items() <= content["hyper_parameters"].items()
    data = content["datamodule_hyper_parameters"]
    copies = {"context_length", "seed", "evaluate_batches"}
    assert found["settings"] == {
        **{f"model.{name}": value for name, value in content["hyper_parameters"].items()},
        **{f"data.{name}": value for name, value in data.items() if name not in copies},
        **{name: value for name, value in stored["fit"].items() if name != "init_from"},
        "evaluate_batches": data["evaluate_batches"],
    }


def test_baselines_and_numbers_that_are_not_finite(command: Command, files: Path) -> None:
    baselines = {"uniform": 5.549, "bigram": 2.25, "training_tokens": 4612}
    evaluated = {"val_loss": 800.0, "val_perplexity": math.inf}
    save_changed(lambda content: content["gpt_lightning"].update(baselines=baselines, evaluated=evaluated))

    lines = labels(command("info", "changed.ckpt"))
    found = json.loads(command("info", "changed.ckpt", "--json").out)
    compared = command("info", "changed.ckpt", "best.ckpt")

    assert lines["baselines"] == "uniform 5.549, bigram 2.250"
    assert lines["evaluated"] == "Val loss 800.000 (perplexity not finite)"
    assert found["baselines"] == baselines
    assert found["evaluated"] == {"val_loss": 800.0, "val_perplexity": None}
    assert "uniform 5.549000 -> 5.549076, bigram 2.250000 -> 2.182535" in labels(compared)["baselines"]
    assert "val_perplexity not finite -> " in labels(compared)["evaluated"]


def test_an_imported_checkpoint(command: Command, files: Path) -> None:
    command("export", "--ckpt_path", "best.ckpt", "--format", "safetensors", "--output", "weights.safetensors")
    command("import", "--from", "weights.safetensors", "--output", "new.ckpt")

    lines = labels(command("info", "new.ckpt"))
    compared = labels(command("info", "best.ckpt", "new.ckpt"))

    assert lines["model"] == MODEL[12:]
    assert lines["weights"] == "imported from weights.safetensors (gpt_lightning)"
    assert (lines["text"], lines["evaluated"]) == ("unknown", "never")
    assert lines["progress"] == "step 0, 0 epochs finished, 0 tokens seen"
    assert json.loads(command("info", "new.ckpt", "--json").out)["text"] is None
    assert compared["weights"] == f"trained from random weights -> {lines['weights']}"
    assert {"data.batch_size", "seed_everything"} <= set(compared["only in A"].split(", "))
    assert "only in B" not in compared
    assert compared["text"].startswith(f"name {STORY.name} -> none, sha256 {SHORT} -> none, ")
    assert compared["equal"] == "versions, weights"
    assert labels(command("info", "new.ckpt", "new.ckpt"))["equal"] == "settings, progress, versions, weights"


def test_the_origin_of_a_finetuned_checkpoint(command: Command, files: Path) -> None:
    save_changed(lambda content: content["gpt_lightning"]["fit"].update(init_from="/home/me/gpt2.ckpt"))

    assert labels(command("info", "changed.ckpt"))["weights"] == "trained from /home/me/gpt2.ckpt"
    compared = labels(command("info", "best.ckpt", "changed.ckpt"))
    assert compared["weights"] == "trained from random weights -> trained from /home/me/gpt2.ckpt"
    assert "settings" in compared["equal"]


def test_what_differs_between_two_checkpoints(command: Command, files: Path) -> None:
    def change(content: Content) -> None:
        content["hyper_parameters"].update(drop_rate=0.25, learning_rate=0.5)
        content["datamodule_hyper_parameters"] |= {"new": 1, "seed": 9}
        content["gpt_lightning"]["fit"]["seed_everything"] = 9
        content["gpt_lightning"]["text"] |= {"name": "a.txt", "sha256": "ab" * 32, "tokens": 12345}
        content["gpt_lightning"]["progress"]["steps"] += 1000
        content["gpt_lightning"]["versions"]["torch"] = "3.0"
        content["state_dict"]["model.final_norm.bias"] += 3.0

    save_changed(change)
    stored = load("best.ckpt")
    steps = stored["gpt_lightning"]["progress"]["steps"]
    bias, scale = (stored["state_dict"][f"model.final_norm.{name}"].double() for name in ("bias", "weight"))
    norm = torch.cat([bias, scale]).norm().item()
    overall = torch.cat([one.double().flatten() for one in stored["state_dict"].values()]).norm().item()

    lines = command("info", "best.ckpt", "changed.ckpt").out.splitlines()
    found = json.loads(command("info", "best.ckpt", "changed.ckpt", "--json").out)

    expected = {  # 16 biases changed by 3
        "final norm": {"norm": norm, "difference": 12.0, "relative": 12 / norm},
        "all weights": {"norm": overall, "difference": 12.0, "relative": 12 / overall},
    }
    assert lines[:9] == [
        "A           best.ckpt: weights only, float32",
        "B           changed.ckpt: weights only, float32",
        "setting     model.drop_rate 0.1 -> 0.25",
        "setting     model.learning_rate 0.01 -> 0.5",
        "setting     seed_everything 123 -> 9",
        "only in B   data.new",
        f"text        name {STORY.name} -> a.txt, sha256 {SHORT} -> abababababab..., tokens {TOKENS:,} -> 12,345",
        f"progress    steps {steps} -> {steps + 1000:,}",
        f"versions    torch {torch.__version__} -> 3.0",
    ]
    assert lines[-1] == "equal       evaluated, baselines"
    rows = {line[:22].strip(): line[22:].split() for line in lines[10:-1]}
    assert list(rows) == ["", "token embedding", "position embedding", "block 0", "final norm", "head", "all weights"]
    for name, values in found["norms"].items():
        wanted = expected.get(name, {"norm": values["norm"], "difference": 0.0, "relative": 0.0})
        assert values == pytest.approx(wanted, rel=1e-6)
        assert rows[name] == [f"{value:.4g}" for value in values.values()]
    assert found["settings"] == {
        "model.drop_rate": {"a": 0.1, "b": 0.25},
        "model.learning_rate": {"a": 0.01, "b": 0.5},
        "seed_everything": {"a": 123, "b": 9},
        "data.new": {"b": 1},
    }
    assert found["progress"] == {"steps": {"a": steps, "b": steps + 1000}}
    assert found["equal"] == ["evaluated", "baselines"]
    assert found["b"]["path"] == "changed.ckpt"


def test_architectures_that_differ_have_no_norms(command: Command, files: Path) -> None:
    save_changed(lambda content: content["hyper_parameters"].update(n_heads=4))

    found = json.loads(command("info", "best.ckpt", "changed.ckpt", "--json").out)

    assert (found["norms"], found["architecture"]) == (None, ["model.n_heads"])
    lines = labels(command("info", "best.ckpt", "changed.ckpt"))
    assert lines["norms"] == "none, because the architectures differ (model.n_heads)"
    assert lines["equal"] == "text, progress, evaluated, baselines, versions"


def test_the_newest_run_is_found_without_a_link(command: Command, files: Path) -> None:
    for number in ("9", "10"):
        Path("runs/tiny", number, "checkpoints").mkdir(parents=True)
    shutil.copy("best.ckpt", "runs/tiny/10/checkpoints")

    result = command("info", "runs/tiny/latest/best.ckpt")

    assert labels(result)["file"].startswith(f"runs/tiny/latest/best.ckpt: {size('best.ckpt')}, ")
    assert labels(result)["sha256"] == hashlib.sha256(Path("best.ckpt").read_bytes()).hexdigest()


def test_unprintable_characters_do_not_reach_the_terminal(command: Command, files: Path) -> None:
    save_changed(lambda content: content["gpt_lightning"]["text"].update(name="a\x1b[31m\n\ud800.txt"))

    assert labels(command("info", "changed.ckpt"))["text"].startswith(r"a\x1b[31m\n\ud800.txt: ")


def test_a_file_that_is_replaced_meanwhile_is_an_error(
    command: Command, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(path: str) -> str:
        os.replace("best.ckpt", path)
        return ""

    monkeypatch.setattr(info, "sha256_of", replaced)

    result = command("info", "last.ckpt")

    assert (result.code, result.out) == (2, "")
    assert result.error == "last.ckpt: was replaced while it was read; run the command again"


circle: list[Any] = []
circle.append(circle)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda one: one.pop("gpt_lightning"), "is not a checkpoint of gpt_lightning"),
        (lambda one: one["gpt_lightning"].pop("text"), "gpt_lightning.text is missing or of the wrong type"),
        (lambda one: one["gpt_lightning"].update(format=2), "has checkpoint format 2; this program reads format 1"),
        (lambda one: one["gpt_lightning"].update(evaluated={"val_loss": "a"}), "evaluated must have a number for each"),
        (lambda one: one["gpt_lightning"].update(baselines=[1.0]), "baselines must have a number for each name"),
        (lambda one: one["gpt_lightning"].update(imported="a"), "imported must be a name and a format"),
        (lambda one: one["gpt_lightning"]["versions"].update(a=torch.ones(1)), "its metadata must be plain data"),
        (lambda one: one["hyper_parameters"].update(a=circle), "its metadata must be plain data"),
        (lambda one: one["datamodule_hyper_parameters"].update(a=[1 << 70]), "its metadata must be plain data"),
        (lambda one: one["state_dict"].pop("model.tok_emb.weight"), "weights do not fit the model (tok_emb.weight)"),
        (lambda one: one["state_dict"]["model.out_head.weight"].fill_(math.nan), "contains non-finite weights (out_"),
    ],
    ids=range(11),
)
def test_unusable_checkpoints(command: Command, files: Path, change: Callable[[Content], object], error: str) -> None:
    save_changed(change)

    for arguments in (["changed.ckpt"], ["changed.ckpt", "--json"], ["best.ckpt", "changed.ckpt"]):
        result = command("info", *arguments)

        assert (result.code, result.out) == (2, "")
        assert result.error.startswith(f"changed.ckpt: {error}")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "the following arguments are required: CKPT"),
        (["best.ckpt", "best.ckpt", "last.ckpt"], "info takes one checkpoint, or two to compare; got 3"),
        (["none.ckpt"], "none.ckpt: no such file"),
        (["best.ckpt", "none.ckpt"], "none.ckpt: no such file"),
        ([""], "CHECKPOINT is empty"),
        (["https://a/b.ckpt"], "https://a/b.ckpt: must be a local file"),
        (["."], ".: is a folder, not a checkpoint; it contains best.ckpt"),
        (["cut.ckpt"], "cut.ckpt: is not a complete checkpoint"),
        (["text.ckpt"], "text.ckpt: is not a checkpoint"),
        (["model.pth"], "model.pth: is not a checkpoint of gpt_lightning; convert it with `import --from model.pth"),
        (["--yaml", "best.ckpt"], "unrecognized arguments: --yaml"),
    ],
)
def test_wrong_arguments(command: Command, files: Path, arguments: list[str], error: str) -> None:
    Path("cut.ckpt").write_bytes(Path("last.ckpt").read_bytes()[:5000])
    Path("text.ckpt").write_text("not a zip archive")
    torch.save({"tok_emb.weight": torch.ones(2)}, "model.pth")

    result = command("info", *arguments)

    assert (result.code, result.out) == (2, "")
    assert result.error.startswith(error)
