"""The options of fit, check, validate and test, except those of the data module and the Trainer."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from gpt_lightning.cli.arguments import ALLOW_CLASSES
from gpt_lightning.inference.sampling import SamplingConfig
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.training.config import TrainingConfig
from gpt_lightning.training.optimizers import OptimizerConfig


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
    if command == "fit":
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
