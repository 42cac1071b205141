"""Other programs' formats, each written from a checkpoint's weights without a second copy of them."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_lightning.checkpoints.conversion.key_maps import BOOK, GGUF, HEAD, HUGGING_FACE, OURS, Layout, split_name
from gpt_lightning.checkpoints.conversion.readers import SAFETENSORS, Source
from gpt_lightning.checkpoints.io import verify_checksums
from gpt_lightning.checkpoints.loading import LoadedCheckpoint
from gpt_lightning.console import PROGRAM
from gpt_lightning.data.tokenizer import END_OF_TEXT, load_tokenizer, published_files
from gpt_lightning.models.gpt import parameter_shapes

NORMAL, CONTROL, UNUSED = 1, 3, 5  # llama.cpp's kinds of tokens
MOMENTS = ("exp_avg", "exp_avg_sq")
OPTIMIZED = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")


def tensors_of(trained: LoadedCheckpoint, layout: Layout, *, head: bool, biases: bool) -> dict[str, Tensor]:
    """Their names -> views of the weights, in the order in which an optimizer of theirs numbers them.

    Args:
        trained: The model.
        layout: Whose names.
        head: Whether a tied head is stored too.
        biases: Whether query, key and value have biases in any case: 0 where the model has none.
    """
    return {name: tensor for name, _, tensor in _entries(trained, layout, trained.state, head, biases)}


def _entries(
    trained: LoadedCheckpoint, layout: Layout, values: dict[str, Tensor], head: bool, biases: bool
) -> Iterator[tuple[str, str, Tensor]]:
    """Their name, our name and their part of our value, for each weight."""
    shapes = parameter_shapes(replace(trained.config, qkv_bias=trained.config.qkv_bias or biases))
    if trained.config.tie_weights and not head:
        del shapes[HEAD]
    for _, group in itertools.groupby(shapes, key=lambda ours: split_name(ours)[:2]):
        kinds = list(group)  # the weight and the bias of one module
        for part in range(len(layout.names(kinds[0]))):
            for ours in kinds:
                value = values[ours] if ours in values else torch.zeros(shapes[ours])
                yield layout.names(ours)[part], ours, layout.to_theirs(ours, value)[part]


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes one safetensors file, each tensor made contiguous on its own: the library would need all at once."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            file.write(tensor.float().contiguous().numpy().data)
        file.flush()
        os.fsync(file.fileno())


def write_own(trained: LoadedCheckpoint, path: Path) -> Iterator[str]:
    """Our names in one file, what builds the network in its metadata."""
    settings = json.dumps(asdict(trained.config) | {"tokenizer": trained.tokenizer})
    tensors = tensors_of(trained, OURS, head=False, biases=False)
    write_safetensors(path, tensors, {"format": "pt", PROGRAM: settings})
    yield from ()


def write_hf(trained: LoadedCheckpoint, folder: Path) -> Iterator[str]:
    """Weights, config.json and the tokenizer's files."""
    gpt = trained.config
    tensors = tensors_of(trained, HUGGING_FACE, head=False, biases=True)
    if not gpt.qkv_bias:
        yield "query, key and value get biases of 0: GPT-2's class has them"
    folder.mkdir()
    (head,) = HUGGING_FACE.names(HEAD)
    named = {name if name == head else f"transformer.{name}": tensor for name, tensor in tensors.items()}
    write_safetensors(folder / SAFETENSORS, named, {"format": "pt"})
    end = load_tokenizer(trained.tokenizer).encode(END_OF_TEXT)[0]
    rate = gpt.drop_rate
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": gpt.vocab_size,
        "n_positions": gpt.context_length,
        "n_embd": gpt.emb_dim,
        "n_head": gpt.n_heads,
        "n_layer": gpt.n_layers,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": rate,
        "embd_pdrop": rate,
        "attn_pdrop": rate,
        "tie_word_embeddings": gpt.tie_weights,
        "bos_token_id": end,
        "eos_token_id": end,
        "dtype": "float32",
    }
    merges, encoder = published_files()
    tokenizer = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": gpt.context_length,
        "add_prefix_space": False,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "vocab.json").write_bytes(encoder)
    (folder / "merges.txt").write_bytes(merges)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n")


def write_book(trained: LoadedCheckpoint, folder: Path) -> Iterator[str]:
    """What the book's section 5.4 saves: the state dict, and one beside the optimizer's."""
    folder.mkdir()
    context_length = trained.config.context_length
    weights = tensors_of(trained, BOOK, head=True, biases=False)
    mask = torch.triu(torch.ones(context_length, context_length), diagonal=1)
    weights |= {f"trf_blocks.{i}.att.mask": mask for i in range(trained.config.n_layers)}
    torch.save(weights, folder / "model.pth")
    reason = why_no_optimizer(trained)
    if reason is not None:
        yield f"model_and_optimizer.pth is left out: {reason}"
        return
    both = {"model_state_dict": weights, "optimizer_state_dict": book_optimizer(trained)}
    torch.save(both, folder / "model_and_optimizer.pth")
    verify_checksums(str(folder / "model_and_optimizer.pth"))


def why_no_optimizer(trained: LoadedCheckpoint) -> str | None:
    """Why the book's AdamW cannot go on from a checkpoint's; None where it can."""
    states = trained.content.get("optimizer_states")
    if not states:
        return f"{trained.name} has no optimizer state (a run's last.ckpt has)"
    if trained.config.tie_weights:
        return "the head is tied to the token embedding, and the book's optimizer has moments for each"
    if len(states[0]["param_groups"]) != 1:
        return "model.decay_matrices_only makes two groups of weights, the book's optimizer has one"
    return None


def book_optimizer(trained: LoadedCheckpoint) -> dict[str, Any]:
    """AdamW's state dict for the book's model: its numbers of weights, three projections for our one."""
    saved = trained.content["optimizer_states"][0]
    numbers = {name: number for number, name in enumerate(parameter_shapes(trained.config))}
    state: dict[int, dict[str, Tensor]] = {}
    for moment in MOMENTS:
        values = {name: saved["state"][number][moment] for name, number in numbers.items()}
        for number, (_, ours, value) in enumerate(_entries(trained, BOOK, values, head=True, biases=False)):
            state.setdefault(number, {"step": saved["state"][numbers[ours]]["step"].clone()})[moment] = value
    group = {name: value for name, value in saved["param_groups"][0].items() if name in OPTIMIZED}
    made = torch.optim.AdamW([torch.nn.Parameter(torch.empty(0)) for _ in state], **group)
    return {"state": state, "param_groups": made.state_dict()["param_groups"]}


def write_gguf(trained: LoadedCheckpoint, path: Path) -> Iterator[str]:
    """Weights, vocabulary and merges in one file of llama.cpp."""
    import gguf

    gpt = trained.config
    merges, encoder = published_files()
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name(Path(trained.name).stem)
    writer.add_block_count(gpt.n_layers)
    writer.add_context_length(gpt.context_length)
    writer.add_embedding_length(gpt.emb_dim)
    writer.add_feed_forward_length(4 * gpt.emb_dim)
    writer.add_head_count(gpt.n_heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    tokens = [token for token, _ in sorted(json.loads(encoder).items(), key=lambda one: one[1])]
    end = tokens.index(END_OF_TEXT)
    kinds = [CONTROL if number == end else NORMAL for number in range(len(tokens))]
    padding = gpt.vocab_size - len(tokens)  # a model may have more ids than its tokenizer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + [f"[PAD{number}]" for number in range(padding)])
    writer.add_token_types(kinds + [UNUSED] * padding)
    writer.add_token_merges(merges.decode().splitlines()[1:])  # the first line is a version
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    for name, tensor in tensors_of(trained, GGUF, head=False, biases=True).items():
        writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if not gpt.qkv_bias:
        yield "query, key and value get biases of 0: llama.cpp's GPT-2 has them"


def open_gguf(path: Path) -> Source:
    """A file of `write_gguf`, with the settings that it states."""
    import gguf

    reader = gguf.GGUFReader(path)
    tensors = {one.name: one for one in reader.tensors}
    keys = {"n_heads": "attention.head_count", "n_layers": "block_count", "context_length": "context_length"}
    settings = {name: reader.fields[f"gpt2.{key}"].contents() for name, key in keys.items()}
    shapes = {name: tuple(map(int, reversed(one.shape))) for name, one in tensors.items()}  # fastest first there
    read = lambda name: torch.from_numpy(tensors[name].data.reshape(shapes[name]).copy())  # noqa: E731
    return Source(str(path), GGUF, shapes, read, settings)
