"""The commands from end to end."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, STORY, Result
from torch.nn import functional as F

import gpt_lightning
from gpt_lightning.cli.help import HELP
from gpt_lightning.cli.main import main
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT
from gpt_lightning.training.module import GPTModule

Command = Callable[..., Result]


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "gpt_lightning", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def test_the_list_of_commands_is_shown_without_importing_lightning() -> None:
    code = "import sys; from gpt_lightning.cli.main import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=10)

    modules = done.stdout.splitlines()[-1]
    assert "'lightning" not in modules
    assert "'torch" not in modules
    for name in ("fit", "validate", "test", "predict"):
        assert f"\n  {name}" in done.stdout


def test_fit_imports_no_package_that_lightning_only_might_use() -> None:
    """Importing transformers for torchmetrics took as long as importing torch; both packages can still be imported."""
    code = (
        "import importlib.metadata, sys\n"
        "from gpt_lightning.cli.main import main\n"
        "try: main(['fit', '--model.emb_dim', 'wide'])\n"
        "except SystemExit: print({'lightning', 'torchmetrics', 'transformers', 'matplotlib'} & set(sys.modules))\n"
        "import matplotlib, transformers\n"
        "print(importlib.metadata.version('transformers'), transformers.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)

    modules, versions = done.stdout.splitlines()[-2:]
    assert sorted(eval(modules)) == ["lightning", "torchmetrics"], done.stderr
    assert len(set(versions.split())) == 1


@pytest.mark.parametrize("name", HELP)
def test_help_shows_each_main_setting_with_its_default_on_one_line(name: str, command: Command) -> None:
    done = command(name, "--help")

    lines = done.out.splitlines()
    assert done.code == 0
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 115
    options = [line for line in lines if line.startswith("  --")]
    assert len(options) == sum(len(names.split()) for names in HELP[name].groups.values())
    for line in options:
        option, explanation = line[:40], line[40:]
        assert option.endswith(" ")
        assert re.fullmatch(r"  --[a-z_.]+( \S+)?", option.rstrip())
        assert re.fullmatch(r"\w.*[\w)]", explanation), line
    for text in HELP[name].explained.values():
        assert text.removesuffix(".") in done.out
    if name == "check":
        assert "--resume" not in done.out
    if name == "fit":
        assert "  --data.train_ratio 0.9 " in done.out
        assert "model.stride" not in done.out
        assert [line for line in lines if line.endswith(":")] == [
            "data:",
            "model:",
            "training:",
            "sampling:",
            "saving:",
        ]


def test_version(command: Command) -> None:
    assert command("--version").out == f"gpt_lightning {gpt_lightning.__version__}\n"


def test_full_help_lists_every_setting(command: Command) -> None:
    shown = command("fit", "--help=all").out

    for name in ("model.n_layers", "data.train_ratio", "sampling.top_k", "evaluate_every", "trainer.max_epochs"):
        assert f"--{name} " in shown
    for owned in (
        "trainer.val_check_interval",
        "trainer.min_steps",
        "ckpt_path",
        "weights_only",
        "data.context_length",
    ):
        assert f"--{owned} " not in shown


# ---- predict


def test_predict_writes_prompts_and_completions_and_nothing_else(trained: Path, command: Command) -> None:
    checkpoint = str(trained / "checkpoints/best.ckpt")
    prompts = ["Every effort", "123", "null", "a: b", "[1, 2]", "-x", "caf\u00e9 <|endoftext|> \U0001f600"]
    arguments = ["--ckpt_path", checkpoint, *(f"--prompt={one}" for one in prompts), "--sampling.temperature=1"]

    done = program("predict", *arguments, PYTHONUTF8="1")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == command("predict", *arguments).out
    rest = done.stdout
    for prompt in prompts:
        assert prompt in rest
        rest = rest[rest.index(prompt) + len(prompt) :]
    assert rest.endswith("\n")


def test_predict_needs_nothing_but_the_checkpoint(command: Command, in_tmp: Path, trained: Path) -> None:
    alone = in_tmp / "alone.ckpt"
    alone.write_bytes((trained / "checkpoints/best.ckpt").read_bytes())

    result = command("predict", "--ckpt_path", alone, "--prompt", "Every", "--sampling.max_new_tokens", 3)

    assert result.code == 0
    assert result.out.startswith("Every")
    assert os.listdir(in_tmp) == ["alone.ckpt"]


def test_greedy_is_top_k_1_and_the_seed_decides(command: Command, trained: Path) -> None:
    def text(*settings: str) -> str:
        return command("predict", "--ckpt_path", trained / "checkpoints/last.ckpt", "--prompt=The", *settings).out

    assert text() == text("--sampling.temperature=1", "--sampling.top_k=1") == text("--sampling.temperature=1e-300")
    assert text("--sampling.temperature=1") == text("--sampling.temperature=1", "--sampling.seed=123")
    assert text("--sampling.temperature=1") != text("--sampling.temperature=1", "--sampling.seed=4")


def test_eos_id_ends_a_completion_before_it(command: Command, trained: Path) -> None:
    arguments = (
        "predict",
        "--ckpt_path",
        trained / "checkpoints/last.ckpt",
        "--prompt=The",
        "--sampling.temperature=1",
    )
    free = command(*arguments).out.removeprefix("The").rstrip("\n").encode()
    letter = next(byte for byte in free if byte < 128)

    stopped = command(*arguments, "--sampling.eos_id", letter).out

    assert stopped == "The" + free[: free.index(letter)].decode() + "\n"


def test_checkpoints_of_other_devices_are_read(trained: Path, command: Command, in_tmp: Path) -> None:
    # The file as a CUDA device would write it: the device of each storage is stored as a text.
    best = trained / "checkpoints/best.ckpt"
    with zipfile.ZipFile(best) as old, zipfile.ZipFile("cuda.ckpt", "w", zipfile.ZIP_STORED) as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith("data.pkl"):
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
                assert b"cuda:0" in content
            new.writestr(item.filename, content)

    expected = command("predict", "--ckpt_path", best, "--prompt=The").out
    assert command("predict", "--ckpt_path", "cuda.ckpt", "--prompt=The").out == expected


# ---- validate and test


def test_logger_false_disables_tensorboard(command: Command, config: Path) -> None:
    result = command("fit", "--config", config, "--run_dir", "run", "--trainer.logger=false")

    assert result.code == 0, result.err
    assert not list(Path("run").glob("events.*"))
    assert Path("run/metrics.jsonl").exists()


def test_validate_uses_the_validation_split_or_the_whole_of_a_text(
    command: Command, trained: Path, in_tmp: Path
) -> None:
    checkpoint = trained / "checkpoints/last.ckpt"
    own = command("validate", "--ckpt_path", checkpoint)
    whole = command("validate", "--ckpt_path", checkpoint, "--data.text", STORY)
    Path("part.txt").write_text(STORY.read_text()[: 64 * 3 + 5])
    part = command("validate", "--ckpt_path", checkpoint, "--data.text", "part.txt")
    test = command("test", "--ckpt_path", checkpoint, "--data.test_text", "part.txt")

    assert own.out.startswith("validation split of the-lamp-at-low-water.txt: loss 3.13")
    assert "over 1,984 tokens in 31 windows of 64; 61 trailing tokens are unused" in own.out
    assert "all of the-lamp-at-low-water.txt: loss" in whole.out
    assert "over 20,416 tokens in 319 windows of 64" in whole.out
    assert test.out == part.out
    state = torch.load(checkpoint)["state_dict"]
    model = GPT(GPTConfig(257, context_length=64, emb_dim=16, n_heads=2, n_layers=1)).eval()
    model.load_state_dict({key.removeprefix("model."): value for key, value in state.items()})
    token_ids = torch.tensor(list(Path("part.txt").read_bytes()))
    with torch.no_grad():
        logits = model(token_ids[:192].view(3, 64))
    expected = F.cross_entropy(logits.flatten(0, 1), token_ids[1:193]).item()
    assert float(part.out.split("loss ")[1].split()[0]) == pytest.approx(expected, abs=1e-5)


def test_fit_and_validate_agree(command: Command, trained: Path) -> None:
    evaluated = torch.load(trained / "checkpoints/last.ckpt")["gpt_lightning"]["evaluated"]

    result = command("validate", "--ckpt_path", trained / "checkpoints/last.ckpt")

    assert (
        f"loss {evaluated['val_loss']:.6f} nats per token, perplexity {evaluated['val_perplexity']:.4f}" in result.out
    )


def test_the_command_line_wins_over_the_checkpoint(command: Command, trained: Path) -> None:
    checkpoint = trained / "checkpoints/last.ckpt"

    fewer = command("validate", "--ckpt_path", checkpoint, "--data.train_ratio", "0.95")

    assert "over 960 tokens in 15 windows" in fewer.out


# ---- without the network


def test_without_the_verdict_the_bundled_story_is_used(command: Command, in_tmp: Path) -> None:
    config = ROOT / "configs" / "verdict.yaml"
    tiny = ["--model.emb_dim=12", "--model.n_layers=1", "--model.context_length=64", "--trainer.max_steps=3"]
    fallback = [f"--data.fallback_text={STORY}", "--data.url=http://127.0.0.1:1/the-verdict.txt"]

    result = command("fit", "--config", config, "--run_dir", "run", *tiny, *fallback)

    assert result.code == 0
    warnings = [line for line in result.err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert f"using the text {STORY} instead of data/the-verdict.txt" in warnings[0]
    for name in ("best", "last"):
        checkpoint = torch.load(f"run/checkpoints/{name}.ckpt", weights_only=True)
        assert checkpoint["gpt_lightning"]["text"]["name"] == STORY.name
    assert command("validate", "--ckpt_path", "run/checkpoints/last.ckpt").code == 0
    strict = command("fit", "--config", config, "--run_dir", "x", *tiny, *fallback, "--data.fallback_text=null")
    assert strict.code == 1
    assert "the-verdict.txt: no such file; http://127.0.0.1:1/the-verdict.txt: cannot be downloaded" in strict.error
    assert not Path("x").exists()


def test_a_missing_text_of_the_command_line_is_not_replaced_by_the_fallback(command: Command, in_tmp: Path) -> None:
    result = command("fit", "--config", ROOT / "configs" / "verdict.yaml", "--data.text", "typo.txt")

    assert (result.code, result.error) == (2, "typo.txt: no such file")


@pytest.mark.parametrize("prompts", [(), ("--prompt", "123", "--prompt", "null", "--prompt", "a: b")])
def test_prompts_are_texts_also_in_the_runs_config(command: Command, config: Path, prompts: tuple[str, ...]) -> None:
    written = "[others]" if prompts else "['123', 'null', 'a: b']"
    Path("more.yaml").write_text(f"prompt: {written}\ntrainer: {{max_steps: 1}}\n")

    first = command("fit", "--config", config, "--config", "more.yaml", "--run_dir", "first", *prompts)
    again = command("fit", "--config", "first/tiny.yaml", "--run_dir", "again")

    assert (first.code, again.code) == (0, 0), first.err + again.err
    for run in ("first", "again"):
        rows = [json.loads(line) for line in Path(run, "samples.jsonl").read_text().splitlines()]
        assert [row["prompt"] for row in rows] == ["123", "null", "a: b"]


# ---- errors; see also test_bad_inputs.py


@pytest.mark.parametrize("name", ["fit", "check"])
def test_a_batch_larger_than_the_memory_is_named(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(GPTModule, "training_step", lambda *_: torch.empty(10**18, dtype=torch.int8))

    result = command(name, "--config", config)

    assert result.code == 1
    assert result.error.startswith("out of memory (tried to allocate 1000000000.0 GB, this machine has ")
    assert "): lower data.batch_size (56), model.context_length (64) or the model, or set model.act" in result.error


@pytest.mark.parametrize(
    "callbacks",
    [
        {
            "Timer": {"duration": "00:01:00:00"},
            "LearningRateMonitor": {},
            "EMAWeightAveraging": {"decay": 0.9},
            "ThroughputMonitor": {
                "batch_size_fn": "gpt_lightning.data.windows.windows_in_batch",
                "length_fn": "gpt_lightning.data.windows.tokens_in_batch",
            },
        },
        {"WeightAveraging": {}, "GradientAccumulationScheduler": {"scheduling": {1: 2}}},
    ],
)
def test_callbacks_of_lightning_work_from_yaml_and_from_the_runs_config(
    command: Command, config: Path, callbacks: dict[str, Any]
) -> None:
    named = [
        {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": options}
        for name, options in callbacks.items()
    ]
    Path("callbacks.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": named, "max_epochs": 2}}))

    first = command("fit", "--config", config, "--config", "callbacks.yaml", "--run_dir", "first")
    again = command("fit", "--config", "first/tiny.yaml", "--run_dir", "again")

    assert (first.code, again.code) == (0, 0), first.err + again.err
    assert "warning" not in first.err
    weights = [torch.load(f"{run}/checkpoints/last.ckpt")["state_dict"] for run in ("first", "again")]
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())


def test_a_bug_is_reported_in_one_line_with_the_path_of_its_traceback(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import tempfile

    from gpt_lightning.cli import lightning_cli

    def broken(*_: object) -> None:
        raise ZeroDivisionError("oh no")

    monkeypatch.setattr(lightning_cli, "fit", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    result = command("fit", "--config", config)

    assert result.code == 70
    assert result.error.startswith("internal error: ZeroDivisionError: oh no (a bug; traceback in ")
    assert "oh no" in Path(result.error.split("traceback in ")[1].rstrip(")")).read_text()
    with pytest.raises(ZeroDivisionError):
        command("fit", "--config", config, "--debug")


def test_output_that_the_terminal_cannot_encode_is_not_an_error(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))

    main(["predict", "--ckpt_path", str(trained / "checkpoints/last.ckpt"), "--prompt=h\u00e9"])

    assert written.getvalue().startswith(b"h?")


def test_a_prompt_may_be_the_text_debug_flag(command: Command, trained: Path) -> None:
    arguments = ("--ckpt_path", trained / "checkpoints/last.ckpt", "--sampling.max_new_tokens", 2)

    result = command("predict", *arguments, "--prompt", "--debug", "--debug")

    assert (result.code, result.out[:7]) == (0, "--debug")


@pytest.mark.parametrize(("logger", "flag"), [("WandbLogger", "wandb._WANDB"), ("MLFlowLogger", "mlflow._MLFLOW")])
def test_a_logger_that_is_not_installed_is_named(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch, logger: str, flag: str
) -> None:
    monkeypatch.setattr(f"lightning.pytorch.loggers.{flag}_AVAILABLE", False)
    settings = yaml.safe_load(config.read_text())
    settings["trainer"]["logger"] = {"class_path": f"lightning.pytorch.loggers.{logger}"}
    config.write_text(yaml.safe_dump(settings))

    result = command("fit", "--config", config, "--run_dir", "run")

    assert result.code == 2
    assert result.error.startswith(f"trainer: {logger}: ")
    assert not Path("run").exists()


OWN_CALLBACK = """
from pathlib import Path

from lightning.pytorch import Callback


class Note(Callback):
    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_end(self, trainer, pl_module) -> None:
        Path(self.name).write_text(str(trainer.global_step))
"""


def test_own_classes_need_allow_classes_of(command: Command, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own_callbacks.py").write_text(OWN_CALLBACK)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    settings = yaml.safe_load(config.read_text())
    settings["trainer"]["callbacks"] = [{"class_path": "own_callbacks.Note", "init_args": {"name": "noted"}}]
    config.write_text(yaml.safe_dump(settings))
    arguments = ("fit", "--config", config, "--trainer.max_steps=1")

    refused = command(*arguments, "--run_dir", "a")
    assert (refused.code, os.path.exists("noted")) == (2, False)
    assert "class_path 'own_callbacks.Note' is not allowed" in refused.error
    assert command(*arguments, "--run_dir", "b", "--allow_classes_of", "own_callbacks").code == 0
    assert Path("noted").read_text() == "1"
