"""gpt_lightning: train a GPT from one YAML file, on PyTorch Lightning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_lightning.api import TrainedGPT, load, train

__version__ = "0.1.0"
__all__ = ["TrainedGPT", "load", "train"]


def __getattr__(name: str) -> Any:
    """Import the Python interface when it is used: torch takes seconds."""
    if name in __all__:
        return getattr(importlib.import_module("gpt_lightning.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
