"""The tables and the page of `inspect`, compared with the model's probabilities and completions."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import STORY, Result, tiny_settings

from gpt_lightning.cli.commands.inspect import MOST_TOKENS, untrained
from gpt_lightning.data.corpus import split_text
from gpt_lightning.data.windows import Windows
from gpt_lightning.inference.pretrained import load
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT
from gpt_lightning.models.loss import cross_entropy

Command = Callable[..., Result]


def test_the_most_likely_tokens_under_temperatures_and_top_k(command: Command, trained: Path, in_tmp: Path) -> None:
    checkpoint = trained / "checkpoints/last.ckpt"
    result = command(
        "inspect", "--ckpt_path", checkpoint, "--prompt=The lam", "--temperature=1", "--temperature=2", "--top_k=3",
        "--candidates=4", "--draws=200", "--output=next.PNG",
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
    assert sorted(path.name for path in in_tmp.iterdir()) == ["next.pdf", "next.png"]
    assert [line.strip() for line in lines[6:]] == ["next.pdf", "next.png"]


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
        (
            ["--output=next"],
            "--output (next) must end with .html, for a page of the losses of the prompt's tokens, or",
        ),
        (["--output=next.htm"], "--output (next.htm) must end with .html, for a page"),
        (["--output=no/next.png"], "--output no/next.pdf: folder no does not exist"),
        (["--output=taken.png"], "--output taken.pdf: already exists; choose another or remove it"),
        (["--draws=0"], "--draws must be an int from 1 to 100000, got 0"),
        (["--candidates=258"], "--candidates must be an int from 1 to 257, got 258"),
        (["--top_k=258"], "sampling.top_k must be an int from 1 to 257, got 258"),
        (["--prompt=b"], "inspect takes one --prompt"),
    ],
)
def test_wrong_arguments(command: Command, trained: Path, in_tmp: Path, arguments: list[str], error: str) -> None:
    Path("taken.pdf").write_text("mine")

    result = command("inspect", "--ckpt_path", trained / "checkpoints/last.ckpt", "--prompt=a", *arguments)

    assert result.code == 2
    assert result.error.startswith(error)


def test_an_empty_prompt_is_refused(command: Command, trained: Path) -> None:
    assert command("inspect", "--ckpt_path", trained, "--prompt=").error.startswith("prompt is empty")


def test_the_losses_of_a_text_as_a_table(command: Command, trained: Path, in_tmp: Path) -> None:
    Path("a.txt").write_text("The lamp, and again the lamp.")
    checkpoint = trained / "checkpoints/last.ckpt"

    result = command("inspect", "--ckpt_path", checkpoint, "--text", "a.txt")

    assert result.code == 0, result.err
    gpt = load(checkpoint)
    ids = gpt.tokenizer.encode("The lamp, and again the lamp.")
    with torch.no_grad():
        log_probs = torch.log_softmax(gpt.model(torch.tensor([ids]))[0], -1)
    header, *rows, mean, rest = result.out.splitlines()
    assert header.split() == ["after", "most", "likely", "target", "rank", "its", "probability", "logarithm"]
    assert len(rows) == len(ids) - 1
    for i, row in enumerate(rows):
        expected = log_probs[i, ids[i + 1]].item()
        cells = row.rsplit(maxsplit=3)
        assert cells[0].endswith(f"{ids[i + 1]} {chr(ids[i + 1])!r}")
        assert f" {int(log_probs[i].argmax())} " in cells[0]
        assert int(cells[1]) == 1 + int((log_probs[i] > expected).sum())
        assert [float(cell) for cell in cells[2:]] == pytest.approx([math.exp(expected), expected], abs=1e-4)
    loss = gpt.loss("The lamp, and again the lamp.")
    shown = [float(one) for one in re.findall(r"[\d.]+\d", mean)]
    assert shown == pytest.approx([loss, loss, math.exp(loss)], rel=1e-4)
    assert f"{loss / math.log(2):.4f} bits per byte; a uniform guess has loss {math.log(257):.4f}" in rest


@pytest.mark.parametrize(("no_colour", "tokens"), [("", 31), ("", 30), ("1", 31)])
def test_a_terminal_shows_a_longer_text_in_colours(
    command: Command, trained: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, no_colour: str, tokens: int
) -> None:
    Path("a.txt").write_text(("The lamp " * 9)[:tokens])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_colour)

    result = command("inspect", "--ckpt_path", trained / "checkpoints/last.ckpt", "--text", "a.txt")

    assert ("\x1b[48;5;" in result.out) == (tokens == 31 and not no_colour)
    assert ("most likely  target" in result.out) == (tokens == 30 or bool(no_colour))
    assert f"{tokens - 1} tokens predicted" in result.out


@pytest.mark.parametrize("source", ["--text=a.txt", "--prompt=The lamp"])
def test_the_page_of_a_text(command: Command, trained: Path, in_tmp: Path, source: str) -> None:
    Path("a.txt").write_text("The lamp")

    result = command("inspect", "--ckpt_path", trained / "checkpoints/last.ckpt", source, "--output", "page.html")

    assert result.code == 0, result.err
    assert result.out.splitlines()[0] == "page.html"
    page = Path("page.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<span[^>]* class="t ', page)) == 8
    assert f"Loss of each token: {'a.txt' if source.startswith('--text') else 'the prompt'}</h1>" in page
    assert f"{load(trained / 'checkpoints/last.ckpt').loss('The lamp'):.4f}" in page
    assert sorted(path.name for path in in_tmp.iterdir()) == ["a.txt", "page.html"]


def test_a_text_is_cleaned_as_the_training_text_was(command: Command, trained: Path, in_tmp: Path) -> None:
    content = torch.load(trained / "checkpoints/best.ckpt", weights_only=True)
    content["datamodule_hyper_parameters"]["clean"] = "remove_empty_lines"
    torch.save(content, "cleaned.ckpt")
    Path("a.txt").write_text("The lamp\n\n\nburned")

    tables = [
        command("inspect", "--ckpt_path", path, "--text=a.txt").out
        for path in ("cleaned.ckpt", trained / "checkpoints/best.ckpt")
    ]

    assert ["14 tokens predicted" in tables[0], "16 tokens predicted" in tables[1]] == [True, True]


def test_the_page_marks_the_runs_that_fit_counts(command: Command, trained: Path, in_tmp: Path) -> None:
    story = STORY.read_text()
    short, long = story[1000:1031], story[2000:2032]
    Path("a.txt").write_text(f"#{short}#{long}#")

    result = command(
        "inspect", "--ckpt_path", trained / "checkpoints/best.ckpt", "--text=a.txt", "--output", "page.html"
    )

    assert result.code == 0, result.err
    assert Path("page.html").read_text(encoding="utf-8").count("also in the training text") == 32


def test_an_untrained_model_is_the_one_that_fit_begins_with(trained: Path, in_tmp: Path) -> None:
    first = json.loads((trained / "metrics.jsonl").read_text().splitlines()[0])

    gpt, seed = untrained(str(trained.parent / "tiny.yaml"), None)

    ids = torch.tensor(gpt.tokenizer.encode(split_text(STORY.read_text(), 0.9)[1]))
    windows = Windows(ids, 64, 64)
    with torch.no_grad():
        losses = [cross_entropy(gpt.model(x[None]), y[None]) for x, y in (windows[i] for i in range(len(windows)))]
    assert seed == 123
    assert first["step"] == 0
    assert torch.cat(losses).mean().item() == pytest.approx(first["val_loss"], abs=1e-5)


def test_the_losses_of_an_untrained_model(command: Command, config: Path) -> None:
    result = command("inspect", "--untrained", config, "--prompt=own words", "--seed=7")

    torch.manual_seed(7)
    model = GPT(GPTConfig(257, 64, 16, 2, 1)).eval()
    ids = torch.tensor([list(b"own words")])
    with torch.no_grad():
        loss = cross_entropy(model(ids[:, :-1]), ids[:, 1:]).mean().item()
    assert result.code == 0, result.err
    assert len(result.out.splitlines()) == 11
    assert f"mean of the logarithms {-loss:.4f}; loss {loss:.4f}; perplexity " in result.out
    page = command("inspect", "--untrained", config, "--prompt=own words", "--output=page.html")
    assert page.code == 0
    assert f"Model: untrained, of {config}, seed 123" in Path("page.html").read_text()


def test_a_config_with_full_names(command: Command, in_tmp: Path) -> None:
    names = {"model.emb_dim": 8, "model.n_heads": 2, "model.n_layers": 1, "data.tokenizer": "bytes"}
    Path("a.yaml").write_text(yaml.safe_dump(names))

    assert untrained("a.yaml", 5)[0].model.config == GPTConfig(257, 256, 8, 2, 1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "one of the arguments --prompt --text is required"),
        (["--text=a.txt", "--prompt=a"], "argument --prompt: not allowed with argument --text"),
        (["--text=none.txt"], "none.txt: no such file"),
        (["--text=empty.txt"], "empty.txt: is empty"),
        (["--text=binary"], "binary: contains NUL bytes; not a text file"),
        (["--text=latin"], "latin: not UTF-8 text (byte 0xe9 at offset 1)"),
        (["--text=."], ".: --text must be a file, not a folder"),
        (["--prompt=a", "--output=page.html"], "the loss of a text needs at least 2 tokens, got 1"),
        (["--text=a.txt", "--output=a.html"], "--output a.html: already exists; choose another or remove it"),
        (["--text=a.txt", "--output=no/page.html"], "--output no/page.html: folder no does not exist"),
        (
            ["--text=a.txt", "--output=chart.png"],
            "--output (chart.png) must end with .html, because token losses are a page",
        ),
        (["--text=a.txt", "--draws=5"], "--draws has no effect on the losses of tokens; leave it out"),
        (["--text=a.txt", "--grid"], "--grid has no effect on the losses of tokens; leave it out"),
        (["--text=a.txt", "--seed=5"], "--seed has no effect on the losses of tokens; leave it out"),
        (["--text=long.txt"], f"long.txt: has more than {MOST_TOKENS:,} tokens; use a part of it"),
        (["--text=longer.txt"], f"longer.txt: has more than {MOST_TOKENS:,} tokens; use a part of it"),
        (["--untrained=debug", "--prompt=a"], "argument --untrained: not allowed with argument --ckpt_path"),
    ],
)
def test_wrong_arguments_for_losses(
    command: Command, trained: Path, in_tmp: Path, arguments: list[str], error: str
) -> None:
    contents = {"a.txt": b"abc", "empty.txt": b"", "binary": b"a\0", "latin": b"h\xe9", "a.html": b"mine"}
    contents |= {"long.txt": b"ab" * (MOST_TOKENS // 2) + b"c", "longer.txt": b"ab" * (26 * MOST_TOKENS)}
    for name, content in contents.items():
        Path(name).write_bytes(content)

    result = command("inspect", "--ckpt_path", trained / "checkpoints/last.ckpt", *arguments)

    assert result.code == 2
    assert result.error.startswith(error)
    assert sorted(path.name for path in in_tmp.iterdir()) == sorted(contents)
    assert Path("a.html").read_bytes() == b"mine"


def test_a_page_that_cannot_be_written_leaves_nothing(
    command: Command, trained: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def fill_disk(path: Path, content: bytes) -> int:
        write(path, content[:10])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fill_disk)

    result = command("inspect", "--ckpt_path", trained / "checkpoints/last.ckpt", "--prompt=abc", "--output=page.html")

    assert result.code == 1
    assert "no space left on device" in result.error
    assert list(in_tmp.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"init_from": "gpt2.ckpt"}, "a.yaml: starts from init_from (gpt2.ckpt); inspect that with --ckpt_path"),
        ({"model": {"n_layer": 2}}, "a.yaml: unknown setting 'model.n_layer'; did you mean 'model.n_layers'?"),
        ({"model": {"n_layers": 0}}, "model.n_layers must be an int of at least 1, got 0"),
        ({"model": {"vocab_size": 99}}, "model.vocab_size (99) is smaller than the tokenizer's 257"),
        ({"seed_everything": -1}, "seed_everything must be an int from 0 to 4294967295, got -1"),
        ({"data": {"tokenizer": [1]}}, "data.tokenizer must be a text, got [1]"),
    ],
)
def test_configs_without_an_untrained_model(
    command: Command, in_tmp: Path, changes: dict[str, object], error: str
) -> None:
    Path("a.yaml").write_text(yaml.safe_dump(tiny_settings() | changes))

    assert command("inspect", "--untrained=a.yaml", "--prompt=abc").error == error


def test_a_model_is_required(command: Command) -> None:
    error = command("inspect", "--prompt=abc").error
    assert error == "one of the arguments --ckpt_path --untrained is required"
