from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.checkpoints.metadata import SCHEMA, CheckpointInfo, ProgressInfo, TextInfo, check_schema
from gpt_lightning.errors import InputError

# As written by version 0.1.0; later versions must read the same keys.
STORED = {
    "format": 1,
    "versions": {"gpt_lightning": "0.1.0", "torch": "2.13.0", "lightning": "2.6.6"},
    "text": {"name": "a.txt", "sha256": "ab", "characters": 4, "tokens": 3, "val_sha256": None},
    "progress": {"epochs": 1, "steps": 2, "tokens_seen": 30},
    "evaluated": {"val_loss": 1.5},
    "fit": {"seed_everything": 123},
}


def test_the_metadata_is_stored_under_the_same_keys() -> None:
    info = CheckpointInfo(
        text=TextInfo("a.txt", "ab", 4, 3, None),
        progress=ProgressInfo(epochs=1, steps=2, tokens_seen=30),
        evaluated={"val_loss": 1.5},
        fit={"seed_everything": 123},
        versions={"gpt_lightning": "0.1.0", "torch": "2.13.0", "lightning": "2.6.6"},
    )

    assert info.to_dict() == STORED
    assert CheckpointInfo.parse({"gpt_lightning": STORED}) == info


def test_keys_of_a_later_version_are_ignored() -> None:
    later = STORED | {"new": 1, "text": STORED["text"] | {"language": "en"}}  # type: ignore[operator]

    assert CheckpointInfo.parse({"gpt_lightning": later}).to_dict() == STORED


@pytest.mark.parametrize("path", ["versions", "text.tokens", "text.val_sha256", "progress", "progress.steps", "fit"])
def test_every_part_of_the_metadata_is_required(path: str) -> None:
    def without(content: dict[str, Any], keys: list[str]) -> dict[str, Any]:
        rest = {key: value for key, value in content.items() if key != keys[0]}
        return rest | {keys[0]: without(content[keys[0]], keys[1:])} if keys[1:] else rest

    content = without(STORED, path.split("."))

    with pytest.raises(InputError, match=re.escape(f"a.ckpt: {path} is missing or of the wrong type")):
        check_schema(content, SCHEMA["gpt_lightning"], "a.ckpt")  # type: ignore[arg-type]


def test_a_checkpoint_of_a_run_has_its_progress(trained: Path) -> None:
    info = CheckpointInfo.parse(read_checkpoint(trained / "checkpoints/last.ckpt"))

    assert info.progress == ProgressInfo(epochs=3, steps=15, tokens_seen=15 * 56 * 64)
    assert info.imported is None
    assert set(info.versions) == {"gpt_lightning", "torch", "lightning"}
