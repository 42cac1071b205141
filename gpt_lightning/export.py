"""`export`: a checkpoint's weights in the formats of other programs, read back before it says that it is done.

python -m gpt_lightning export --ckpt_path CKPT --format FORMAT --output PATH

hf           a folder for GPT2LMHeadModel.from_pretrained and AutoTokenizer.from_pretrained
book         a folder with the book's model.pth and, of a last.ckpt, its model_and_optimizer.pth
safetensors  one file with this program's names
gguf         one file for llama.cpp; needs the extra gguf
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_lightning.archive import WEIGHTS_PREFIX, check_sums, read_checkpoint
from gpt_lightning.errors import PROGRAM, InputError, MachineError, Parser, describe_os_error, find_os_error
from gpt_lightning.layouts import BOOK, GGUF, HEAD, HUGGING_FACE, OURS, Layout, split_name
from gpt_lightning.model import ARCHITECTURE, GPT
from gpt_lightning.sources import SAFETENSORS, Source, open_source
from gpt_lightning.tokenizer import END_OF_TEXT, load_tokenizer, published_files
from gpt_lightning.weights import architecture_of, check_absent, convert, parameter_shapes

PROBE_TOKENS = 16
TOLERANCE = 1e-5  # of the largest logit
NORMAL, CONTROL, UNUSED = 1, 3, 5  # llama.cpp's kinds of tokens
MOMENTS = ("exp_avg", "exp_avg_sq")
OPTIMIZED = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds, the file being the memory of its tensors.

    Attributes:
        name: The checkpoint's file.
        architecture: The settings `model.*` that build its network.
        tokenizer: Its name.
        state: Our name -> weight.
        content: Everything.
    """

    name: str
    architecture: dict[str, Any]
    tokenizer: str
    state: dict[str, Tensor]
    content: dict[str, Any]


def open_checkpoint(name: str) -> Trained:
    """Reads a checkpoint of this program.

    Raises:
        InputError: See `archive.read_checkpoint`; or its weights are not those of its settings.
    """
    content = read_checkpoint(name)
    own = content["hyper_parameters"]
    state = {key.removeprefix(WEIGHTS_PREFIX): tensor for key, tensor in content["state_dict"].items()}
    layers = len({key.split(".")[1] for key in state if key.startswith("trf_blocks.")})
    if own.get("n_layers") != layers:  # before a network of any number of layers is built
        raise InputError(f"{name}: has weights of {layers} layers, its settings say {own.get('n_layers')}")
    architecture = {key: own.get(key) for key in ARCHITECTURE}
    try:
        shapes = parameter_shapes(architecture)
    except (InputError, TypeError) as error:
        raise InputError(f"{name}: {error}") from None
    for key in sorted(shapes.keys() | state.keys()):
        if key not in shapes or key not in state or tuple(state[key].shape) != shapes[key]:
            raise InputError(f"{name}: weights do not fit the model ({key})")
        if not torch.isfinite(state[key]).all():
            raise InputError(f"{name}: contains non-finite weights ({key})")
    tokenizer = str(content["datamodule_hyper_parameters"].get("tokenizer"))
    return Trained(name, architecture, tokenizer, state, content)


def probe_logits(state: dict[str, Tensor], architecture: dict[str, Any]) -> Tensor:
    """Logits (T, V) of up to 16 random token ids, always the same; the network gets no memory of its own."""
    with torch.device("meta"):
        model = GPT(**architecture).eval()
    model.load_state_dict({key: tensor.float() for key, tensor in state.items()}, assign=True)
    generator = torch.Generator().manual_seed(0)
    length = min(PROBE_TOKENS, architecture["context_length"])
    token_ids = torch.randint(architecture["vocab_size"], (1, length), generator=generator)
    with torch.no_grad():
        return model(token_ids)[0]


def tensors_of(trained: Trained, layout: Layout, *, head: bool, biases: bool) -> dict[str, Tensor]:
    """Their names -> views of the weights, in the order in which an optimizer of theirs numbers them.

    Args:
        trained: The model.
        layout: Whose names.
        head: Whether a tied head is stored too.
        biases: Whether query, key and value have biases in any case: 0 where the model has none.
    """
    return {name: tensor for name, _, tensor in _entries(trained, layout, trained.state, head, biases)}


def _entries(
    trained: Trained, layout: Layout, values: dict[str, Tensor], head: bool, biases: bool
) -> Iterator[tuple[str, str, Tensor]]:
    """Their name, our name and their part of our value, for each weight."""
    shapes = parameter_shapes(trained.architecture | {"qkv_bias": trained.architecture["qkv_bias"] or biases})
    if trained.architecture["tie_weights"] and not head:
        del shapes[HEAD]
    for _, group in itertools.groupby(shapes, key=lambda ours: split_name(ours)[:2]):
        kinds = list(group)  # the weight and the bias of one module
        for part in range(len(layout.names(kinds[0]))):
            for ours in kinds:
                value = values[ours] if ours in values else torch.zeros(shapes[ours])
                yield layout.names(ours)[part], ours, layout.to_theirs(ours, value)[part]


# ---- formats


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


def write_own(trained: Trained, path: Path) -> Iterator[str]:
    """Our names in one file, what builds the network in its metadata."""
    settings = json.dumps(trained.architecture | {"tokenizer": trained.tokenizer})
    tensors = tensors_of(trained, OURS, head=False, biases=False)
    write_safetensors(path, tensors, {"format": "pt", PROGRAM: settings})
    yield from ()


def write_hf(trained: Trained, folder: Path) -> Iterator[str]:
    """Weights, config.json and the tokenizer's files."""
    architecture = trained.architecture
    tensors = tensors_of(trained, HUGGING_FACE, head=False, biases=True)
    if not architecture["qkv_bias"]:
        yield "query, key and value get biases of 0: GPT-2's class has them"
    folder.mkdir()
    (head,) = HUGGING_FACE.names(HEAD)
    named = {name if name == head else f"transformer.{name}": tensor for name, tensor in tensors.items()}
    write_safetensors(folder / SAFETENSORS, named, {"format": "pt"})
    end = load_tokenizer(trained.tokenizer).encode(END_OF_TEXT)[0]
    rate = architecture["drop_rate"]
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": architecture["vocab_size"],
        "n_positions": architecture["context_length"],
        "n_embd": architecture["emb_dim"],
        "n_head": architecture["n_heads"],
        "n_layer": architecture["n_layers"],
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": rate,
        "embd_pdrop": rate,
        "attn_pdrop": rate,
        "tie_word_embeddings": architecture["tie_weights"],
        "bos_token_id": end,
        "eos_token_id": end,
        "dtype": "float32",
    }
    merges, encoder = published_files()
    tokenizer = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": architecture["context_length"],
        "add_prefix_space": False,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "vocab.json").write_bytes(encoder)
    (folder / "merges.txt").write_bytes(merges)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n")


def write_book(trained: Trained, folder: Path) -> Iterator[str]:
    """What the book's section 5.4 saves: the state dict, and one beside the optimizer's."""
    folder.mkdir()
    context_length = trained.architecture["context_length"]
    weights = tensors_of(trained, BOOK, head=True, biases=False)
    mask = torch.triu(torch.ones(context_length, context_length), diagonal=1)
    weights |= {f"trf_blocks.{i}.att.mask": mask for i in range(trained.architecture["n_layers"])}
    torch.save(weights, folder / "model.pth")
    reason = why_no_optimizer(trained)
    if reason is not None:
        yield f"model_and_optimizer.pth is left out: {reason}"
        return
    both = {"model_state_dict": weights, "optimizer_state_dict": book_optimizer(trained)}
    torch.save(both, folder / "model_and_optimizer.pth")
    check_sums(str(folder / "model_and_optimizer.pth"))


def why_no_optimizer(trained: Trained) -> str | None:
    """Why the book's AdamW cannot go on from a checkpoint's; None where it can."""
    states = trained.content.get("optimizer_states")
    if not states:
        return f"{trained.name} has no optimizer state (a run's last.ckpt has)"
    if trained.architecture["tie_weights"]:
        return "the head is tied to the token embedding, and the book's optimizer has moments for each"
    if len(states[0]["param_groups"]) != 1:
        return "model.decay_matrices_only makes two groups of weights, the book's optimizer has one"
    return None


def book_optimizer(trained: Trained) -> dict[str, Any]:
    """AdamW's state dict for the book's model: its numbers of weights, three projections for our one."""
    saved = trained.content["optimizer_states"][0]
    numbers = {name: number for number, name in enumerate(parameter_shapes(trained.architecture))}
    state: dict[int, dict[str, Tensor]] = {}
    for moment in MOMENTS:
        values = {name: saved["state"][number][moment] for name, number in numbers.items()}
        for number, (_, ours, value) in enumerate(_entries(trained, BOOK, values, head=True, biases=False)):
            state.setdefault(number, {"step": saved["state"][numbers[ours]]["step"].clone()})[moment] = value
    group = {name: value for name, value in saved["param_groups"][0].items() if name in OPTIMIZED}
    made = torch.optim.AdamW([torch.nn.Parameter(torch.empty(0)) for _ in state], **group)
    return {"state": state, "param_groups": made.state_dict()["param_groups"]}


def write_gguf(trained: Trained, path: Path) -> Iterator[str]:
    """Weights, vocabulary and merges in one file of llama.cpp."""
    import gguf

    architecture = trained.architecture
    merges, encoder = published_files()
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name(Path(trained.name).stem)
    writer.add_block_count(architecture["n_layers"])
    writer.add_context_length(architecture["context_length"])
    writer.add_embedding_length(architecture["emb_dim"])
    writer.add_feed_forward_length(4 * architecture["emb_dim"])
    writer.add_head_count(architecture["n_heads"])
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    tokens = [token for token, _ in sorted(json.loads(encoder).items(), key=lambda one: one[1])]
    end = tokens.index(END_OF_TEXT)
    kinds = [CONTROL if number == end else NORMAL for number in range(len(tokens))]
    padding = architecture["vocab_size"] - len(tokens)  # a model may have more ids than its tokenizer
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
    if not architecture["qkv_bias"]:
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


# ---- the command


@dataclass(frozen=True)
class Format:
    """How one format is written and read back.

    Attributes:
        write: Makes the file or folder; yields what there is to say.
        read: Opens it.
        suffix: That a file's name must end with; empty for a folder.
        has_vocabulary: Whether the tokenizer is part of it, which has to be GPT-2's then.
    """

    write: Callable[[Trained, Path], Iterator[str]]
    read: Callable[[Path], Source]
    suffix: str = ""
    has_vocabulary: bool = False


FORMATS = {
    "hf": Format(write_hf, lambda path: open_source(str(path)), has_vocabulary=True),
    "book": Format(write_book, lambda path: open_source(str(path / "model.pth"))),
    "safetensors": Format(write_own, lambda path: open_source(str(path)), ".safetensors"),
    "gguf": Format(write_gguf, open_gguf, ".gguf", has_vocabulary=True),
}


def check_format(name: str, trained: Trained, output: Path) -> None:
    """Raises `InputError` where a format cannot hold the model, needs an extra, or wants another name."""
    chosen = FORMATS[name]
    if chosen.suffix and output.suffix != chosen.suffix:
        raise InputError(f"--output ({output}) must end with {chosen.suffix}, because --format is {name}")
    if chosen.has_vocabulary and trained.tokenizer != "gpt2":
        raise InputError(
            f"{trained.name}: --format {name} holds the vocabulary of gpt2, and this model was trained on "
            f"{trained.tokenizer}; --format safetensors and --format book hold weights alone"
        )
    if name == "gguf":
        try:
            import gguf  # noqa: F401
        except ModuleNotFoundError:
            extra = "pip install -c constraints.txt -e '.[gguf]'"
            raise InputError(f"--format gguf needs the extra gguf: {extra}") from None


def export_weights(trained: Trained, name: str, output: Path) -> Iterator[str]:
    """Writes one format whole or not at all and yields lines that say what was done.

    Raises:
        InputError: The format cannot hold the model.
        MachineError: It cannot be written, or what is read back is not the model.
    """
    check_format(name, trained, output)
    expected = probe_logits(trained.state, trained.architecture)
    folder = output.with_name(f"{output.name}.tmp-{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        written = folder / output.name
        yield from FORMATS[name].write(trained, written)
        difference = read_back(lambda: FORMATS[name].read(written), trained, expected)
        check_absent(output)  # it took a while
        os.replace(written, output)
    except OSError as error:
        raise MachineError(f"{output}: {describe_os_error(error)[0]} while exporting") from None
    except RuntimeError as error:  # of torch.save, about a full disk
        if (cause := find_os_error(error)) is not None:
            raise MachineError(f"{output}: {describe_os_error(cause)[0]} while exporting") from None
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    files = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    yield f"{output}: {name}" + (f" ({', '.join(files)})" if files else "")
    yield f"read back: {len(expected)} tokens' logits differ by at most {difference:.1e}"


def read_back(read: Callable[[], Source], trained: Trained, expected: Tensor) -> float:
    """How far the logits of what was written are from those of the checkpoint, at most.

    Raises:
        MachineError: It is not the same model.
    """
    try:
        source = read()
        converted = convert(source, architecture_of(source, trained.architecture["n_heads"]))
    except InputError as error:
        raise MachineError(f"{error}, though it was just written") from None
    logits = probe_logits(converted.state, converted.architecture)
    largest = expected.abs().max().item()
    difference = (logits - expected).abs().max().item() if logits.shape == expected.shape else float("inf")
    if not difference <= TOLERANCE * max(largest, 1):
        raise MachineError(f"{source.name}: read back, its logits differ by {difference:.1e}; nothing is kept")
    return difference


def export(arguments: list[str]) -> None:
    """`export --ckpt_path CKPT --format hf|book|safetensors|gguf --output PATH`."""
    parser = Parser(f"python -m {PROGRAM} export", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--ckpt_path", required=True, metavar="CKPT", help="checkpoint to use")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, type=Path, metavar="PATH", help="file or folder to write")
    typed = parser.parse_args(arguments)
    check_absent(typed.output)
    for line in export_weights(open_checkpoint(typed.ckpt_path), typed.format, typed.output):
        print(line, flush=True)
