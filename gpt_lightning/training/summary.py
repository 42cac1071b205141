"""The lines that `fit`, `check`, `validate` and `test` print about a run."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer

from gpt_lightning.console import PROGRAM, format_bytes, labeled, plural, quote
from gpt_lightning.data.datamodule import Split, TextDataModule
from gpt_lightning.evaluation.baselines import Baselines, counted_tokens
from gpt_lightning.evaluation.verdict import Verdict, judge
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.runs.folder import Run
from gpt_lightning.runs.records import RunRecord
from gpt_lightning.training.callbacks.checkpointing import Checkpointing
from gpt_lightning.training.callbacks.progress import Progress
from gpt_lightning.training.config import RunConfig
from gpt_lightning.training.optimizers import optimizer_bytes
from gpt_lightning.training.steps import Steps

COARSE = ("bf16-true", "16-true")  # precisions of the weights that train to other losses than float32


def checkpoint_bytes(config: RunConfig) -> tuple[int, int]:
    """Return the bytes of a run's checkpoints after the run, and the most that they take during it."""
    best = config.model.weight_bytes
    last = best + optimizer_bytes(config.model, config.optimizer)
    return best + 2 * last, best + 3 * last  # last.ckpt, prev.ckpt, and the file being written


def describe_start(
    trainer: Trainer,
    data: TextDataModule,
    config: RunConfig,
    steps: Steps,
    baselines: Baselines,
    init_from: str | None,
) -> list[str]:
    """Return the lines that `fit` and `check` begin with: the text, the baselines, the model and the device.

    Args:
        trainer: The run's Trainer.
        data: Data module, set up.
        config: The settings of the run.
        steps: Batches and optimizer steps of the run.
        baselines: Losses of counting the training text.
        init_from: Checkpoint with the initial weights; None for random weights, and for a resumed run.
    """
    return [
        *(labeled(*one) for one in describe_data(data, steps, trainer.world_size).items()),
        describe_baselines(baselines, data.splits["training"].tokens),
        labeled("model", config.model.description),
        *describe_init(init_from, config.model),
        labeled("device", describe_device(trainer, config.accelerator, config.precision_reason)),
    ]


def describe_data(data: TextDataModule, steps: Steps, world_size: int) -> dict[str, str]:
    """Describe the text, its split, its windows and its batches.

    Args:
        data: Data module, set up.
        steps: Batches and optimizer steps of the run.
        world_size: Number of processes.

    Returns:
        What the run's lines say, by their labels.
    """
    assert data.source is not None
    source = data.source
    contents = f" in {source.contents}" if source.contents else ""
    found = f" (in {data.found_in})" if data.found_in else ""
    train, val = data.splits["training"], data.splits["validation"]
    batch_size, context_length = data.hparams["batch_size"], data.hparams["context_length"]
    return {
        "text": f"{source.name}{found}: {source.characters:,} characters, {data.total_tokens:,} tokens{contents} "
        f"({data.tokenizer.name}, {data.tokenizer.vocab_size:,} in the vocabulary)",
        "split": f"{train.characters:,} / {val.characters:,} characters, {train.tokens:,} / {val.tokens:,} tokens for "
        "training / validation",
        "windows": f"{len(train.windows)} + {len(val.windows)} of {context_length} tokens, stride {data.stride}; "
        f"{train.windows.unused_tokens} + {val.windows.unused_tokens} trailing tokens are unused",
        "batches": f"{steps.train_batches} + {steps.val_batches} of {batch_size} windows; "
        f"{steps.per_epoch} optimizer steps per epoch{_left_out(data, world_size, steps.train_batches)}",
    }


def _left_out(data: TextDataModule, world_size: int, train_batches: int) -> str:
    left_out = len(data.splits["training"].windows) - train_batches * data.hparams["batch_size"] * world_size
    is_limited = train_batches < data.count_train_batches(world_size)
    reason = "trainer.limit_train_batches" if is_limited else "incomplete batch"
    return f", {plural(left_out, 'window')} per epoch left out ({reason})" if left_out else ""


def describe_init(init_from: str | None, config: GPTConfig) -> list[str]:
    """Describe the origin of a new run's weights; return no line if they are random."""
    if init_from is None:
        return []
    return [
        labeled("weights", f"from {init_from}, with its first {config.context_length} positions and a new optimizer")
    ]


def describe_baselines(baselines: Baselines, training_tokens: int) -> str:
    """Describe the losses that counting the training tokens reaches.

    Args:
        baselines: The losses.
        training_tokens: Number of training tokens, counted or not.
    """
    losses = ", ".join(f"{name} {loss:.3f}" for name, loss in baselines.by_loss)
    counted = counted_tokens(training_tokens)
    what = "training text" if counted == training_tokens else f"first {counted:,} training tokens"
    return labeled("baselines", f"{losses} (validation loss of counting the {what})")


def describe_device(trainer: Trainer, accelerator: str, precision_reason: str) -> str:
    """Describe the device, the precision and the reasons for them.

    Args:
        trainer: The run's Trainer.
        accelerator: The value of `trainer.accelerator`.
        precision_reason: Why the precision was chosen.
    """
    device = trainer.strategy.root_device.type
    if accelerator not in ("auto", "gpu"):
        reason = "as set by trainer.accelerator"
    elif device == "cpu":
        reason = "no CUDA or MPS device found"
    else:
        reason = "found on this machine"
    threads = f", {plural(torch.get_num_threads(), 'thread')}" if device == "cpu" else ""
    count = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    text = f"{count}{device} ({reason}), precision {trainer.precision} ({precision_reason}){threads}"
    if device == "mps":
        text += "; the reference notes report issues with training on MPS; --trainer.accelerator cpu trains on the CPU"
    return text


def describe_folder(display_path: str, config: RunConfig) -> str:
    """Describe the run folder and the size of its checkpoints."""
    done, running = checkpoint_bytes(config)
    return labeled(
        "run folder",
        f"{display_path}; checkpoints take {format_bytes(done)} when done, up to {format_bytes(running)} while it runs",
    )


def judge_run(record: RunRecord, trainer: Trainer, data: TextDataModule, config: RunConfig) -> Verdict | None:
    """Judge a run.

    Args:
        record: The run.
        trainer: Its Trainer, for the clipping of gradients.
        data: Data module, set up.
        config: The settings of the run.

    Returns:
        The verdict, or None if the run was not evaluated after its first optimizer step.
    """
    assert data.source is not None
    steps = record.last.step if record.last else 0
    is_expected = (
        config.expected.applies_to(data.source.sha256, steps, config.model.num_parameters)
        and str(trainer.precision) not in COARSE
    )
    return judge(
        record,
        config.expected.ranges if is_expected else None,
        is_pretrained=config.init_from is not None,
        is_clipped=bool(trainer.gradient_clip_val),
    )


def describe_verdict(verdict: Verdict) -> list[str]:
    """Return the labelled lines of a verdict."""
    labels = ["verdict", *[""] * (len(verdict.verdict) - 1), "advice"]
    return [labeled(label, text) for label, text in zip(labels, [*verdict.verdict, verdict.advice], strict=True)]


def summarize_run(
    run: Run,
    progress: Progress,
    checkpoints: Checkpointing,
    seconds: float,
    flops: tuple[float, float | None],
    written: list[str],
    prompt: str,
) -> list[str]:
    """Summarize a finished run, with the command that samples from its best checkpoint.

    Args:
        run: The run folder.
        progress: Tokens and seconds.
        checkpoints: The saved checkpoints.
        seconds: Duration of the run.
        flops: FLOPs per token (of the global batch) on each device, and the peak FLOP/s of one device, None if unknown.
        written: Lines about the verdict and the report.
        prompt: Prompt in the command.
    """
    speed = progress.session_tokens / max(progress.session_seconds, 1e-9)
    per_token, peak = flops
    utilization = "n/a" if peak is None else f"{100 * speed * per_token / peak:.1f} %"
    return [
        f"Training completed in {seconds / 60:.2f} minutes.",
        f"{progress.tokens_seen:,} tokens seen, {speed:,.0f} tokens per second in the training steps "
        f"(utilization of the peak rate {utilization}), "
        f"{100 * checkpoints.saving_seconds / seconds:.1f} % of the time spent on saving.",
        *written,
        f"best.ckpt is of step {checkpoints.best.step} (Val loss {checkpoints.best.val_loss:.3f}), "
        f"last.ckpt of step {checkpoints.saved_step}. To sample:",
        "  " + predict_command(f"{run.display_path}/checkpoints/best.ckpt", prompt),
    ]


def resume_command(arguments: list[str]) -> str:
    """Return the shell command that resumes a run.

    Args:
        arguments: The arguments after `fit` on the command line.
    """
    resuming = arguments if "--resume" in arguments else [*arguments, "--resume"]
    return f"python -m {PROGRAM} fit {' '.join(map(quote, resuming))}"


def predict_command(checkpoint: str, prompt: str) -> str:
    """Return the shell command that samples from a checkpoint."""
    is_plain = prompt.isprintable() and not set(prompt) & set('"$`\\!')
    quoted = f'"{prompt}"' if is_plain else quote(prompt)
    return f"python -m {PROGRAM} predict --ckpt_path {quote(checkpoint)} --prompt {quoted}"


def describe_evaluation(name: str, loss: float, perplexity: float, tokens: int, part: Split) -> str:
    """Describe the loss and perplexity of a split in one line.

    Args:
        name: The split and its text.
        loss: Mean loss, in nats per token.
        perplexity: exp(loss).
        tokens: Number of tokens that the loss is the mean over.
        part: The split.
    """
    windows = tokens // part.windows.context_length
    left_out = len(part.windows) - windows
    rest = f"{part.windows.unused_tokens} trailing tokens are unused"
    return (
        f"{name}: loss {loss:.6f} nats per token, perplexity {perplexity:.4f}, "
        f"over {tokens:,} tokens in {windows} windows of {part.windows.context_length}; "
        + (f"{left_out} windows left out by a limit" if left_out else rest)
    )
