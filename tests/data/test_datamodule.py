from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import STORY, Result

from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.data.windows import ResumableSampler
from gpt_lightning.errors import InputError

Command = Callable[..., Result]


def module(tmp_path: Path, **settings: Any) -> TextDataModule:
    (tmp_path / "a.txt").write_text("".join(chr(33 + i % 90) for i in range(200)))
    defaults = {"text": str(tmp_path / "a.txt"), "tokenizer": "bytes", "context_length": 8, "batch_size": 3}
    return TextDataModule(**{**defaults, **settings})


def test_validation_keeps_its_last_batch_and_its_order(tmp_path: Path) -> None:
    data = module(tmp_path, train_ratio=0.6)
    data.setup("fit")

    (loader,) = data.val_dataloader()

    windows = data.splits["validation"].windows
    assert [len(inputs) for inputs, _ in loader] == [3, 3, 3]
    assert torch.equal(torch.cat([x for x, _ in loader]), torch.stack([windows[i][0] for i in range(9)]))


def test_ranks_share_the_training_batches(tmp_path: Path) -> None:
    data = module(tmp_path)  # 22 training windows in batches of 3
    data.setup("fit")

    assert [data.count_train_batches(world_size) for world_size in (1, 2, 3, 8)] == [7, 3, 2, 0]
    assert len(data.train_dataloader()) == data.count_train_batches()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_leave_the_global_random_state_alone(tmp_path: Path, num_workers: int) -> None:
    data = module(tmp_path, num_workers=num_workers)
    data.setup("fit")
    state = torch.get_rng_state()

    batches = [x.tolist() for x, _ in data.train_dataloader()]

    assert torch.equal(torch.get_rng_state(), state)
    single = module(tmp_path)
    single.setup("fit")
    assert batches == [x.tolist() for x, _ in single.train_dataloader()]


def test_the_position_is_saved_and_restored(tmp_path: Path) -> None:
    data, resumed = module(tmp_path), module(tmp_path)
    data.setup("fit")
    resumed.setup("fit")
    data.position = (2, 9)

    resumed.load_state_dict(data.state_dict())

    order = ResumableSampler(data.splits["training"].windows, 3, 123, epoch=2)
    expected = list(order)[9:]
    assert list(resumed.train_dataloader().sampler) == expected


def test_separate_validation_and_test_texts(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("some other words, long enough")
    data = module(tmp_path, val_text=str(tmp_path / "b.txt"))
    data.setup("fit")
    test = module(tmp_path, test_text=str(tmp_path / "b.txt"))
    test.setup("test")

    assert data.splits["training"].characters == 200
    assert data.splits["validation"].characters == test.splits["test"].characters == 29
    assert sum(len(x) for x, _ in test.test_dataloader()) == 3


def test_the_settings_name_the_text_that_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = module(tmp_path, text="missing.txt", url="nowhere", fallback_text=str(tmp_path / "a.txt"))

    data.setup("fit")

    assert data.source is not None
    assert data.hparams["text"] == str(tmp_path / "a.txt")
    assert data.hparams["url"] is data.hparams["fallback_text"] is None
    assert data.source.path == tmp_path / "a.txt"
    assert "instead of missing.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_ratio": 1.0}, "data.train_ratio must be between 0 and 1, got 1.0"),
        ({"stride": 0}, "data.stride must be an int of at least 1, got 0"),
        ({"batch_size": -2}, "data.batch_size must be an int of at least 1, got -2"),
        ({"num_workers": 17}, "data.num_workers must be an int from 0 to 16, got 17"),
        ({"clean": "all"}, "data.clean must be null or remove_empty_lines, got 'all'"),
        ({"evaluate_batches": 0}, "evaluate_batches must be an int of at least 1, got 0"),
        (
            {"url": "http://a#b"},
            r"data.url \(http://a#b\) must end with #sha256= and 64 hexadecimal digits",
        ),
        ({"text": None}, "data.text is missing"),
        ({"batch_size": 30}, r"data.batch_size \(30\) exceeds the 22 training windows"),
        (
            {"context_length": 30},
            r"validation split has 20 tokens, but one window needs 31: model.context_length \(30\) and one more as the "
            r"last target; lower model.context_length to at most 19, change data.train_ratio \(0.9\)",
        ),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        module(tmp_path, **settings).setup("fit")


def test_testing_needs_a_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data.test_text is missing"):
        module(tmp_path).setup("test")


def write_documents(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.txt").write_text("one two three " * 20)
    (folder / "b.txt").write_text("four five six " * 20)
    (folder / "c.jsonl").write_text('{"text": "seven eight nine ten"}\n{"text": "eleven"}\n')


def test_documents_are_split_between_two_documents_and_cached(in_tmp: Path) -> None:
    write_documents(Path("docs"))
    data = TextDataModule("docs", tokenizer="bytes", context_length=8, train_ratio=0.5, batch_size=1)

    data.setup("fit")

    train, val = data.splits["training"].windows, data.splits["validation"].windows
    first, second = b"one two three " * 20, b"four five six " * 20
    assert bytes(train.token_ids[:-1].tolist()) == first  # the split is between documents; 256 is <|endoftext|>
    assert train.token_ids[-1] == 256
    assert bytes(val.token_ids[: len(second)].tolist()) == second
    inputs, targets = train[3]
    assert inputs.dtype == targets.dtype == torch.int64
    assert (bytes(inputs.tolist()), bytes(targets.tolist())) == (first[24:32], first[25:33])
    assert len(list(Path("data/cache").iterdir())) == 1


def test_documents_of_each_part_can_be_given_separately(in_tmp: Path) -> None:
    write_documents(Path("docs"))
    settings = {"tokenizer": "bytes", "context_length": 8, "batch_size": 1}
    data = TextDataModule("docs/a.txt", val_text="docs/b.txt", test_text="docs/*.jsonl", **settings)  # type: ignore[arg-type]

    data.setup("fit")
    tested = TextDataModule(test_text="docs/*.jsonl", **settings)  # type: ignore[arg-type]
    tested.setup("test")

    assert (data.splits["training"].tokens, data.splits["validation"].tokens) == (280, 280)
    assert tested.splits["test"].tokens == len("seven eight nine ten") + 1 + len("eleven") + 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("empty", "empty: contains no .txt or .jsonl file"),
        ("nothing*.txt", r"nothing\*.txt: no file matches it"),
        ("broken.jsonl", r"broken.jsonl:2: not JSON"),
        ("one.jsonl", "data.text has only 1 document, but is split between documents; set data.val_text"),
    ],
)
def test_documents_that_cannot_be_used_get_one_line(in_tmp: Path, command: Command, text: str, message: str) -> None:
    Path("empty").mkdir()
    Path("broken.jsonl").write_text('{"text": "a b c"}\n{"text": \n')
    Path("one.jsonl").write_text('{"text": "a b c"}\n')

    result = command("fit", f"--data.text={text}", "--data.tokenizer=bytes")

    assert result.code == 2
    assert re.search(message, result.error)
    assert not Path("runs").exists()


def test_a_run_on_documents_is_validated_and_resumed_with_the_same_documents(config: Path, command: Command) -> None:
    write_documents(Path("docs"))
    settings = ("--model.context_length=8", "--data.batch_size=4", "--data.train_ratio=0.5", "--run_dir=run")
    arguments = ("fit", "--config", config, "--data.text=docs", *settings)

    started = command(*arguments, "--trainer.max_steps=2")
    validated = command("validate", "--ckpt_path", "run/checkpoints/last.ckpt")
    resumed = command(*arguments, "--trainer.max_steps=4", "--resume")
    Path("docs/b.txt").write_text("changed " * 50)
    changed = command(*arguments, "--trainer.max_steps=6", "--resume")

    assert (started.code, validated.code, resumed.code, changed.code) == (0, 0, 0, 2)
    assert "tokens in 4 documents of 3 files" in started.out
    assert validated.out.startswith("validation split of docs: loss ")
    assert "docs: is not the text that run/checkpoints/last.ckpt was trained on" in changed.error


def test_a_validation_text_equal_to_the_training_text_gets_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    data = TextDataModule(text=str(STORY), val_text=str(STORY), tokenizer="bytes", context_length=64)

    data.setup("fit")

    assert capsys.readouterr().err == (
        "gpt_lightning: warning: data.val_text is the training text, so val_loss says nothing about unseen text\n"
    )
