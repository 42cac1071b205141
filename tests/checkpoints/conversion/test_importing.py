"""`import` of every supported file, compared with transformers and with independent formulas."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import STORY, Result
from restated import BookGPT, hugging_face_logits, nanogpt_logits
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_lightning.checkpoints.conversion import readers
from gpt_lightning.checkpoints.conversion.importing import convert, read_config
from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.checkpoints.loading import open_checkpoint
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.errors import InputError, MachineError
from gpt_lightning.files import read_rows
from gpt_lightning.inference.kv_cache import KVCache
from gpt_lightning.inference.pretrained import load
from gpt_lightning.models.gpt import GPT
from gpt_lightning.models.loss import cross_entropy

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

Command = Callable[..., Result]
# Widths and heads of the four published sizes, with fewer layers, ids and positions. Tying the head does not depend on
# the width, so each of the wider models is either tied or untied.
SIZES = [(768, 12, 50257, 1024, True, 2), (768, 12, 300, 64, False, 2)]
SIZES += [(1024, 16, 300, 64, True, 1), (1280, 20, 300, 64, False, 1), (1600, 25, 300, 64, True, 1)]


def random_gpt2(
    emb_dim: int = 24,
    n_heads: int = 3,
    vocab_size: int = 300,
    positions: int = 32,
    tied: bool = True,
    n_layers: int = 2,
) -> GPT2LMHeadModel:
    """Return a model of transformers with logits of about 1 and no two equal weights."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=positions,
        n_embd=emb_dim,
        n_layer=n_layers,
        n_head=n_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(5)
    model = GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.02)
        elif parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    return model


def imported(command: Command, source: str | Path, *arguments: object) -> GPT:
    """Import a file and return the network of the checkpoint."""
    tokenizer = [] if "--tokenizer" in arguments else ["--tokenizer", "bytes"]
    result = command("import", "--from", source, "--output", "in.ckpt", *tokenizer, *arguments)
    assert result.code == 0, result.err
    return load("in.ckpt").model


def ids(vocab_size: int, tokens: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(1))


# ---- parity


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}-{'tied' if size[4] else 'untied'}")
def test_logits_equal_transformers(command: Command, in_tmp: Path, size: tuple[int, ...]) -> None:
    """In one forward pass, and token by token with the caches of both programs."""
    theirs = random_gpt2(*size)
    theirs.save_pretrained("hf")
    token_ids = ids(size[2], 12)
    vocabulary = "gpt2" if size[2] > 50000 else "bytes"

    ours = imported(command, "hf", "--tokenizer", vocabulary)

    with torch.no_grad():
        expected = theirs(token_ids).logits
        cache, past = KVCache(12), None
        rows, theirs_rows = [], []
        for t in range(12):
            rows.append(ours(token_ids[:, t : t + 1], cache))
            out = theirs(token_ids[:, t : t + 1], past_key_values=past, use_cache=True)
            past = out.past_key_values
            theirs_rows.append(out.logits)
        found = ours(token_ids)
    assert 0.3 < expected.abs().max() < 5
    assert (found - expected).abs().max() < 1e-5
    assert (torch.cat(rows, 1) - torch.cat(theirs_rows, 1)).abs().max() < 1e-5
    assert (torch.cat(rows, 1) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_a_restatement_of_the_forward_pass(command: Command, in_tmp: Path, tied: bool) -> None:
    random_gpt2(tied=tied).save_pretrained("hf")
    token_ids = ids(300, 32)

    ours = imported(command, "hf")

    expected = hugging_face_logits(load_file("hf/model.safetensors"), token_ids[0], 3)
    with torch.no_grad():
        assert (ours(token_ids)[0] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_equal_transformers(command: Command, in_tmp: Path, tied: bool) -> None:
    theirs = random_gpt2(tied=tied)
    theirs.save_pretrained("hf")
    ours = imported(command, "hf").train()
    batch = ids(300, 33, rows=2)
    inputs, targets = batch[:, :-1], batch[:, 1:]

    loss = cross_entropy(ours(inputs), targets).mean()
    loss.backward()
    expected = F.cross_entropy(theirs.train()(inputs).logits.flatten(0, 1), targets.flatten())
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    pairs = {"tok_emb": "wte", "pos_emb": "wpe", "final_norm": "ln_f"}
    for i in range(2):
        block, h = f"trf_blocks.{i}.", f"h.{i}."
        pairs |= {f"{block}norm1": f"{h}ln_1", f"{block}norm2": f"{h}ln_2", f"{block}att.qkv": f"{h}attn.c_attn"}
        pairs |= {f"{block}att.out_proj": f"{h}attn.c_proj", f"{block}ff.0": f"{h}mlp.c_fc"}
        pairs |= {f"{block}ff.2": f"{h}mlp.c_proj"}
    grads = {name.removeprefix("transformer."): one.grad for name, one in theirs.named_parameters()}
    compared = 0
    for name, parameter in ours.named_parameters():
        module, _, kind = name.rpartition(".")
        grad = grads["lm_head.weight" if module == "out_head" else f"{pairs[module]}.{kind}"]
        expected_grad = grad.T if grad.dim() == 2 and re.search(r"att\.|ff\.", module) else grad
        assert torch.allclose(parameter.grad, expected_grad, atol=1e-6, rtol=1e-4), name
        compared += 1
    assert compared == len(grads)


def test_the_checkpoint_describes_the_imported_weights(command: Command, in_tmp: Path) -> None:
    random_gpt2().save_pretrained("hf")

    command("import", "--from", "hf", "--output", "in.ckpt", "--tokenizer", "bytes")

    content = read_checkpoint("in.ckpt")
    assert content["hyper_parameters"] == {
        "vocab_size": 300,
        "context_length": 32,
        "emb_dim": 24,
        "n_heads": 3,
        "n_layers": 2,
        "drop_rate": 0.0,
        "qkv_bias": True,
        "tie_weights": True,
        "init": "gpt2",
    }
    assert content["gpt_lightning"]["imported"] == {"from": "hf", "layout": "Hugging Face"}
    state = content["state_dict"]
    assert state["model.out_head.weight"].data_ptr() == state["model.tok_emb.weight"].data_ptr()  # stored once
    assert os.path.getsize("in.ckpt") < 4 * (300 * 24 + 32 * 24 + 2 * 12 * 24**2) * 1.5


# ---- the report


def test_the_report_has_a_line_for_every_kind_of_weight(command: Command, in_tmp: Path) -> None:
    random_gpt2().half().save_pretrained("hf")

    result = command("import", "--from", "hf", "--output", "in.ckpt", "--tokenizer", "bytes", "--context_length", "20")

    assert result.out.splitlines()[:-1] == [
        "hf: weights in the format of Hugging Face",
        "wte.weight -> tok_emb.weight 300 x 24, from float16",
        "wpe.weight -> pos_emb.weight 32 x 24, from float16, cropped to 20 positions",
        "h.N.attn.c_attn.weight -> trf_blocks.N.att.qkv.weight 72 x 24, transposed, from float16, 2 layers",
        "h.N.attn.c_attn.bias -> trf_blocks.N.att.qkv.bias 72, from float16, 2 layers",
        "h.N.attn.c_proj.weight -> trf_blocks.N.att.out_proj.weight 24 x 24, transposed, from float16, 2 layers",
        "h.N.attn.c_proj.bias -> trf_blocks.N.att.out_proj.bias 24, from float16, 2 layers",
        "h.N.mlp.c_fc.weight -> trf_blocks.N.ff.0.weight 96 x 24, transposed, from float16, 2 layers",
        "h.N.mlp.c_fc.bias -> trf_blocks.N.ff.0.bias 96, from float16, 2 layers",
        "h.N.mlp.c_proj.weight -> trf_blocks.N.ff.2.weight 24 x 96, transposed, from float16, 2 layers",
        "h.N.mlp.c_proj.bias -> trf_blocks.N.ff.2.bias 24, from float16, 2 layers",
        "h.N.ln_1.weight -> trf_blocks.N.norm1.weight 24, from float16, 2 layers",
        "h.N.ln_1.bias -> trf_blocks.N.norm1.bias 24, from float16, 2 layers",
        "h.N.ln_2.weight -> trf_blocks.N.norm2.weight 24, from float16, 2 layers",
        "h.N.ln_2.bias -> trf_blocks.N.norm2.bias 24, from float16, 2 layers",
        "ln_f.weight -> final_norm.weight 24, from float16",
        "ln_f.bias -> final_norm.bias 24, from float16",
        "lm_head.weight -> out_head.weight 300 x 24, tied to tok_emb.weight: the source has none",
        "in.ckpt: vocab_size 300, context_length 20, emb_dim 24, n_heads 3, n_layers 2, qkv_bias True, "
        "tie_weights True, tokenizer bytes",
    ]
    assert result.out.splitlines()[-1] == (
        'To sample: python -m gpt_lightning predict --ckpt_path in.ckpt --prompt "Hello, I am"'
    )


def test_a_shorter_context_keeps_the_first_positions(command: Command, in_tmp: Path) -> None:
    theirs = random_gpt2()
    theirs.save_pretrained("hf")

    ours = imported(command, "hf", "--context_length", 20)

    assert torch.equal(ours.pos_emb.weight, theirs.transformer.wpe.weight[:20])
    with torch.no_grad():
        assert (ours(ids(300, 20)) - theirs(ids(300, 20)).logits).abs().max() < 1e-5


# ---- other files


def test_names_without_prefix_causal_masks_and_a_stored_tied_head(command: Command, in_tmp: Path) -> None:
    """As in OpenAI's repositories and in older files."""
    theirs = random_gpt2()
    tensors = {name.removeprefix("transformer."): one.clone() for name, one in theirs.state_dict().items()}
    for i in range(2):
        tensors[f"h.{i}.attn.bias"] = torch.tril(torch.ones(1, 1, 32, 32))
        tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, "weights.safetensors")

    result = command(
        "import", "--from", "weights.safetensors", "--output", "in.ckpt", "--tokenizer", "bytes", "--n_heads", "3"
    )

    assert "h.N.attn.bias skipped: the causal mask, 2 layers\n" in result.out
    assert "h.N.attn.masked_bias skipped: the causal mask, 2 layers\n" in result.out
    assert "out_head.weight 300 x 24, tied to tok_emb.weight: equal\n" in result.out
    with torch.no_grad():
        assert (load("in.ckpt").model(ids(300, 9)) - theirs(ids(300, 9)).logits).abs().max() < 1e-5


def test_a_model_in_several_files(command: Command, in_tmp: Path) -> None:
    theirs = random_gpt2()
    theirs.save_pretrained("hf", max_shard_size="20KB")

    assert len(list(Path("hf").glob("model-*.safetensors"))) > 1
    ours = imported(command, "hf")

    with torch.no_grad():
        assert (ours(ids(300, 9)) - theirs(ids(300, 9)).logits).abs().max() < 1e-5


def nanogpt(bias: bool) -> dict[str, Any]:
    """Return what nanoGPT's train.py saves for a compiled model."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: 0.05 * torch.randn(shape, generator=generator)  # noqa: E731
    weights = {"transformer.wte.weight": draw(300, 24), "transformer.wpe.weight": draw(32, 24)}
    for i in range(2):
        h = f"transformer.h.{i}."
        shapes = {"attn.c_attn": (72, 24), "attn.c_proj": (24, 24), "mlp.c_fc": (96, 24), "mlp.c_proj": (24, 96)}
        for name, shape in shapes.items():
            weights[f"{h}{name}.weight"] = 4 * draw(*shape)
            weights[f"{h}{name}.bias"] = draw(shape[0])
        for name in ("ln_1", "ln_2"):
            weights |= {f"{h}{name}.weight": 1 + draw(24), f"{h}{name}.bias": draw(24)}
    weights |= {"transformer.ln_f.weight": 1 + draw(24), "transformer.ln_f.bias": draw(24)}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    arguments = {"n_layer": 2, "n_head": 3, "n_embd": 24, "block_size": 32, "bias": bias}
    return {
        "model": {f"_orig_mod.{name}": one for name, one in weights.items() if bias or not name.endswith("bias")},
        "optimizer": {"state": {}, "param_groups": []},
        "model_args": arguments | {"vocab_size": 300, "dropout": 0.2},
        "iter_num": 5,
        "best_val_loss": torch.tensor(2.0),
        "config": {"out_dir": "out"},
    }


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpts_checkpoint(command: Command, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    """Logits differ slightly, because nanoGPT uses the exact GELU, and are equal once ours does too."""
    saved = nanogpt(bias)
    torch.save(saved, "ckpt.pt")

    result = command("import", "--from", "ckpt.pt", "--output", "in.ckpt", "--tokenizer", "bytes")

    ours = load("in.ckpt").model
    own = read_checkpoint("in.ckpt")["hyper_parameters"]
    expected = nanogpt_logits(saved["model"], ids(300, 32)[0], 3)
    with torch.no_grad():
        as_gpt2 = (ours(ids(300, 32))[0] - expected).abs().max()
        for block in ours.trf_blocks:
            block.ff[1] = torch.nn.GELU()
        assert (ours(ids(300, 32))[0] - expected).abs().max() < 1e-5
    assert 1e-5 < as_gpt2 < 5e-3
    assert "nanoGPT uses the exact GELU, this program GPT-2's tanh approximation" in result.out
    assert ("trf_blocks.N.ff.0.bias 96, 0: the source has none, 2 layers" in result.out) is not bias
    assert (own["qkv_bias"], own["tie_weights"], own["drop_rate"]) == (bias, True, 0.2)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_the_books_files(command: Command, in_tmp: Path, qkv_bias: bool) -> None:
    torch.manual_seed(7)
    book = BookGPT(300, 32, 24, 3, 2, qkv_bias)
    optimizer = torch.optim.AdamW(book.parameters(), lr=4e-4, weight_decay=0.1)
    book(ids(300, 8)).sum().backward()
    optimizer.step()
    torch.save(book.state_dict(), "model.pth")
    both = {"model_state_dict": book.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    torch.save(both, "model_and_optimizer.pth")

    for name in ("model.pth", "model_and_optimizer.pth"):
        Path("in.ckpt").unlink(missing_ok=True)
        ours = imported(command, name, "--n_heads", 3)
        with torch.no_grad():
            assert (ours(ids(300, 32)) - book(ids(300, 32))).abs().max() < 1e-5
    own = read_checkpoint("in.ckpt")["hyper_parameters"]
    assert (own["qkv_bias"], own["tie_weights"], own["drop_rate"]) == (qkv_bias, False, 0.1)


def test_the_heads_of_the_published_sizes_are_known(in_tmp: Path) -> None:
    shapes = {"tok_emb.weight": (50257, 1280), "pos_emb.weight": (1024, 1280), "out_head.weight": (50257, 1280)}
    shapes |= {f"trf_blocks.{i}.att.W_query.weight": (1280, 1280) for i in range(36)}
    zeros = lambda key: torch.zeros(shapes[key]) + (key == "out_head.weight")  # noqa: E731

    source = readers._identify("model.pth", shapes, zeros, {})

    assert source.key_map.title == "the book"
    assert (read_config(source).n_heads, read_config(source).tie_weights) == (20, False)


# ---- other commands on imported checkpoints


def test_every_command_takes_the_checkpoint(command: Command, in_tmp: Path) -> None:
    theirs = random_gpt2(vocab_size=50257)
    theirs.save_pretrained("hf")
    command("import", "--from", "hf", "--output", "in.ckpt")
    encode = load_tokenizer("gpt2").encode

    in_float32 = ("--data.batch_size=64", "--trainer.precision=32-true")
    shown = command("validate", "--ckpt_path", "in.ckpt", "--data.text", STORY, *in_float32)
    no_text = command("validate", "--ckpt_path", "in.ckpt")
    written = command("predict", "--ckpt_path", "in.ckpt", "--prompt", "Hello, I am", "--sampling.max_new_tokens=6")

    token_ids = torch.tensor(encode(STORY.read_text()))
    windows = (len(token_ids) - 1) // 32
    inputs, targets = token_ids[: 32 * windows].view(-1, 32), token_ids[1 : 32 * windows + 1].view(-1, 32)
    with torch.no_grad():
        loss = F.cross_entropy(theirs(inputs).logits.flatten(0, 1), targets.flatten()).item()
    assert float(re.search(r"loss (\S+) nats", shown.out)[1]) == pytest.approx(loss, abs=2e-6)
    assert (no_text.code, no_text.error) == (
        2,
        "data.text is missing; name a text file, or use a config that names one",
    )
    prompt = torch.tensor([encode("Hello, I am")])
    greedy = theirs.generate(prompt, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(prompt))
    assert written.out == load_tokenizer("gpt2").decode(greedy[0].tolist()) + "\n"


# ---- fine-tuning


@pytest.fixture
def start(command: Command, config: Path) -> Path:
    """A checkpoint with 300 token ids and 32 positions, next to `config`."""
    random_gpt2().save_pretrained("hf")
    command("import", "--from", "hf", "--output", "in.ckpt", "--tokenizer", "bytes")
    return Path("in.ckpt")


TUNED = ("--model.context_length=20", "--model.drop_rate=0.1", "--data.batch_size=96")


def write_config() -> Path:
    """Write a config whose architecture comes from `init_from`."""
    text = f"""
init_from: in.ckpt
data: {{text: {STORY}, tokenizer: bytes, batch_size: 96}}
model: {{context_length: 20, drop_rate: 0.1, learning_rate: 0.001}}
prompt: [Every effort]
sampling: {{max_new_tokens: 4}}
evaluate_every: 4
trainer: {{accelerator: cpu, precision: 32-true, max_steps: 6}}
"""
    path = Path("tune.yaml")
    path.write_text(text)
    return path


def test_fit_starts_from_the_weights(command: Command, start: Path) -> None:
    result = command("fit", "--config", write_config(), "--run_dir", "run")

    assert result.code == 0, result.err
    model = GPT2LMHeadModel.from_pretrained("hf").eval()
    text = STORY.read_text()
    token_ids = torch.tensor(list(text[int(0.9 * len(text)) :].encode()))
    windows = (len(token_ids) - 1) // 20
    inputs, targets = token_ids[: 20 * windows].view(-1, 20), token_ids[1 : 20 * windows + 1].view(-1, 20)
    with torch.no_grad():
        loss = F.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten()).item()
    first = read_rows(Path("run/metrics.jsonl"))[0]
    assert (first["step"], first["val_loss"]) == (0, pytest.approx(loss, abs=1e-5))
    lines = result.out.splitlines()
    assert f"weights     from {start.absolute()}, with its first 20 positions and a new optimizer" in lines
    assert any(line.startswith("Pretrained (Step 000000): Train loss ") for line in lines)
    last = read_checkpoint("run/checkpoints/last.ckpt")
    own = last["hyper_parameters"]
    assert (own["context_length"], own["drop_rate"], own["emb_dim"], own["tie_weights"]) == (20, 0.1, 24, True)
    assert own["vocab_size"] == 300
    assert last["state_dict"]["model.pos_emb.weight"].shape == (20, 24)
    assert last["optimizer_states"][0]["state"][0]["step"].item() == 6


def test_a_run_from_weights_resumes_without_their_file(command: Command, start: Path) -> None:
    arguments = ("fit", "--config", write_config())
    command(*arguments, "--run_dir", "whole")
    command(*arguments, "--run_dir", "run", "--trainer.max_steps=3")
    start.unlink()

    result = command(*arguments, "--run_dir", "run", "--resume")
    shown = command("predict", "--ckpt_path", "run/checkpoints/last.ckpt", "--prompt", "x")

    assert result.code == 0, result.err
    whole, pieces = (read_checkpoint(f"{run}/checkpoints/last.ckpt")["state_dict"] for run in ("whole", "run"))
    assert all(torch.equal(pieces[key], one) for key, one in whole.items())
    assert (shown.code, shown.err) == (0, "")
    other = command(*arguments, "--run_dir", "run", "--resume", "--init_from=b.ckpt", "--trainer.max_steps=9")
    assert other.error == (
        f"run/checkpoints/last.ckpt has init_from {start.absolute()}, the settings say {Path('b.ckpt').absolute()}"
    )


def test_the_config_in_the_run_folder_reproduces_the_run(command: Command, start: Path) -> None:
    command("fit", "--config", write_config(), "--run_dir", "run")

    again = command("fit", "--config", "run/tune.yaml", "--run_dir", "again")

    assert again.code == 0, again.err
    one, other = (read_checkpoint(f"{run}/checkpoints/last.ckpt")["state_dict"] for run in ("run", "again"))
    assert all(torch.equal(other[key], tensor) for key, tensor in one.items())


def test_check_evaluates_the_weights(command: Command, start: Path) -> None:
    result = command("check", "--config", write_config())

    assert result.code == 0, result.err
    assert f"weights     from {start.absolute()}, with its first 20 positions and a new optimizer\n" in result.out
    assert "\npretrained  Train loss " in result.out
    assert "from the uniform baseline" not in result.out


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        ("--model.emb_dim=12", "init_from {} has model.emb_dim 24, the settings say 12"),
        ("--model.tie_weights=false", "init_from {} has model.tie_weights true, the settings say false"),
        ("--model.vocab_size=257", "init_from {} has model.vocab_size 300, the settings say 257"),
        ("--data.tokenizer=gpt2", "init_from {} has data.tokenizer bytes, the settings say gpt2"),
        ("--model.context_length=33", "model.context_length (33) must be at most 32, init_from {}'s"),
        ("--init_from=nope.ckpt", "{}: no such file"),
    ],
)
def test_settings_that_do_not_fit_the_weights_are_refused(
    command: Command, start: Path, argument: str, error: str
) -> None:
    result = command("fit", "--config", write_config(), "--run_dir", "run", argument)

    name = Path("nope.ckpt" if "nope" in argument else start).absolute()
    assert (result.code, result.error) == (2, error.format(name))
    assert not Path("run").exists()


def test_weights_with_invalid_settings_are_refused(command: Command, start: Path) -> None:
    content = torch.load(start)
    for value, error in (
        (None, f"{start.absolute()}: its settings lack model.n_heads"),
        ("3 heads", "model.n_heads must be an int of at least 1, got '3 heads'"),
    ):
        content["hyper_parameters"]["n_heads"] = value
        torch.save(content, "in.ckpt")
        result = command("fit", "--config", write_config(), "--run_dir", "run")
        assert (result.code, result.error) == (2, error)


# ---- published figures


def test_the_published_losses_on_the_verdict(verdict: Path, tmp_path: Path) -> None:
    """The book's exercise 5.5, with a context of 256 tokens."""
    folder = os.environ.get("GPT_LIGHTNING_GPT2")
    if not folder:
        pytest.skip("needs the folder of gpt2 or gpt2-xl, named by GPT_LIGHTNING_GPT2")
    published = {12: (3.7547486888, 3.5596182346), 48: (3.3046312862, 3.1195147038)}
    source = readers.open_weights(folder)
    converted = convert(source, read_config(source), 256)
    model = GPT(converted.config).eval()
    model.load_state_dict(converted.state)

    data = TextDataModule(text=str(verdict), context_length=256)
    data.setup("fit")
    for split, expected in zip(("training", "validation"), published[converted.config.n_layers], strict=True):
        with torch.no_grad():
            losses = [
                cross_entropy(model(x[None]), y[None]).double().mean().item() for x, y in data.splits[split].windows
            ]
        assert sum(losses) / len(losses) == pytest.approx(expected, abs=1e-3)


# ---- invalid sources


def spoil_file(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[], None]:
    def spoil() -> None:
        tensors = load_file("hf/model.safetensors")
        change(tensors)
        save_file(tensors, "hf/model.safetensors")

    return spoil


def spoil_config(**values: Any) -> Callable[[], None]:
    def spoil() -> None:
        config = json.loads(Path("hf/config.json").read_text()) | values
        Path("hf/config.json").write_text(json.dumps(config))

    return spoil


def truncate() -> None:
    content = Path("hf/model.safetensors").read_bytes()
    Path("hf/model.safetensors").write_bytes(content[: len(content) // 2])


def cut_header() -> None:
    Path("hf/model.safetensors").write_bytes(b"\x10\x00\x00")


C_FC = "transformer.h.1.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda: os.remove("hf/model.safetensors"), "hf: contains no model.safetensors; give a Hugging Face"),
        (lambda: Path("hf/config.json").write_text("{"), "hf/config.json: not JSON"),
        (lambda: Path("hf/config.json").write_text("[]"), "hf/config.json: must be a JSON object"),
        (truncate, "hf/model.safetensors: is not a complete safetensors file (.*)"),
        (cut_header, "hf/model.safetensors: is not a complete safetensors file (.*)"),
        (spoil_file(lambda t: t.pop(C_FC)), "hf: h.1.mlp.c_fc.weight is missing"),
        (spoil_file(lambda t: t.pop("transformer.wpe.weight")), "hf: wpe.weight is missing"),
        (
            spoil_file(lambda t: t.update({C_FC: torch.zeros(96, 24)})),
            "hf: h.1.mlp.c_fc.weight must have shape 24 x 96, got 96 x 24",
        ),
        (
            spoil_file(lambda t: t.update({"transformer.wpe.weight": torch.zeros(32)})),
            "hf: wpe.weight must be a matrix, got shape 32",
        ),
        (
            spoil_file(lambda t: t.update({"transformer.ln_f.bias": torch.zeros(())})),
            r"hf: ln_f.bias must have shape 24, got \(\)",
        ),
        (
            spoil_file(lambda t: t.update({C_FC: torch.zeros(24, 96, dtype=torch.int8)})),
            "hf: h.1.mlp.c_fc.weight must be of a floating-point type, got int8",
        ),
        (
            spoil_file(lambda t: t[C_FC].fill_(torch.nan)),
            r"hf: contains non-finite weights \(h.1.mlp.c_fc.weight\)",
        ),
        (
            spoil_file(lambda t: t.update({"transformer.h.1.attn.rotary": torch.zeros(3)})),
            "hf: h.1.attn.rotary is not a weight of a GPT-2 in the format of Hugging Face",
        ),
        (
            spoil_file(lambda t: [t.pop(key) for key in list(t)] and t.update(a=torch.zeros(1))),
            r"hf: is not a GPT-2 of Hugging Face, nanoGPT, the book or this program \(its first weight is 'a'\)",
        ),
        (
            spoil_file(lambda t: [t.pop(key) for key in list(t)]),
            "hf: is not a GPT-2 .*(it is empty)",
        ),
        (spoil_config(vocab_size=50257), "hf: its settings say vocab_size 50257, its weights have 300"),
        (spoil_config(n_layer=10**9), "hf: has weights of 2 layers, its settings say 1000000000"),
        (spoil_config(n_head=5), r"hf: model.emb_dim \(24\) must be divisible by model.n_heads \(5\)"),
        (spoil_config(n_head="3"), "hf: model.n_heads must be an int of at least 1, got '3'"),
        (spoil_config(model_type="bert"), r"hf/config.json: model_type \(bert\) must be gpt2, as in GPT-2"),
        (
            spoil_config(activation_function="relu"),
            r"hf/config.json: activation_function \(relu\) must be gelu_new, as in GPT-2",
        ),
        (spoil_config(n_inner=50), r"hf/config.json: n_inner \(50\) must be 4 \* n_embd \(96\), as in GPT-2"),
    ],
)
def test_a_bad_folder_gets_one_line(command: Command, in_tmp: Path, spoil: Callable[[], None], error: str) -> None:
    random_gpt2().save_pretrained("hf")
    spoil()
    before = sorted(os.listdir())

    result = command("import", "--from", "hf", "--output", "in.ckpt", "--tokenizer", "bytes")

    assert result.code == 2
    assert re.match(error, result.error), result.error
    assert sorted(os.listdir()) == before


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def write_pickles() -> None:
    torch.save({"tok_emb.weight": Bomb()}, "bomb.pth")
    Path("raw.pth").write_bytes(pickle.dumps(Bomb()))
    torch.save([1], "list.pth")
    torch.save({"tok_emb.weight": 3}, "number.pth")
    torch.save(BookGPT(300, 8, 24, 3, 1).state_dict(), "model.pth")
    torch.save(BookGPT(100, 8, 24, 3, 1).state_dict(), "small.pth")
    content = Path("model.pth").read_bytes()
    Path("half.pth").write_bytes(content[: len(content) // 2])
    torch.save({"gpt_lightning": {}}, "own.ckpt")
    save_file({"tok_emb.weight": torch.ones(1)}, "own.safetensors", {"gpt_lightning": "{"})
    os.mkfifo("pipe")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nope.pth"], "nope.pth: no such file or folder"),
        (["a/b/c"], "a/b/c: no such file or folder"),
        (["pipe"], "pipe: must be a file or a folder"),
        (["bomb.pth"], "bomb.pth: refused, because it contains more than tensors and plain data"),
        (["raw.pth"], "raw.pth: is not a zip file of torch.save"),
        (["half.pth"], "half.pth: is not a complete checkpoint"),
        (["list.pth"], "list.pth: must contain a dict of weights, got a list"),
        (["number.pth"], "number.pth: tok_emb.weight must be a name and a dense tensor"),
        (["own.ckpt"], "own.ckpt: is already a checkpoint of gpt_lightning; use it without import"),
        (["own.safetensors"], "own.safetensors: its gpt_lightning metadata is not JSON"),
        (["model.pth"], "model.pth: does not state its number of attention heads; give --n_heads"),
        (["model.pth", "--n_heads=5"], "model.pth: model.emb_dim (24) must be divisible by model.n_heads (5)"),
        (["model.pth", "--n_heads=0"], "model.pth: model.n_heads must be an int of at least 1, got 0"),
        (["model.pth", "--n_heads=x"], "argument --n_heads: invalid int value: 'x'"),
        (
            ["model.pth", "--n_heads=3", "--context_length=9"],
            "--context_length (9) must be at most 8, model.pth's",
        ),
        (["model.pth", "--n_heads=3", "--context_length=0"], "--context_length must be an int of at least 1, got 0"),
        (
            ["small.pth", "--n_heads=3"],
            "small.pth: has 100 token ids, fewer than the 257 of the tokenizer bytes; choose another with --tokenizer",
        ),
        (
            ["model.pth", "--n_heads=3", "--output=model.pth"],
            "--output model.pth: already exists; choose another or remove it",
        ),
        (["hf", "--n_heads=4"], "--n_heads (4) must be 3, as stated by hf"),
    ],
)
def test_a_bad_source_gets_one_line(command: Command, in_tmp: Path, arguments: list[str], error: str) -> None:
    random_gpt2().save_pretrained("hf")
    write_pickles()
    before = sorted(os.listdir())

    result = command("import", "--tokenizer", "bytes", "--output", "in.ckpt", "--from", *arguments)

    assert (result.code, result.error) == (2, error)
    assert sorted(os.listdir()) == before


def test_a_folder_that_cannot_be_written_to(command: Command, in_tmp: Path) -> None:
    random_gpt2().save_pretrained("hf")

    result = command("import", "--from", "hf", "--tokenizer", "bytes", "--output", "/proc/in.ckpt")

    assert (result.code, result.error) == (1, "/proc/in.ckpt: no such file or directory while saving")


def test_a_checkpoint_that_was_written_damaged_is_reported(
    command: Command, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(path: Path) -> None:
        raise InputError(f"{path}: checksum mismatch")

    random_gpt2().save_pretrained("hf")
    monkeypatch.setattr("gpt_lightning.checkpoints.conversion.importing.read_checkpoint", damaged)

    result = command("import", "--from", "hf", "--tokenizer", "bytes", "--output", "in.ckpt")

    assert (result.code, result.error) == (1, "in.ckpt: checksum mismatch, though it was just written")


# ---- the Hugging Face Hub


def hub(monkeypatch: pytest.MonkeyPatch, download: Callable[..., str]) -> None:
    """Replace the download by a function."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


def test_a_repository_is_downloaded_once(command: Command, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    theirs = random_gpt2()
    asked: list[tuple[str, str, bool]] = []

    def download(repository: str, file: str, local_files_only: bool = False) -> str:
        asked.append((repository, file, local_files_only))
        if local_files_only and not Path("cache").exists():
            raise LocalEntryNotFoundError("not here")
        if not local_files_only:
            theirs.save_pretrained("cache")
        return str(Path("cache") / file)

    hub(monkeypatch, download)
    monkeypatch.setattr(readers, "_reach_hub", lambda: None)

    ours = imported(command, "openai-community/gpt2")
    Path("in.ckpt").unlink()
    imported(command, "openai-community/gpt2")

    assert torch.equal(ours.pos_emb.weight, theirs.transformer.wpe.weight)
    name = "openai-community/gpt2"
    files = [(name, "config.json"), (name, "model.safetensors")]
    assert asked == [
        (*files[0], True),
        *[(*file, False) for file in files],
        *[(*file, True) for file in files],
    ]


def test_without_a_network_the_message_says_what_to_do(
    command: Command, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(in_tmp / "cache"))

    result = command("import", "--from", "openai-community/no-such", "--output", "in.ckpt")

    assert result.code == 1
    start = "openai-community/no-such: no such file or folder, and it cannot be downloaded from Hugging Face ("
    end = (
        "); download config.json and model.safetensors of https://huggingface.co/openai-community/no-such "
        "on another machine and give their folder"
    )
    assert result.error.startswith(start)
    assert "refused" in result.error
    assert result.error.endswith(end)


def test_a_repository_that_does_not_exist(command: Command, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    def download(repository: str, file: str, local_files_only: bool = False) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        raise RepositoryNotFoundError("404", response=types.SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    hub(monkeypatch, download)
    monkeypatch.setattr(readers, "_reach_hub", lambda: None)

    result = command("import", "--from", "nobody/nothing", "--output", "in.ckpt")

    error = "nobody/nothing: no such file or folder, and no such repository on Hugging Face with model.safetensors"
    assert (result.code, result.error) == (2, error)


def test_a_missing_extra_is_named(command: Command, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    result = command("import", "--from", "openai-community/gpt2", "--output", "in.ckpt")

    extra = "to download it from Hugging Face, install the extra hub: pip install -c constraints.txt -e '.[hub]'"
    assert (result.code, result.error) == (2, f"openai-community/gpt2: no such file or folder; {extra}")
    assert os.listdir() == []


def test_a_file_that_cannot_be_read(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "model.pth")

    Path("model.pth").write_bytes(b"x")
    monkeypatch.setattr(readers, "_open_pickle", refuse)

    with pytest.raises(MachineError, match="model.pth: permission denied"):
        readers.open_weights("model.pth")


def test_weights_under_two_names_are_refused(tmp_path: Path) -> None:
    torch.save({"tok_emb.weight": torch.ones(3, 2), "module.tok_emb.weight": torch.zeros(3, 2)}, tmp_path / "two.pth")

    with pytest.raises(InputError, match="two.pth: contains weights twice, under names that differ only in a prefix"):
        readers.open_weights(str(tmp_path / "two.pth"))


def test_what_the_export_for_the_book_wrote_is_imported_as_it_is(command: Command, in_tmp: Path, trained: Path) -> None:
    """A small model on bytes: neither its heads nor its tokenizer can be told from the weights."""
    checkpoint = trained / "checkpoints/last.ckpt"
    assert command("export", "--ckpt_path", checkpoint, "--format", "book", "--output", "book").code == 0

    for name in ("model.pth", "model_and_optimizer.pth"):
        result = command("import", "--from", f"book/{name}", "--output", f"{name}.ckpt")
        assert result.code == 0, result.err
        assert open_checkpoint(f"{name}.ckpt").config.n_heads == open_checkpoint(str(checkpoint)).config.n_heads
        sample = ("--prompt", "The", "--sampling.max_new_tokens=9")
        ours, theirs = (command("predict", "--ckpt_path", path, *sample).out for path in (checkpoint, f"{name}.ckpt"))
        assert theirs == ours
