"""The training split of a checkpoint's text is the one that the run trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import STORY
from texts import STORIES, to_lines, write

from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.errors import InputError
from gpt_lightning.evaluation.training_text import open_text, training_tokens


def checkpoint_of(data: TextDataModule) -> dict[str, Any]:
    """The parts of a checkpoint that say what it was trained on."""
    assert data.source is not None
    text = {"name": data.source.name, "sha256": data.source.sha256}
    return {"datamodule_hyper_parameters": dict(data.hparams), "gpt_lightning": {"text": text}}


@pytest.mark.parametrize(
    "settings",
    [
        {"text": str(STORY), "tokenizer": "gpt2"},
        {"text": str(STORY), "train_ratio": 0.3, "clean": "remove_empty_lines"},
        {"text": str(STORY), "val_text": "in/a.txt"},
        {"text": "in", "train_ratio": 0.5},
    ],
    ids=["one text", "cleaned", "with a validation text", "documents"],
)
def test_the_tokens_are_those_of_the_data_module(in_tmp: Path, settings: dict[str, Any]) -> None:
    write(in_tmp / "in" / "a.txt", STORIES[0])
    write(in_tmp / "in" / "b.jsonl", to_lines(STORIES[1:]))
    data = TextDataModule(**{"tokenizer": "bytes", "context_length": 4, "batch_size": 1, **settings})
    data.setup("fit")

    tokens = training_tokens(checkpoint_of(data), "last.ckpt")

    assert np.array_equal(tokens, np.asarray(data.splits["training"].windows.token_ids))
    assert len(tokens) == data.splits["training"].tokens


def test_a_text_that_moved_is_found_by_its_name(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(in_tmp / "old" / "a.txt", "The lamp burned low. " * 9)
    data = TextDataModule(str(path), tokenizer="bytes", context_length=4)
    data.setup("fit")
    path.parent.rename(in_tmp / "new")
    with pytest.raises(InputError, match=f"^{path}: no such file$"):
        training_tokens(checkpoint_of(data), "last.ckpt")

    monkeypatch.setenv("GPT_LIGHTNING_DATA", str(in_tmp / "new"))

    assert len(training_tokens(checkpoint_of(data), "last.ckpt")) == data.splits["training"].tokens


def test_another_text_at_the_same_path_is_refused(in_tmp: Path) -> None:
    path = write(in_tmp / "a.txt", "The lamp burned low. " * 9)
    data = TextDataModule(str(path), tokenizer="bytes", context_length=4)
    data.setup("fit")
    write(path, "The lamp burned low, " * 9)

    with pytest.raises(InputError, match=r"a\.txt: is not the text that last\.ckpt was trained on \(a\.txt, sha256 "):
        training_tokens(checkpoint_of(data), "last.ckpt")


def test_a_checkpoint_without_a_text_is_refused() -> None:
    imported = {"datamodule_hyper_parameters": {"tokenizer": "gpt2"}}

    with pytest.raises(InputError, match="^gpt2.ckpt: does not say what text it was trained on$"):
        training_tokens(imported, "gpt2.ckpt")


def test_documents_are_cached_in_the_default_folder_for_an_imported_checkpoint(in_tmp: Path) -> None:
    write(in_tmp / "in" / "a.txt", STORIES[0])
    imported = {"datamodule_hyper_parameters": {"tokenizer": "bytes"}}

    corpus = open_text(imported, "in", "--text")

    assert bytes(corpus.token_ids[:-1].tolist()).decode() == STORIES[0]
    assert sorted(path.name for path in in_tmp.iterdir()) == ["data", "in"]
    assert (in_tmp / TextDataModule().hparams["cache_dir"]).is_dir()


def test_a_run_says_what_it_was_trained_on(trained: Path) -> None:
    content = torch.load(trained / "checkpoints/best.ckpt")

    tokens = training_tokens(content, "best.ckpt")

    assert bytes(tokens.tolist()).decode() == STORY.read_text()[:18_413]
