"""Write weights in other programs' formats, without a second copy of them in memory."""

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

from gpt_lightning.checkpoints.conversion.key_maps import BOOK, GGUF, HEAD, HUGGING_FACE, OURS, KeyMap, split_name
from gpt_lightning.checkpoints.conversion.readers import BOOK_NOTE, SAFETENSORS, WeightReader
from gpt_lightning.checkpoints.io import verify_checksums
from gpt_lightning.checkpoints.loading import LoadedCheckpoint
from gpt_lightning.console import PROGRAM
from gpt_lightning.data.tokenizer import END_OF_TEXT, load_tokenizer, published_files
from gpt_lightning.models.gpt import parameter_shapes

NORMAL, CONTROL, UNUSED = 1, 3, 5  # llama.cpp's token types
MOMENTS = ("exp_avg", "exp_avg_sq")
OPTIMIZED = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")


def tensors_of(checkpoint: LoadedCheckpoint, key_map: KeyMap, *, head: bool, biases: bool) -> dict[str, Tensor]:
    """Return views of the weights under another program's names, in the order of its parameters.

    Args:
        checkpoint: The model.
        key_map: Names and shapes of that program.
        head: Whether to include a tied head.
        biases: Whether to add zero biases of query, key and value if the model has none.
    """
    return {name: tensor for name, _, tensor in _entries(checkpoint, key_map, checkpoint.state, head, biases)}


def _entries(
    checkpoint: LoadedCheckpoint, key_map: KeyMap, values: dict[str, Tensor], head: bool, biases: bool
) -> Iterator[tuple[str, str, Tensor]]:
    """Yield their name, our name and a view in their shape for each of their weights."""
    shapes = parameter_shapes(replace(checkpoint.config, qkv_bias=checkpoint.config.qkv_bias or biases))
    if checkpoint.config.tie_weights and not head:
        del shapes[HEAD]
    for _, group in itertools.groupby(shapes, key=lambda ours: split_name(ours)[:2]):
        kinds = list(group)  # the weight and the bias of one module
        for part in range(len(key_map.names(kinds[0]))):
            for ours in kinds:
                value = values[ours] if ours in values else torch.zeros(shapes[ours])
                yield key_map.names(ours)[part], ours, key_map.to_theirs(ours, value)[part]


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file one tensor at a time; the library would need contiguous copies of all at once."""
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


def write_own(checkpoint: LoadedCheckpoint, path: Path) -> Iterator[str]:
    """Write a safetensors file with our names and the architecture in its metadata."""
    settings = json.dumps(asdict(checkpoint.config) | {"tokenizer": checkpoint.tokenizer})
    tensors = tensors_of(checkpoint, OURS, head=False, biases=False)
    write_safetensors(path, tensors, {"format": "pt", PROGRAM: settings})
    yield from ()


def write_hf(checkpoint: LoadedCheckpoint, folder: Path) -> Iterator[str]:
    """Write a folder that transformers loads: weights, config.json and the tokenizer's files."""
    gpt = checkpoint.config
    tensors = tensors_of(checkpoint, HUGGING_FACE, head=False, biases=True)
    if not gpt.qkv_bias:
        yield "query, key and value get zero biases, because GPT-2's class has biases"
    folder.mkdir()
    (head,) = HUGGING_FACE.names(HEAD)
    named = {name if name == head else f"transformer.{name}": tensor for name, tensor in tensors.items()}
    write_safetensors(folder / SAFETENSORS, named, {"format": "pt"})
    end = load_tokenizer(checkpoint.tokenizer).encode(END_OF_TEXT)[0]
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{theirs: getattr(gpt, ours) for ours, theirs in HUGGING_FACE.settings.items()},
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "embd_pdrop": gpt.drop_rate,
        "attn_pdrop": gpt.drop_rate,
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
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="ascii")
    (folder / "vocab.json").write_bytes(encoder)
    (folder / "merges.txt").write_bytes(merges)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n", encoding="ascii")


def write_book(checkpoint: LoadedCheckpoint, folder: Path) -> Iterator[str]:
    """Write the two files of section 5.4 of the book, without and with the optimizer, and a note for `import`."""
    folder.mkdir()
    context_length = checkpoint.config.context_length
    weights = tensors_of(checkpoint, BOOK, head=True, biases=False)
    mask = torch.triu(torch.ones(context_length, context_length), diagonal=1)
    weights |= {f"trf_blocks.{i}.att.mask": mask for i in range(checkpoint.config.n_layers)}
    torch.save(weights, folder / "model.pth")
    note = {"n_heads": checkpoint.config.n_heads, "tokenizer": checkpoint.tokenizer}  # which the weights do not say
    (folder / BOOK_NOTE).write_text(json.dumps(note) + "\n", encoding="ascii")
    reason = why_no_optimizer(checkpoint)
    if reason is not None:
        yield f"model_and_optimizer.pth is not written: {reason}"
        return
    both = {"model_state_dict": weights, "optimizer_state_dict": book_optimizer(checkpoint)}
    torch.save(both, folder / "model_and_optimizer.pth")
    verify_checksums(str(folder / "model_and_optimizer.pth"), "a file of torch.save")


def why_no_optimizer(checkpoint: LoadedCheckpoint) -> str | None:
    """Return why the book's AdamW cannot resume from a checkpoint, or None if it can."""
    states = checkpoint.content.get("optimizer_states")
    if not states:
        return f"{checkpoint.name} has no optimizer state (a run's last.ckpt has)"
    if checkpoint.config.tie_weights:
        return "the head is tied to the token embedding, but the book's optimizer has separate moments for both"
    if checkpoint.content["hyper_parameters"].get("optimizer") == "muon":
        return "model.optimizer is muon, but the book's optimizer is AdamW"
    if len(states[0]["param_groups"]) != 1:
        return "model.decay_matrices_only makes two parameter groups, but the book's optimizer has one"
    return None


def book_optimizer(checkpoint: LoadedCheckpoint) -> dict[str, Any]:
    """Return AdamW's state dict for the book's model, which has separate projections for query, key and value."""
    saved = checkpoint.content["optimizer_states"][0]
    numbers = {name: number for number, name in enumerate(parameter_shapes(checkpoint.config))}
    state: dict[int, dict[str, Tensor]] = {}
    for moment in MOMENTS:
        values = {name: saved["state"][number][moment] for name, number in numbers.items()}
        for number, (_, ours, value) in enumerate(_entries(checkpoint, BOOK, values, head=True, biases=False)):
            state.setdefault(number, {"step": saved["state"][numbers[ours]]["step"].clone()})[moment] = value
    group = {name: value for name, value in saved["param_groups"][0].items() if name in OPTIMIZED}
    made = torch.optim.AdamW([torch.nn.Parameter(torch.empty(0)) for _ in state], **group)
    return {"state": state, "param_groups": made.state_dict()["param_groups"]}


def write_gguf(checkpoint: LoadedCheckpoint, path: Path) -> Iterator[str]:
    """Write one file for llama.cpp: weights, vocabulary and merges."""
    import gguf

    gpt = checkpoint.config
    merges, encoder = published_files()
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name(Path(checkpoint.name).stem)
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
    padding = gpt.vocab_size - len(tokens)  # model.vocab_size may exceed the tokenizer's
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + [f"[PAD{number}]" for number in range(padding)])
    writer.add_token_types(kinds + [UNUSED] * padding)
    writer.add_token_merges(merges.decode().splitlines()[1:])  # the first line is a version
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    for name, tensor in tensors_of(checkpoint, GGUF, head=False, biases=True).items():
        writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if not gpt.qkv_bias:
        yield "query, key and value get zero biases, because llama.cpp's GPT-2 has biases"


def open_gguf(path: Path) -> WeightReader:
    """Open a file that `write_gguf` wrote."""
    import gguf

    reader = gguf.GGUFReader(path)
    tensors = {one.name: one for one in reader.tensors}
    settings = {name: reader.fields[f"gpt2.{key}"].contents() for name, key in GGUF.settings.items()}
    shapes = {name: tuple(map(int, reversed(one.shape))) for name, one in tensors.items()}  # GGUF: fastest first
    read = lambda name: torch.from_numpy(tensors[name].data.reshape(shapes[name]).copy())  # noqa: E731
    return WeightReader(str(path), GGUF, shapes, read, settings)
