"""A checkpoint's settings: their full names, and which of them a resumed run may change."""

from __future__ import annotations

from typing import Any

# What a resumed run may change; everything else that its checkpoint names stays as it was.
FREE_ON_RESUME = {
    "data.num_workers",
    "data.test_text",
    "data.text",
    "data.url",
    "data.fallback_text",
    "evaluate_batches",
}


def checkpoint_settings(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's settings by their full names."""
    own = {f"model.{name}": value for name, value in checkpoint["hyper_parameters"].items()}
    own |= {f"data.{name}": value for name, value in checkpoint["datamodule_hyper_parameters"].items()}
    return own | checkpoint["gpt_lightning"]["fit"]
