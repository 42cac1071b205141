"""The options of fit, check, validate and test, except those of the data module and the Trainer."""

from __future__ import annotations

from argparse import Action

from jsonargparse import ArgumentParser

from gpt_lightning.cli.arguments import ALLOW_CLASSES
from gpt_lightning.inference.sampling import SamplingConfig
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.training.config import ExpectedConfig, TrainingConfig
from gpt_lightning.training.optimizers import OptimizerConfig

# Settings of Lightning's Trainer that are explained here; its documentation explains the others.
TRAINER_HELP = {
    "max_epochs": "Epochs of the whole run; -1 for no limit.",
    "max_steps": "Optimizer steps of the whole run; -1 for no limit.",
    "max_time": "Time limit as DD:HH:MM:SS; null for none.",
    "accumulate_grad_batches": "Batches whose gradients are averaged for one optimizer step.",
    "gradient_clip_val": "Largest norm of the gradient; null does not clip.",
    "accelerator": "Device: auto (the fastest available), cpu, cuda or mps.",
    "devices": "Number of devices, or auto.",
    "strategy": "How devices work together: auto, ddp or fsdp.",
    "num_nodes": "Number of machines, started by torchrun or SLURM.",
    "precision": "auto: bf16-mixed if faster on this hardware, else 32-true. Or another precision of Lightning.",
    "limit_train_batches": "Batches of an epoch (an int) or a share of them (a float); null: all.",
    "limit_val_batches": "Batches of an evaluation (an int) or a share of them (a float); null: all.",
    "limit_test_batches": "Batches of the test text (an int) or a share of them (a float); null: all.",
    "log_every_n_steps": "Optimizer steps between rows of metrics.",
    "callbacks": "Callbacks of Lightning, by class_path.",
    "logger": "Loggers of Lightning, by class_path, besides TensorBoard; false for none.",
    "enable_progress_bar": "Whether to show a progress bar.",
}


def settings_of(parser: ArgumentParser) -> list[Action]:
    """Return the settings of a parser, with their full names as `dest`; jsonargparse has no public list of them."""
    return parser._actions


def explain_trainer(parser: ArgumentParser) -> None:
    """Replace Lightning's help texts of the settings `trainer.*`, which state other defaults, by `TRAINER_HELP`."""
    for setting in settings_of(parser):
        section, _, name = setting.dest.partition(".")
        if section == "trainer" and name in TRAINER_HELP:
            setting.help = TRAINER_HELP[name]


def add_model_options(parser: ArgumentParser) -> None:
    """Add the settings `model.*`: architecture, optimizer, compilation and activation checkpointing."""
    parser.add_class_arguments(GPTConfig, "model", skip={"vocab_size"}, instantiate=False)
    parser.add_class_arguments(OptimizerConfig, "model", as_group=False, instantiate=False)
    help_line = "Number of token ids; null: the tokenizer's."
    parser.add_argument("--model.vocab_size", type=int | None, default=None, help=help_line)
    help_line = "Whether to use torch.compile: faster steps, a slower start."
    parser.add_argument("--model.compile", type=bool, default=False, help=help_line)
    help_line = "Whether to recompute activations in the backward pass: less memory, more time."
    parser.add_argument("--model.activation_checkpointing", type=bool, default=False, help=help_line)


def add_run_options(parser: ArgumentParser, command: str) -> None:
    """Add the settings of sampling and of the run, and the options of the command."""
    parser.add_class_arguments(SamplingConfig, "sampling")
    parser.add_class_arguments(TrainingConfig, None)
    parser.add_class_arguments(ExpectedConfig, "expected")
    if command == "check":
        help_line = "Devices to estimate the memory of; they need not be here."
        parser.add_argument("--devices", type=int | None, default=None, help=help_line)
        parser.add_argument("--strategy", type=str, default="ddp", help="How they work together: ddp or fsdp.")
    if command in ("fit", "check"):
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="Checkpoint to start a new run from, with its weights and architecture.",
        )
        parser.add_argument("--run_dir", type=str | None, default=None, help="Folder of the run (command line only).")
        parser.add_argument(
            "--resume", action="store_true", help="Resume the newest run of this name (command line only)."
        )
        parser.add_argument(
            "--allow_data_change", action="store_true", help="Resume a run on another text (command line only)."
        )
        parser.add_argument(
            ALLOW_CLASSES,
            type=str | None,
            default=None,
            metavar="MODULE",
            help="Module whose classes YAML may name, which runs its code (command line only).",
        )
    else:
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="Checkpoint to evaluate.")
