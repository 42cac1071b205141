"""For notebooks: load a checkpoint, complete a text, the loss of a text, train from a config.

    from gpt_lightning.api import load, train

    run = train("configs/debug.yaml", "--trainer.max_epochs=2")
    gpt = load(run / "checkpoints/best.ckpt")
    gpt.complete("Every effort moves you", max_new_tokens=20, temperature=1.0, top_k=10)
    gpt.loss("Every effort moves you")

Errors are exceptions here: `errors.InputError` for what was given, `errors.MachineError` for the machine.
"""

from __future__ import annotations

import os
from pathlib import Path

from gpt_lightning.cli.lightning_cli import run_command
from gpt_lightning.inference.pretrained import TrainedGPT, load

__all__ = ["TrainedGPT", "load", "train"]


def train(config: str | os.PathLike[str], *arguments: str) -> Path:
    """Trains from a YAML file, as `fit` does.

    Args:
        config: The file.
        arguments: As typed after it: "--trainer.max_epochs=2", "--run_dir=DIR", "--resume".

    Returns:
        The run folder.
    """
    return run_command("fit", ["--config", os.fspath(config), *arguments]).run_folder
