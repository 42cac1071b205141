from __future__ import annotations

import math
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import rows
from conftest import STORY, Result, tiny_settings
from torch import Tensor

from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.errors import InputError
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT
from gpt_lightning.models.loss import cross_entropy
from gpt_lightning.training.module import GPTModule
from gpt_lightning.training.optimizers import OptimizerConfig, learning_rate_factor, total_norm

Command = Callable[..., Result]


def weights(run: str | Path, name: str = "last") -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(f"{run}/checkpoints/{name}.ckpt")["state_dict"]
    return state


def assert_equal_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def plain_loop(
    epochs: int = 3, accumulate: int = 1, clip: float | None = None, rate: Callable[[int], float] = lambda _: 0.01
) -> tuple[dict[str, Tensor], list[float]]:
    """Train with the settings of `tiny_settings` in a plain PyTorch loop, as in the reference notes.

    Args:
        epochs: Number of epochs.
        accumulate: Batches per optimizer step.
        clip: Largest gradient norm; None for no clipping.
        rate: Learning rate of the next optimizer step, given the number of steps taken.

    Returns:
        The weights by their names in a checkpoint, and the loss of each batch.
    """
    content = STORY.read_text()
    token_ids = torch.tensor(list(content[: int(0.9 * len(content))].encode()))
    starts = range(0, len(token_ids) - 64, 64)
    torch.manual_seed(123)
    model = GPT(GPTConfig(257, context_length=64, emb_dim=16, n_heads=2, n_layers=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    losses = []
    steps = 0
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(123 * 1_000_003 + epoch)).tolist()
        batches = [order[i : i + 56] for i in range(0, len(order) - 55, 56)]
        optimizer.zero_grad()
        for number, batch in enumerate(batches, 1):
            inputs = torch.stack([token_ids[starts[i] : starts[i] + 64] for i in batch])
            targets = torch.stack([token_ids[starts[i] + 1 : starts[i] + 65] for i in batch])
            loss = cross_entropy(model(inputs), targets).mean()
            losses.append(loss.item())
            (loss / accumulate).backward()
            if number % accumulate == 0 or number == len(batches):
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.param_groups[0]["lr"] = rate(steps)
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
    return {f"model.{key}": tensor for key, tensor in model.state_dict().items()}, losses


def test_a_plain_pytorch_loop_and_fit_end_with_equal_weights(trained: Path) -> None:
    plain, losses = plain_loop()
    metrics = rows(trained)

    assert_equal_weights(plain, weights(trained))
    assert [row["train_loss"] for row in metrics if "train_loss" in row] == losses


def test_evaluating_sampling_and_saving_do_not_change_the_weights(
    command: Command, config: Path, trained: Path
) -> None:
    settings = ["--evaluate_every=1", "--sample_every=1", "--save_every=1", "--sampling.temperature=1"]
    result = command("fit", "--config", config, "--run_dir", "busy", "--prompt", "a", "--prompt", "b", *settings)

    assert result.code == 0
    assert_equal_weights(weights("busy"), weights(trained))


def test_accumulation_clipping_and_schedule_equal_a_plain_loop(command: Command, config: Path) -> None:
    settings = ["--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=0.1"]
    settings += ["--model.warmup_steps=2", "--model.min_learning_rate=0.001"]
    result = command("fit", "--config", config, "--run_dir", "run", *settings)

    def rate(steps: int) -> float:  # 9 optimizer steps: 2 of warm-up, then half a cosine
        if steps < 2:
            return 0.01 * (steps + 1) / 2
        return 0.001 + 0.009 * (1 + math.cos(math.pi * (steps - 1) / 7)) / 2

    assert result.code == 0
    for key, tensor in plain_loop(accumulate=2, clip=0.1, rate=rate)[0].items():
        torch.testing.assert_close(weights("run")[key], tensor, rtol=1e-4, atol=1e-6)
    metrics = rows("run")
    rates = [row["learning_rate"] for row in metrics if "learning_rate" in row]
    assert rates == pytest.approx([rate(steps) for steps in range(9)], rel=1e-12)


def test_evaluation_is_the_exact_mean_over_tokens(command: Command, trained: Path) -> None:
    content = STORY.read_text()
    token_ids = torch.tensor(list(content[int(0.9 * len(content)) :].encode()))
    module = torch.load(trained / "checkpoints/last.ckpt")
    model = GPT(GPTConfig(257, context_length=64, emb_dim=16, n_heads=2, n_layers=1)).eval()
    model.load_state_dict({key.removeprefix("model."): value for key, value in module["state_dict"].items()})
    total, count = 0.0, 0
    for start in range(0, len(token_ids) - 64, 64):
        with torch.no_grad():
            log_probs = torch.log_softmax(model(token_ids[None, start : start + 64]), -1)[0]
        chosen = log_probs[torch.arange(64), token_ids[start + 1 : start + 65]]
        total -= chosen.double().sum().item()
        count += 64

    losses = []
    for batch_size in (1, 7, 56):
        result = command("validate", "--ckpt_path", trained / "checkpoints/last.ckpt", "--data.batch_size", batch_size)
        losses.append(float(result.out.split("loss ")[1].split()[0]))

    assert losses == pytest.approx([total / count] * 3, abs=2e-6)
    assert result.out.count(f"{count:,} tokens in {count // 64} windows of 64") == 1


@pytest.mark.parametrize(
    ("steps", "factor"),
    [(0, 0.25), (2, 0.75), (3, 1.0), (9, 0.55), (15, 0.1), (99, 0.1)],
)
def test_warm_up_is_linear_and_the_cosine_ends_at_the_least_factor(steps: int, factor: float) -> None:
    assert learning_rate_factor(steps, warmup_steps=4, total_steps=16, least=0.1) == pytest.approx(factor)


def test_without_a_cosine_the_rate_is_constant_after_warm_up() -> None:
    assert [learning_rate_factor(steps, 2, 0, None) for steps in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "model.learning_rate must be a finite number above 0, got 0.0"),
        ({"learning_rate": math.inf}, "model.learning_rate must be a finite number above 0, got inf"),
        ({"weight_decay": -0.1}, "model.weight_decay must be a finite number of at least 0, got -0.1"),
        ({"warmup_steps": -1}, "model.warmup_steps must be an int of at least 0, got -1"),
        ({"min_learning_rate": 0.1}, r"model.min_learning_rate must be between 0 and model.learning_rate \(0.0004\)"),
    ],
)
def test_invalid_optimizer_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OptimizerConfig(**settings)


@pytest.mark.parametrize(("given", "found"), [("null", 257), ("300", 300)])
def test_the_vocabulary_comes_from_the_tokenizer_or_is_larger(
    command: Command, config: Path, given: str, found: int
) -> None:
    command("fit", "--config", config, "--run_dir=run", "--trainer.max_steps=1", f"--model.vocab_size={given}")

    saved = read_checkpoint("run/checkpoints/last.ckpt")
    assert saved["hyper_parameters"]["vocab_size"] == found
    assert saved["state_dict"]["model.tok_emb.weight"].shape == (found, 16)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(command: Command, config: Path) -> None:
    result = command("fit", "--config", config, "--model.vocab_size=100")

    assert (result.code, result.error) == (2, "model.vocab_size (100) is smaller than the tokenizer's 257")


def test_a_diverging_run_stops_before_the_optimizer_step(command: Command, config: Path) -> None:
    result = command("fit", "--config", config, "--run_dir", "run", "--model.learning_rate", "1e30")

    assert result.code == 3
    assert "non-finite gradient at step " in result.error
    assert "lower model.learning_rate" in result.error


def test_the_plain_loop_has_the_tiny_settings() -> None:
    model, data = tiny_settings()["model"], tiny_settings()["data"]

    assert model == {"context_length": 64, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "learning_rate": 0.01}
    assert (data["batch_size"], data["tokenizer"], data["train_ratio"]) == (56, "bytes", 0.9)


def one_step(module: GPTModule) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each weight before and after one step of the module's optimizer with gradients of 1."""
    module.configure_model()
    optimizer = module.configure_optimizers()
    before = {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {name: (before[name], parameter.detach()) for name, parameter in module.model.named_parameters()}


@pytest.mark.parametrize("tie_weights", [False, True])
@pytest.mark.parametrize("decay_matrices_only", [False, True])
def test_weight_decay_shrinks_all_parameters_or_only_matrices(decay_matrices_only: bool, tie_weights: bool) -> None:
    optimizer = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, decay_matrices_only=decay_matrices_only)
    module = GPTModule(GPTConfig(11, 8, 12, 3, 2, tie_weights=tie_weights), optimizer)

    for name, (before, after) in one_step(module).items():
        is_matrix = before.dim() == 2 and not name.endswith("emb.weight")
        decay = 0.5 if is_matrix or not decay_matrices_only else 0.0
        # AdamW's first step with a gradient of 1 has the size of the learning rate (Loshchilov and Hutter 2019).
        torch.testing.assert_close(after, before * (1 - 0.1 * decay) - 0.1, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("samples", ["null", "40"])
def test_a_compiled_network_trains_to_the_same_weights_and_names(command: Command, config: Path, samples: str) -> None:
    """The number of candidates, and so the shapes, differ between batches."""
    sampled = f"--model.sampled_softmax={samples}"
    arguments = ("--trainer.max_steps=2", "--model.drop_rate=0", "--evaluate_every=5", sampled)
    plain = command("fit", "--config", config, "--run_dir", "plain", *arguments)
    compiled = command("fit", "--config", config, "--run_dir", "compiled", "--model.compile=true", *arguments)

    assert (plain.code, compiled.code) == (0, 0), compiled.err
    expected, got = weights("plain"), weights("compiled")
    assert list(got) == list(expected)
    for key in got:
        torch.testing.assert_close(got[key], expected[key], rtol=1e-3, atol=1e-4)


def test_sampled_softmax_trains_on_an_estimate_and_evaluates_exactly(command: Command, config: Path) -> None:
    """With candidates for all tokens it is a run without; with few, only the training loss is not exact."""
    arguments = ("fit", "--config", config, "--trainer.max_steps=6", "--model.drop_rate=0")
    for name, candidates in (("full", "null"), ("all", "257"), ("few", "20")):
        assert command(*arguments, f"--run_dir={name}", f"--model.sampled_softmax={candidates}").code == 0

    full, everything, few = (rows(name) for name in ("full", "all", "few"))
    for one, other in zip(full, everything, strict=True):
        for metric in {"train_loss", "val_loss", "gradient_norm"} & set(one):
            assert other[metric] == pytest.approx(one[metric], rel=1e-4)
    assert few[0]["val_loss"] == full[0]["val_loss"]  # before the first step
    first, exact = (next(row["train_loss"] for row in run if "train_loss" in row) for run in (few, full))
    assert first != exact
    assert abs(first - exact) < 0.5
    assert few[-1]["val_loss"] < few[0]["val_loss"] - 0.3


def test_flops_leave_out_the_logits_that_are_not_computed() -> None:
    model = GPTConfig(vocab_size=50257, context_length=256, emb_dim=256, n_heads=4, n_layers=4, tie_weights=True)

    assert OptimizerConfig().flops_per_token(model) == model.flops_per_token
    saved = model.flops_per_token - OptimizerConfig(sampled_softmax=5120).flops_per_token(model)
    assert saved == 6 * 256 * (50257 - 5120)


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_other_precisions_train_with_clipping_and_can_be_sampled(
    command: Command, config: Path, precision: str
) -> None:
    arguments = ("--trainer.precision", precision, "--trainer.gradient_clip_val=0.5", "--trainer.max_epochs=1")

    fitted = command("fit", "--config", config, "--run_dir", "run", *arguments)
    sampled = command("predict", "--ckpt_path", "run/checkpoints/last.ckpt", "--prompt=The")

    metrics = rows("run")
    losses = [row["val_loss"] for row in metrics if "val_loss" in row]
    assert (fitted.code, sampled.code) == (0, 0), fitted.err + sampled.err
    assert losses[-1] < losses[0]
    assert all(row["gradient_norm"] > 0 for row in metrics if "gradient_norm" in row)


def test_gradients_are_freed_after_the_optimizer_step(
    command: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    forward = GPT.forward

    def recording(self: GPT, token_ids: Tensor, cache: Any = None) -> Tensor:
        if self.training:
            held.append([parameter.grad is not None for parameter in self.parameters()])
        return forward(self, token_ids, cache)

    monkeypatch.setattr(GPT, "forward", recording)
    command("fit", "--config", config, "--trainer.max_steps=2", "--trainer.accumulate_grad_batches=2")

    assert [any(one) for one in held] == [False, True, False, True]


def test_two_batches_of_28_equal_one_of_56(command: Command, config: Path) -> None:
    for run, arguments in (
        ("one", ()),
        ("two", ("--data.batch_size=28", "--trainer.accumulate_grad_batches=2")),
    ):
        settings = ("--model.drop_rate=0", "--trainer.max_epochs=1", "--run_dir", run, *arguments)
        assert command("fit", "--config", config, *settings).code == 0

    one, two = weights("one"), weights("two")
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=1e-5)


FAULTS = """
import resource
import torch
import gpt_lightning.training.fit  # all of a run's modules, which affect the heap
from gpt_lightning.training.hardware import keep_freed_memory

keep_freed_memory()
for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(64_000_000, dtype=torch.uint8).fill_(1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keep_freed_memory needs glibc")
def test_the_memory_of_a_freed_tensor_is_reused() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)

    # Because of alignment, a tensor may need slightly more than the freed memory; one or two are mapped again.
    assert sum(map(int, done.stdout.split()[1:])) < 8 * (64_000_000 // 4096) // 2


@pytest.mark.parametrize(
    "gradients",
    [
        [torch.randn(4000, 768, generator=torch.Generator().manual_seed(1)), torch.ones(9, dtype=torch.float64)],
        [torch.full((400_000, 3), 0.1)],  # sums of equal numbers accumulate rounding errors
    ],
)
def test_the_norm_of_large_gradients_is_accurate(gradients: list[Tensor]) -> None:
    """The norm is accurate to float32; a sum over all squares of a matrix at once is not."""
    exact = math.sqrt(sum(one.double().square().sum().item() for one in gradients))
    assert total_norm(gradients).item() == pytest.approx(exact, rel=1e-6)
