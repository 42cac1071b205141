"""Python interface for notebooks: train from a config, load a checkpoint, complete a text, compute its loss.

    from gpt_lightning.api import load, train

    run = train("configs/debug.yaml", "--trainer.max_epochs=2")
    gpt = load(run / "checkpoints/best.ckpt")
    gpt.complete("Every effort moves you", max_new_tokens=20, temperature=1.0, top_k=10)
    gpt.loss("Every effort moves you")

Errors are raised as `errors.InputError`, `errors.MachineError` or `errors.DivergedError`.
"""

from __future__ import annotations

import os
from pathlib import Path

from gpt_lightning.cli.lightning_cli import run_command
from gpt_lightning.inference.pretrained import TrainedGPT, load

__all__ = ["TrainedGPT", "load", "train"]


def train(config: str | os.PathLike[str], *arguments: str) -> Path:
    """Train from a YAML file, as the command `fit` does.

    Args:
        config: Path of the YAML file.
        arguments: Further command-line arguments: "--trainer.max_epochs=2", "--run_dir=DIR", "--resume".

    Returns:
        The run folder.

    Raises:
        InputError: A setting, text or checkpoint is invalid, or the settings ask for several processes.
        MachineError: The system refused an operation: permission, disk, network or memory.
        DivergedError: The loss, a gradient or a weight became infinite or NaN.
    """
    # A second process would run the calling script or notebook from its beginning.
    return run_command("fit", ["--config", os.fspath(config), *arguments], may_launch=False).run_folder
