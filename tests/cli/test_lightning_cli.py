"""The commands from end to end, and one line for everything that is wrong with what was typed."""

from __future__ import annotations

import io
import json
import os
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
from gpt_lightning.cli.main import main
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT
from gpt_lightning.training.module import GPTModule

Command = Callable[..., Result]


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the real command line in a process of its own."""
    command = [sys.executable, "-m", "gpt_lightning", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def test_the_table_of_commands_answers_at_once_and_without_lightning() -> None:
    code = "import sys; from gpt_lightning.cli.main import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=10)

    modules = done.stdout.splitlines()[-1]
    assert "'lightning" not in modules
    assert "'torch" not in modules
    for name in ("fit", "validate", "test", "predict"):
        assert f"\n  {name}" in done.stdout


def test_version_and_unknown_commands(command: Command) -> None:
    version, nothing, unknown = command("--version"), command(), command("predikt")

    assert version.out == f"gpt_lightning {gpt_lightning.__version__}\n"
    commands = "expected one of fit, check, validate, test, predict, verify-resume, import, export, plot, explain, look"
    assert (nothing.code, nothing.error) == (2, commands)
    assert unknown.error == f"{commands}; got 'predikt'; did you mean predict?"


def test_help_lists_every_setting(command: Command) -> None:
    shown = command("fit", "--help").out

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
    # The same file as it would be written on a CUDA device: the place of each storage is a text in it.
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


def test_a_text_that_is_too_short_to_evaluate_is_asked_to_be_longer(
    command: Command, trained: Path, in_tmp: Path
) -> None:
    Path("word.txt").write_text("lamp")
    checkpoint = trained / "checkpoints/best.ckpt"
    for command_line in (("validate", "--data.text=word.txt"), ("test", "--data.test_text=word.txt")):
        result = command(*command_line, "--ckpt_path", checkpoint)

        assert result.code == 2
        assert result.error == "word.txt: the text (4 tokens) is shorter than one window (65 tokens); give a longer one"


def test_no_logger_leaves_tensorboard_out(command: Command, config: Path) -> None:
    result = command("fit", "--config", config, "--run_dir", "run", "--trainer.logger=false")

    assert result.code == 0, result.err
    assert not list(Path("run").glob("events.*"))
    assert Path("run/metrics.jsonl").exists()


def test_validate_reads_its_own_split_or_the_whole_of_a_text(command: Command, trained: Path, in_tmp: Path) -> None:
    checkpoint = trained / "checkpoints/last.ckpt"
    own = command("validate", "--ckpt_path", checkpoint)
    whole = command("validate", "--ckpt_path", checkpoint, "--data.text", STORY)
    Path("part.txt").write_text(STORY.read_text()[: 64 * 3 + 5])
    part = command("validate", "--ckpt_path", checkpoint, "--data.text", "part.txt")
    test = command("test", "--ckpt_path", checkpoint, "--data.test_text", "part.txt")

    assert own.out.startswith("validation split of the-lamp-at-low-water.txt: loss 3.13")
    assert "over 1,984 tokens in 31 windows of 64; no window predicts the last 61" in own.out
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


def test_another_text_under_the_same_name_is_refused_in_one_line(command: Command, config: Path) -> None:
    Path("own.txt").write_text(STORY.read_text())
    command("fit", "--config", config, "--run_dir", "run", "--data.text", "own.txt", "--trainer.max_steps=1")
    Path("own.txt").write_text(STORY.read_text() + "More.")

    validated = command("validate", "--ckpt_path", "run/checkpoints/last.ckpt")
    resumed = command("fit", "--config", config, "--run_dir", "run", "--resume")

    for result in (validated, resumed):
        assert result.code == 2
        assert "own.txt: is not the text that run/checkpoints/last.ckpt was trained on" in result.error
        assert len([line for line in result.err.splitlines() if "own.txt: is not" in line]) == 1


def test_typed_settings_win_over_the_checkpoints(command: Command, trained: Path) -> None:
    checkpoint = trained / "checkpoints/last.ckpt"

    fewer = command("validate", "--ckpt_path", checkpoint, "--data.train_ratio", "0.95")

    assert "over 960 tokens in 15 windows" in fewer.out


# ---- without the network


def test_without_the_verdict_the_own_story_serves(command: Command, in_tmp: Path) -> None:
    config = ROOT / "configs" / "verdict.yaml"
    tiny = ["--model.emb_dim=12", "--model.n_layers=1", "--model.context_length=64", "--trainer.max_steps=3"]
    fallback = [f"--data.fallback_text={STORY}", "--data.url=http://127.0.0.1:1/the-verdict.txt"]

    result = command("fit", "--config", config, "--run_dir", "run", *tiny, *fallback)

    assert result.code == 0
    warnings = [line for line in result.err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert f"training text is {STORY} instead of data/the-verdict.txt" in warnings[0]
    for name in ("best", "last"):
        checkpoint = torch.load(f"run/checkpoints/{name}.ckpt", weights_only=True)
        assert checkpoint["gpt_lightning"]["text"]["name"] == STORY.name
    assert command("validate", "--ckpt_path", "run/checkpoints/last.ckpt").code == 0
    strict = command("fit", "--config", config, "--run_dir", "x", *tiny, *fallback, "--data.fallback_text=null")
    assert strict.code == 1
    assert "the-verdict.txt: no such file; http://127.0.0.1:1/the-verdict.txt: cannot be fetched" in strict.error
    assert not Path("x").exists()


def test_a_mistyped_text_is_not_replaced_by_the_configs(command: Command, in_tmp: Path) -> None:
    result = command("fit", "--config", ROOT / "configs" / "verdict.yaml", "--data.text", "typo.txt")

    assert (result.code, result.error) == (2, "typo.txt: no such file")


@pytest.mark.parametrize("typed", [(), ("--prompt", "123", "--prompt", "null", "--prompt", "a: b")])
def test_prompts_are_texts_and_stay_so_in_the_run_folder(
    command: Command, config: Path, typed: tuple[str, ...]
) -> None:
    written = "[others]" if typed else "['123', 'null', 'a: b']"
    Path("more.yaml").write_text(f"prompt: {written}\ntrainer: {{max_steps: 1}}\n")

    first = command("fit", "--config", config, "--config", "more.yaml", "--run_dir", "first", *typed)
    again = command("fit", "--config", "first/tiny.yaml", "--run_dir", "again")

    assert (first.code, again.code) == (0, 0), first.err + again.err
    for run in ("first", "again"):
        rows = [json.loads(line) for line in Path(run, "samples.jsonl").read_text().splitlines()]
        assert [row["prompt"] for row in rows] == ["123", "null", "a: b"]


# ---- bad input

QUOTE = "quote what YAML reads as something else"

BAD_SETTINGS = [
    ("--modle.n_layers=2", "unknown setting 'modle.n_layers'; did you mean 'model.n_layers'?"),
    ("--model.n_layer=2", "unknown setting 'model.n_layer'; did you mean 'model.n_layers'?"),
    ("--model.n_layers=two", "model.n_layers must be an int, not 'two'"),
    ("--model.n_layers=0", "model.n_layers must be an int of at least 1, got 0"),
    ("--model.emb_dim=15", "model.emb_dim (15) must be divisible by model.n_heads (2)"),
    ("--model.vocab_size=0", "model.vocab_size must be an int of at least 1, got 0"),
    ("--model.vocab_size=100", "model.vocab_size (100) is smaller than the tokenizer's 257"),
    ("--model.vocab_size=true", "model.vocab_size must be an int or null, not 'true'"),
    ("--model.learning_rate=-0.1", "model.learning_rate must be a finite number above 0, got -0.1"),
    ("--model.learning_rate=fast", "model.learning_rate must be a number, not 'fast'"),
    ("--model.learning_rate=nan", "model.learning_rate must be a number, not 'nan'"),
    ("--model.warmup_steps=500", "model.warmup_steps (500) must be below the run's 15 steps"),
    ("--model.context_length=8192", "the validation split (2046 tokens) is shorter than one window (8193 tokens)"),
    ("--data.context_length=16", 'Linked "data.context_length" must be given via "model.context_length".'),
    ("--data.batch_size=0", "data.batch_size must be an int of at least 1, got 0"),
    ("--data.batch_size=500", "data.batch_size (500) exceeds the 287 training windows"),
    ("--data.train_ratio=2", "data.train_ratio must be between 0 and 1, got 2.0"),
    ("--data.num_workers=10000", "data.num_workers must be an int from 0 to 16, got 10000"),
    ("--data.tokenizer=gpt5", "data.tokenizer must be one of bytes, gpt2,"),
    ("--data.text=nope.txt", "nope.txt: no such file"),
    ("--data.text=", "data.text is missing: give a text file, or a config that names one"),
    ("--trainer.max_epochs=0", "trainer.max_epochs must be an int of at least 1, got 0"),
    ("--trainer.max_epochs=-5", "trainer.max_epochs must be an int of at least 1, got -5"),
    ("--trainer.max_epochs=-1", "one of trainer.max_epochs, trainer.max_steps and trainer.max_time must end the run"),
    ("--trainer.max_epoch=3", "unknown setting 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
    ("--trainer.precision=bf61", "trainer.precision must be one of auto, 32-true, 16-mixed, bf16-mixed,"),
    ("--trainer.precision=16-mixed", "trainer.precision 16-mixed does not run on cpu"),
    ("--trainer.accelerator=gpuu", "trainer.accelerator must be one of auto, cpu,"),
    ("--trainer.accelerator=cuda", "trainer.accelerator is cuda but this machine has no CUDA device"),
    ("--trainer.accelerator=tpu", "trainer.accelerator is tpu but torch_xla is not installed"),
    ("--trainer.devices=0", "trainer.devices must be an int of at least 1, got 0"),
    ("--trainer.devices=9999", "trainer.devices asks for 9999, this machine has "),
    ("--trainer.devices=many", "trainer: `devices` selected with `CPUAccelerator` should be an int > 0."),
    ("--trainer.strategy=many", "trainer: You selected an invalid strategy name: `strategy='many'`."),
    ("--trainer.gradient_clip_val=-1", "trainer.gradient_clip_val must be a finite number of at least 0, got -1"),
    ("--trainer.gradient_clip_val=nan", "trainer.gradient_clip_val must be an int or a number or null, not 'nan'"),
    ("--trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches must be an int of at least 1, got 0"),
    ("--trainer.limit_train_batches=0", "trainer.limit_train_batches must be an int of at least 1 or a share above 0"),
    ("--trainer.limit_val_batches=0.1", "trainer.limit_val_batches (0.1) leaves none of the 1 batches"),
    (
        "--trainer.callbacks=[{class_path: BatchSizeFinder}]",
        "trainer.callbacks: BatchSizeFinder changes data.batch_size when the steps of the run are counted; set data.",
    ),
    (
        "--trainer.callbacks=[{class_path: OnExceptionCheckpoint, init_args: {dirpath: .}}]",
        "trainer.callbacks: OnExceptionCheckpoint saves what a run cannot go on from exactly; last.ckpt serves",
    ),
    (
        "--trainer.callbacks=[{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.01}}]",
        "trainer.callbacks: StochasticWeightAveraging neither saves its averages as weights nor goes on with the same "
        "learning rates; take EMAWeightAveraging",
    ),
    (
        "--trainer.callbacks=[{class_path: EMAWeightAveraging, init_args: {update_starting_at_epoch: 1}}]",
        "trainer.callbacks: EMAWeightAveraging's update_starting_at_epoch (1) averages after the evaluation at the end",
    ),
    (
        "--trainer.callbacks=[{class_path: ModelPruning, init_args: {pruning_fn: l1_unstructured}}]",
        "trainer.callbacks: ModelPruning gives the weights other names than a checkpoint's",
    ),
    (
        "--trainer.plugins=[{class_path: lightning.pytorch.plugins.DoublePrecision}]",
        "trainer.plugins: DoublePrecision is chosen by the setting trainer.precision (64-true, 16-true, bf16-mixed",
    ),
    (
        "--trainer.plugins=[{class_path: lightning.fabric.plugins.XLAPrecision, init_args: {precision: 32-true}}]",
        "trainer.plugins: XLAPrecision is chosen by the setting trainer.precision",
    ),
    (
        "--trainer.plugins=[{class_path: lightning.pytorch.plugins.AsyncCheckpointIO}]",
        "trainer.plugins: AsyncCheckpointIO cannot be set: the program writes its checkpoints itself, each whole or",
    ),
    (
        "--trainer.plugins=[{class_path: lightning.fabric.plugins.TorchCheckpointIO}]",
        "trainer.plugins: TorchCheckpointIO cannot be set: the program writes its checkpoints itself",
    ),
    (
        "--trainer.strategy={class_path: lightning.pytorch.strategies.ModelParallelStrategy}",
        "trainer.strategy: ModelParallelStrategy needs a network that is written to be cut into parts",
    ),
    (
        "--trainer.strategy={class_path: lightning.pytorch.strategies.DeepSpeedStrategy}",
        "trainer.strategy: DeepSpeedStrategy writes checkpoints of its own, in folders; take ddp or fsdp",
    ),
    ("--trainer.strategy=deepspeed_stage_2", "trainer.strategy: deepspeed_stage_2 writes checkpoints of its own"),
    (
        ("--data.text=tiny.yaml", "--data.text=other.yaml"),
        "--data.text is given twice; many documents are a folder, a glob or a .jsonl file",
    ),
    (
        ("--data.val_text=tiny.yaml", "--data.train_ratio=0.5"),
        "data.train_ratio has no effect, because data.val_text is the validation text; give one",
    ),
    ("--trainer.callbacks=nope.Callback", "class_path 'nope.Callback' is not allowed; only classes of Lightning that"),
    ("--trainer.callbacks=[{class_path: os.system}]", "class_path 'os.system' is not allowed"),
    ("--trainer.callbacks=[{class_path: EarlyStopping}]", "trainer.callbacks: option 'monitor' is missing"),
    (
        "--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitr: a}}]",
        "trainer.callbacks: unknown option 'monitr'",
    ),
    (
        "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.Nope}]",
        "class_path 'lightning.pytorch.callbacks.Nope' not found",
    ),
    (
        "--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: loss}}]",
        "trainer.callbacks: EarlyStopping cannot monitor 'loss', only val_loss, val_perplexity, train_eval_loss,",
    ),
    (
        "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.LambdaCallback}]",
        "class_path 'lightning.pytorch.callbacks.LambdaCallback' is not allowed; only classes of Lightning",
    ),
    ("--seed_everything=-1", "seed_everything must be an int from 0 to 4294967295, got -1"),
    ("--seed_everything=true", "seed_everything must be an int, not 'True'"),
    ("--evaluate_every=0", "evaluate_every must be an int of at least 1, got 0"),
    ("--save_every=0", "save_every must be an int of at least 1, got 0"),
    ("--sampling.top_k=258", "sampling.top_k must be an int from 1 to 257, got 258"),
    ("--sampling.temperature=-1", "sampling.temperature must be a finite number of at least 0, got -1.0"),
    ("--sampling.max_new_tokens=0", "sampling.max_new_tokens must be an int of at least 1, got 0"),
    ("--prompt=", "prompt is empty; to start from nothing give <|endoftext|>"),
    ("--foo", "unknown setting 'foo'"),
    ("foo", "'foo' belongs to no option; options begin with --"),
    ("--model=null", "model must be settings (--model.NAME VALUE), not 'null'"),
    ("--trainer.callbacks=foo", "trainer.callbacks must name a class of Lightning (class_path: NAME), not 'foo'"),
    ("--trainer.max_time=abc", "trainer.max_time must be a duration as DD:HH:MM:SS, got 'abc'"),
    ("--run_dir=", "--run_dir is empty; name a folder"),
    ("--trainer.num_nodes=2", "trainer.num_nodes (2) needs torchrun or SLURM to start the processes"),
    ("--trainer.strategy=ddp_spawn", "trainer.strategy ddp_spawn cannot carry a run's open files to other processes"),
    ("--trainer.min_epochs=3", "unknown setting 'trainer.min_epochs'; did you mean 'trainer.max_epochs'?"),
    ("--model.weight_decay=1" + 400 * "0", "int too large to convert to float"),
]


@pytest.mark.parametrize(("setting", "message"), BAD_SETTINGS)
def test_bad_settings_get_one_line_and_leave_nothing_behind(
    command: Command, config: Path, setting: str | tuple[str, ...], message: str
) -> None:
    if torch.cuda.is_available() and ("cuda" in setting or "16" in setting):
        pytest.skip("this machine has what the test says is missing")

    result = command("fit", "--config", config, *([setting] if isinstance(setting, str) else setting))

    assert result.code == 2
    assert message in result.error
    assert len(result.err.splitlines()) == 1
    assert os.listdir() == ["tiny.yaml"]


def test_a_model_larger_than_the_memory_is_refused_before_it_is_built(command: Command, config: Path) -> None:
    result = command("fit", "--config", config, "--model.n_layers", 10**9)

    # A block of width 16 has 12 * 16^2 + 13 * 16 - 3 * 16 weights without biases in its projection.
    weights = 257 * 16 * 2 + 64 * 16 + 10**9 * (12 * 256 + 10 * 16) + 2 * 16
    assert (result.code, os.listdir()) == (1, ["tiny.yaml"])
    assert result.error.startswith(f"out of memory: the {weights:,} weights of model.emb_dim (16) and model.n_layers (")


@pytest.mark.parametrize("name", ["fit", "check"])
def test_a_batch_larger_than_the_memory_is_named(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(GPTModule, "training_step", lambda *_: torch.empty(10**18, dtype=torch.int8))

    result = command(name, "--config", config)

    assert result.code == 1
    assert result.error.startswith("out of memory (1000000000.0 GB were asked for at once, this machine has ")
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
def test_callbacks_of_lightning_work_from_yaml_and_from_the_runs_own_settings(
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


def test_a_callback_that_fails_is_named(command: Command, config: Path) -> None:
    result = command("fit", "--config", config, "--trainer.callbacks=[{class_path: BackboneFinetuning}]")

    assert result.code == 2
    assert result.error == (
        "trainer.callbacks: BackboneFinetuning does not work here: "
        "AttributeError: 'GPTModule' object has no attribute 'backbone'"
    )


def test_a_run_that_trains_nothing_does_not_end_well(command: Command, config: Path) -> None:
    result = command("fit", "--config", config, "--trainer.max_time=00:00:00:00")

    assert result.code == 2
    assert result.error.startswith("nothing was trained: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("modle: {n_layers: 2}\n", "unknown setting 'modle.n_layers'; did you mean 'model.n_layers'?"),
        ("model: {n_layers: two}\n", "model.n_layers must be an int, not 'two'"),
        ("evaluate_every: null\n", "evaluate_every must be an int, not null"),
        ("trainer: {max_steps: null}\n", "trainer.max_steps must be an int, not null"),
        ("model: {min_learning_rate: None}\n", "model.min_learning_rate must be a number or null, not 'None'"),
        ("sampling: {stop_strings: null}\n", f"sampling.stop_strings must be a list of texts, not null; {QUOTE}"),
        ("model: {tie_weights:}\n", "model.tie_weights must be true or false, not null"),
        ("prompt:\n", f"prompt must be a list of texts, not null; {QUOTE}"),
        ("prompt: ['']\n", "prompt is empty; to start from nothing give <|endoftext|>"),
        ("trainer: {max_epoch: 3}\n", "unknown setting 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        ("model: {n_layers: 2, n_layers: 3}\n", "bad.yaml:1: not valid YAML: key 'n_layers' occurs twice"),
        ("", "bad.yaml: is empty"),
        ("seed_everything: 2024-13-45\n", "bad.yaml: not valid YAML: month must be in 1..12"),
        ("? [a]\n: 3\n", "bad.yaml:1: not valid YAML: a name must be a plain word"),
        ("model: {<<: {n_layers: 1}}\n", "bad.yaml:1: not valid YAML: a name must be a plain word"),
        ("data: {context_length: 16}\n", "bad.yaml: data.context_length is given as model.context_length"),
        ("data: {seed: 7}\n", "bad.yaml: data.seed is given as seed_everything"),
        ("data: {evaluate_batches: 7}\n", "bad.yaml: data.evaluate_batches is given as evaluate_batches"),
        ("run_dir: here\n", "bad.yaml: run_dir is given on the command line only (--run_dir)"),
    ],
)
def test_bad_configs_get_one_line(command: Command, config: Path, content: str, message: str) -> None:
    Path("bad.yaml").write_text(content)

    result = command("fit", "--config", config, "--config", "bad.yaml")

    assert (result.code, result.error) == (2, message)
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "predict needs --ckpt_path CKPT"),
        (["--ckpt_path", "nope.ckpt", "--prompt=x"], "nope.ckpt: no such file"),
        (
            ["--ckpt_path", "CKPT"],
            "predict needs --prompt TEXT, --prompts_file FILE (- for standard input) or --interactive",
        ),
        (["--ckpt_path", "CKPT", "--prompt"], "--prompt needs a text"),
        (["--ckpt_path", "CKPT", "--prompt=x", "--sampling.top_k=0"], "sampling.top_k must be an int from 1 to 257"),
        (["--ckpt_path", "CKPT", "--prompt=x", "--model.emb_dim=32"], "has model.emb_dim 16, the settings say 32"),
        (["--ckpt_path", "CKPT", "--prompt=x", "--model.n_layers=12"], "has model.n_layers 1, the settings say 12"),
        (["--ckpt_path", "CKPT", "--prompt=x", "--data.tokenizer=gpt2"], "has data.tokenizer bytes, the settings say"),
        (["--ckpt_path", "CKPT", "--prompt=x", "--run_dir=y"], "unknown setting 'run_dir'"),
    ],
)
def test_bad_predictions_get_one_line(
    command: Command, in_tmp: Path, trained: Path, arguments: list[str], message: str
) -> None:
    checkpoint = str(trained / "checkpoints/last.ckpt")

    result = command("predict", *(checkpoint if argument == "CKPT" else argument for argument in arguments))

    assert result.code == 2
    assert result.out == ""
    assert message in result.error


def test_a_bug_is_one_line_with_the_place_of_its_traceback(
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


def test_output_that_cannot_be_shown_is_no_error(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))

    main(["predict", "--ckpt_path", str(trained / "checkpoints/last.ckpt"), "--prompt=h\u00e9"])

    assert written.getvalue().startswith(b"h?")


def test_output_that_nobody_reads_is_no_error() -> None:
    line = f"{sys.executable} -m gpt_lightning --help >&-"

    done = subprocess.run(["bash", "-c", line], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)

    assert (done.returncode, done.stderr) == (0, b"")


def test_a_prompt_may_be_the_flag(command: Command, trained: Path) -> None:
    arguments = ("--ckpt_path", trained / "checkpoints/last.ckpt", "--sampling.max_new_tokens", 2)

    result = command("predict", *arguments, "--prompt", "--debug", "--debug")

    assert (result.code, result.out[:7]) == (0, "--debug")


@pytest.mark.parametrize(("name", "code"), [("fit", 1), ("plot", 1), ("--help", 0)])
def test_a_folder_that_was_deleted_is_said(tmp_path: Path, name: str, code: int) -> None:
    line = f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} -m gpt_lightning {name}"

    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )

    said = "gpt_lightning: error: the current folder was deleted; change to one that is there (cd)\n" if code else ""
    assert (done.returncode, done.stderr) == (code, said)


def test_a_closed_pipe_is_silent() -> None:
    line = f"(sleep 0.2; {sys.executable} -m gpt_lightning --help) | true; echo ${{PIPESTATUS[0]}}"

    done = subprocess.run(["bash", "-c", line], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)

    assert (done.stdout.strip(), done.stderr) == (b"141", b"")


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


def test_own_classes_need_a_typed_flag(command: Command, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    wrong = command(*arguments, "--run_dir", "c", "--allow_classes_of=*")
    assert wrong.error == "--allow_classes_of must be a module's name, got '*'"
    settings["allow_classes_of"] = "own_callbacks"
    config.write_text(yaml.safe_dump(settings))
    in_yaml = command(*arguments, "--run_dir", "d")
    assert "allow_classes_of is given on the command line only" in in_yaml.error
