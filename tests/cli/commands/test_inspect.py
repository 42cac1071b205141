"""The tables of `inspect`, compared with the model's probabilities and completions."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Result

from gpt_lightning.inference.pretrained import load

Command = Callable[..., Result]


def test_the_most_likely_tokens_under_temperatures_and_top_k(command: Command, trained: Path, in_tmp: Path) -> None:
    checkpoint = trained / "checkpoints/last.ckpt"
    result = command(
        "inspect", "--ckpt_path", checkpoint, "--prompt=The lam", "--temperature=1", "--temperature=2", "--top_k=3",
        "--candidates=4", "--draws=200", "--output=figures",
    )  # fmt: skip

    assert result.code == 0, result.err
    gpt = load(checkpoint)
    with torch.no_grad():
        logits = gpt.model(torch.tensor([gpt.tokenizer.encode("The lam")]))[0, -1]
    likely = logits.argsort(descending=True)[:4].tolist()
    lines = result.out.splitlines()
    header = re.split(r"\s{2,}", lines[1].strip())
    assert header == ["logit", *("T = 1", "drawn", "T = 1, top 3", "drawn", "T = 2", "drawn", "T = 2, top 3", "drawn")]
    probs = [torch.softmax(logits, -1), torch.softmax(logits / 2, -1)]
    best = logits >= logits.topk(3).values[-1]
    cut = [torch.where(best, one, 0) / one[best].sum() for one in probs]
    for token_id, line in zip(likely, lines[2:6], strict=True):
        word = repr(gpt.tokenizer.decode([token_id]))
        assert line.strip().startswith(word)
        cells = [float(cell) for cell in line.strip().removeprefix(word).split()]
        assert cells[0] == pytest.approx(logits[token_id].item(), abs=1e-3)
        expected = [one[token_id].item() for one in (probs[0], cut[0], probs[1], cut[1])]
        assert cells[1::2] == pytest.approx(expected, abs=1e-3)
        assert [count / 200 for count in cells[2::2]] == pytest.approx(expected, abs=0.12)
    assert sorted(path.name for path in Path("figures").iterdir()) == ["next-token.pdf", "next-token.png"]


def test_a_grid_of_completions(command: Command, trained: Path) -> None:
    checkpoint = trained / "checkpoints/last.ckpt"
    arguments = ("--temperature=0", "--temperature=1.5", "--top_k=2", "--top_k=9", "--max_new_tokens=6", "--seed=5")
    result = command("inspect", "--grid", "--ckpt_path", checkpoint, "--prompt=The lam", *arguments)

    gpt = load(checkpoint)
    assert result.code == 0, result.err
    lines = iter(result.out.splitlines()[2:])
    for temperature in (0.0, 1.5):
        for top_k in (None, 2, 9):
            completion = gpt.complete("The lam", max_new_tokens=6, temperature=temperature, top_k=top_k, seed=5)
            assert next(lines).split(maxsplit=2) == [f"{temperature:g}", str(top_k or "all"), repr(completion)]


@pytest.mark.parametrize("arguments", [["--draws=1"], ["--grid", "--max_new_tokens=1"]])
def test_a_long_prompt_gets_one_warning(command: Command, trained: Path, arguments: list[str]) -> None:
    length = load(trained / "checkpoints/last.ckpt").model.context_length
    prompt = "a" * (length + 1)
    result = command("inspect", "--ckpt_path", trained / "checkpoints/last.ckpt", "--prompt", prompt, *arguments)

    assert result.code == 0
    warning = f"prompt has {length + 1} tokens; the model sees only the last {length}"
    assert result.err == f"gpt_lightning: warning: {warning}\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--temperature=0"], "--temperature must be above 0, because at 0 nothing is drawn; --grid accepts 0"),
        (["--grid", "--output=x"], "--output has no effect with --grid; leave it out"),
        (["--grid", "--draws=9"], "--draws has no effect with --grid; leave it out"),
        (["--max_new_tokens=9"], "--max_new_tokens has no effect without --grid; leave it out"),
        (["--draws=0"], "--draws must be an int from 1 to 100000, got 0"),
        (["--candidates=258"], "--candidates must be an int from 1 to 257, got 258"),
        (["--top_k=258"], "sampling.top_k must be an int from 1 to 257, got 258"),
        (["--prompt=b"], "inspect takes one --prompt"),
    ],
)
def test_wrong_arguments(command: Command, trained: Path, arguments: list[str], error: str) -> None:
    result = command("inspect", "--ckpt_path", trained / "checkpoints/last.ckpt", "--prompt=a", *arguments)

    assert result.code == 2
    assert result.error.startswith(error)


def test_an_empty_prompt_is_refused(command: Command, trained: Path) -> None:
    assert command("inspect", "--ckpt_path", trained, "--prompt=").error.startswith("prompt is empty")
