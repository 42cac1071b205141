"""Every bad input is reported in one line with the right exit code.

One row per situation: its number, the command, the exit code, a part of the one line, and the preparation: `files` in
the current folder, or `situation`, a function. FIT, RESUME, PREDICT and VALIDATE abbreviate commands, see `SHORT`. Rows
with a letter are variants of the row with that number; rows without a number are single cases.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, STORY, Result

from gpt_lightning.data.shard_writer import write_shards
from gpt_lightning.training.module import GPTModule

Command = Callable[..., Result]
Patch = pytest.MonkeyPatch
ERROR, WARNING = "gpt_lightning: error: ", "gpt_lightning: warning: "
SHORT = {
    "FIT": "fit --config tiny.yaml --trainer.enable_progress_bar=false",
    "RESUME": "fit --config tiny.yaml --trainer.enable_progress_bar=false --trainer.max_epochs=4 --run_dir=run --resume",
    "PREDICT": "predict --ckpt_path last.ckpt",
    "VALIDATE": "validate --ckpt_path last.ckpt",
}
# Words of Python and jsonargparse that must not reach the user.
LEFT_OVER = re.compile(
    r"<class |NoneType|typing\.|Union\[|Optional\[|Traceback|Parser key|Namespace\(|<function| object at 0x"
    r"|\\[wds]|\(\?"
)

# ---- situations: files


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """Return a function that changes the content of a checkpoint, given as bytes."""

    def save(data: bytes) -> bytes:
        content = torch.load(io.BytesIO(data), weights_only=True)
        change(content)
        torch.save(content, file := io.BytesIO())
        return file.getvalue()

    return save


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def with_a_flipped_bit(data: bytes) -> bytes:
    """Flip a bit of the largest tensor."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start = max(archive.infolist(), key=lambda one: one.file_size).header_offset
    name, extra = struct.unpack_from("<HH", data, start + 26)
    position = start + 30 + name + extra + 5
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def with_code(_: bytes) -> bytes:
    torch.save({"state_dict": Bomb()}, file := io.BytesIO())
    return file.getvalue()


def set_in(path: str, value: Any) -> Callable[[bytes], bytes]:
    """Return a function that sets a value of a checkpoint at a path such as a/b."""

    def change(content: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for parent in parents:
            content = content[parent]
        content[last] = value

    return changed(change)


with_nan = changed(lambda content: content["state_dict"]["model.final_norm.bias"].fill_(torch.nan))
without_optimizer = changed(lambda content: content.pop("optimizer_states"))


# ---- situations: folders, the machine, the network, the training


def run(trained: Path, _: Patch) -> None:
    """Copy the trained run, with a prev.ckpt."""
    shutil.copytree(trained, "run")
    shutil.copy("run/checkpoints/last.ckpt", "run/checkpoints/prev.ckpt")


def run_with(last: Callable[[bytes], bytes], *, prev: Callable[[bytes], bytes] = bytes) -> Callable[..., None]:
    """Copy the trained run and damage its checkpoints."""

    def make(trained: Path, patch: Patch) -> None:
        run(trained, patch)
        for path, damage in ((Path("run/checkpoints/last.ckpt"), last), (Path("run/checkpoints/prev.ckpt"), prev)):
            path.write_bytes(damage(path.read_bytes()))

    return make


def run_in_use(trained: Path, patch: Patch) -> None:
    run(trained, patch)
    Path("run/.lock").write_text("4711")

    def locked(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    patch.setattr(fcntl, "flock", locked)


def a_run_folder(*_: object) -> None:
    Path("run/checkpoints").mkdir(parents=True)


def hf_folder(*_: object) -> None:
    Path("hf").mkdir()
    Path("hf/config.json").write_text("{}")


def huge(*_: object) -> None:
    with open("huge.txt", "wb") as file:
        file.truncate(3 * 1024**3)


def pipe(*_: object) -> None:
    os.mkfifo("pipe")


def denied(name: str) -> Callable[..., None]:
    """Deny access to a file or folder; file modes would not stop tests that run as root."""

    def make(_: Path, patch: Patch) -> None:
        def denying(call: Callable[..., Any]) -> Callable[..., Any]:
            def deny(path: Any, *arguments: Any, **options: Any) -> Any:
                if isinstance(path, (str, os.PathLike)) and Path(path).absolute().is_relative_to(Path(name).absolute()):
                    raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
                return call(path, *arguments, **options)

            return deny

        patch.setattr("builtins.open", denying(open))
        patch.setattr(io, "open", denying(io.open))
        patch.setattr(os, "open", denying(os.open))
        patch.setattr(os, "mkdir", denying(os.mkdir))

    return make


def full_disk(_: Path, patch: Patch) -> None:
    free = shutil.disk_usage(".")._replace(free=1000)
    patch.setattr(shutil, "disk_usage", lambda _: free)


def disk_that_fills_up(_: Path, patch: Patch) -> None:
    """Fill the disk after the first checkpoint."""
    sync = os.fsync

    def fsync(file: int) -> None:
        if "last.ckpt.tmp" in os.readlink(f"/proc/self/fd/{file}") and Path("run/checkpoints/last.ckpt").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    patch.setattr(os, "fsync", fsync)


def offline(_: Path, patch: Patch) -> None:
    Path("cache").mkdir()
    patch.setenv("TIKTOKEN_CACHE_DIR", "cache")
    for variable, value in (("HTTPS_PROXY", "http://127.0.0.1:1"), ("NO_PROXY", ""), ("no_proxy", "")):
        patch.setenv(variable, value)


def offline_with_a_damaged_vocabulary(trained: Path, patch: Patch) -> None:
    offline(trained, patch)
    url = "https://openaipublic.blob.core.windows.net/encodings/p50k_base.tiktoken"
    Path("cache", hashlib.sha1(url.encode()).hexdigest()).write_bytes(b"IQ== 0\n")
    remove = os.remove
    patch.setattr(
        os, "remove", lambda path: None if "cache" in str(path) else remove(path)
    )  # keeps the damaged file, which tiktoken would delete


def another_download(_: Path, patch: Patch) -> None:
    class Answer(io.BytesIO):
        headers = Message()

    patch.setattr(urllib.request, "urlopen", lambda *_, **__: Answer(b"<html>not found</html>"))


def shards(change: Callable[[dict[str, Any]], object] = dict, *, without: str = "") -> Callable[..., None]:
    """Return a situation: a folder with shards whose index was changed, or that lacks some files."""

    def situation(*_: object) -> None:
        Path("docs.jsonl").write_text("".join(json.dumps({"text": TEXT}) + "\n" for _ in range(40)))
        settings = {"tokenizer_name": "bytes", "clean": None, "seed": 1, "shard_tokens": 1 << 24}
        list(write_shards("docs.jsonl", "shards", cache_dir=Path("shards-cache"), **settings))
        index = json.loads(Path("shards/index.json").read_text())
        change(index)
        Path("shards/index.json").write_text(json.dumps(index))
        for path in Path("shards").glob(without) if without else ():
            path.unlink()

    return situation


def no_memory(_: Path, patch: Patch) -> None:
    patch.setattr(GPTModule, "training_step", lambda *_: torch.empty(10**18, dtype=torch.int8))


def stopped_by(number: int) -> Callable[..., None]:
    """Raise a signal in the second step."""

    def make(_: Path, patch: Patch) -> None:
        step = GPTModule.training_step

        def training_step(self: GPTModule, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 1:
                signal.raise_signal(number)
            return step(self, batch, batch_idx)

        patch.setattr(GPTModule, "training_step", training_step)

    return make


def own_module(_: Path, patch: Patch) -> None:
    Path("evilmod.py").write_text("import os\nos.mkdir('ran')\nclass X: ...\n")
    patch.syspath_prepend(str(Path.cwd()))


def no_input(_: Path, patch: Patch) -> None:
    patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))


# ---- the table


@dataclass(frozen=True)
class Row:
    """A bad input and the expected report.

    Attributes:
        number: Number of the situation.
        line: The command.
        code: The exit code.
        words: Part of the one line on stderr, which is a warning if the code is 0; empty if stderr must be empty.
        files: Name -> content of files in the current folder; a function gets the bytes of a trained checkpoint.
        situation: Called with the trained run's folder and pytest's monkeypatch, in the current folder.
        leaves: Names that the command may create in the current folder.
    """

    number: str
    line: str
    code: int
    words: str
    files: dict[str, str | bytes | Callable[[bytes], bytes]] = field(default_factory=dict)
    situation: Callable[[Path, Patch], None] | None = None
    leaves: tuple[str, ...] = ()

    def __str__(self) -> str:
        contents = [one[:40] for one in self.files.values() if isinstance(one, str)]
        return " ".join([self.number, self.line[:100], *map(repr, contents)])


def bad_yaml(number: str, content: str | bytes, words: str) -> Row:
    """Return a row with an invalid second config file."""
    return Row(number, "FIT --config bad.yaml", 2, words, {"bad.yaml": content})


def bad_text(number: str, content: str | bytes, words: str, code: int = 2) -> Row:
    """Return a row with an invalid text."""
    return Row(number, "VALIDATE --data.text=a.txt", code, words, {"a.txt": content})


def bad_class(number: str, setting: str, value: str, words: str) -> Row:
    """Return a row with a class of Lightning that does not exist or cannot be used."""
    return Row(number, f"FIT --trainer.{setting}={shlex.quote(value)}", 2, words)


TEXT = "".join(f"The lamp was lit {i} times. " for i in range(100))
LAUGH = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9) if i else 'lol'}]\n" for i in range(9))
# Number of weights of a billion blocks of width 16, without biases of query, key and value.
WEIGHTS = 257 * 16 * 2 + 64 * 16 + 10**9 * (12 * 256 + 10 * 16) + 2 * 16
COMMANDS = "expected one of fit, check, prepare, validate, test, evaluate, predict, verify-resume, import, export, configs, plot, report, explain, info, inspect"

# fmt: off
SHARDS = [
    Row("s1", "prepare --output=new", 2, "the following arguments are required: --text"),
    Row("s2", "prepare --text=a.txt --output=new", 2, "a.txt: no such file"),
    Row("s3", "prepare --text=a.txt --output=https://a.b/c", 2, "https://a.b/c: can only be read; name an s3://, gs:// or az:// address or a folder"),
    Row("s4", "prepare --text=a.txt --output=ftp://a.b/c", 2, "ftp://a.b/c: must begin with s3://, gs://, az://, http://, https://, or be a folder"),
    Row("s5", "prepare --text=a.txt --output=s3://key:secret@a/b", 2, "s3://a/b: must have no credentials and no query; set them in the environment"),
    Row("s5a", "prepare --text=a.txt --output=s3:/a/b", 2, "s3:/a/b: must begin with s3://, gs://, az://, http://, https://, or be a folder"),
    Row("s6", "prepare --text=a.txt --output=s3://", 2, "s3://: must name a bucket, as in s3://BUCKET/PREFIX"),
    Row("s7", "prepare --text=a.txt --output=new --shard_tokens=0", 2, "--shard_tokens must be an int of at least 1000, got 0"),
    Row("s8", "prepare --text=a.txt --output=new --seed=-1", 2, "--seed must be an int of at least 0, got -1"),
    Row("s9", "prepare --text=a.txt --output=new --clean=all", 2, "--clean must be remove_empty_lines, got 'all'"),
    Row("s10", "prepare --text=a.txt --output=.", 2, ".: the folder has other files; name an empty one", {"a.txt": TEXT}),
    Row("s11", "prepare --text=hf:a/b/c --output=new", 2, "hf:a/b/c: --text must be a file, a folder or a glob"),
    Row("s12", "prepare --text=docs.jsonl --output=shards --tokenizer=bytes --seed=2", 2, "shards: holds shards of another text or with other settings; choose another prefix", situation=shards(), leaves=("data", "shards")),
    Row("s13", "prepare --text=a.txt --output=last.ckpt", 2, "last.ckpt: not a folder"),
    Row("s14", "FIT --data.text=shards", 2, "shards/index.json: is not an index of token shards", situation=shards(lambda index: index.pop("seed"))),
    Row("s14a", "FIT --data.text=shards", 2, "shards/index.json: is not an index of token shards", situation=shards(lambda index: index.update(documents="many"))),
    Row("s14b", "FIT --data.text=shards", 2, "shards/index.json: is not an index of token shards", situation=shards(lambda index: index.update(dtype="uint32"))),
    Row("s14c", "FIT --data.text=shards", 2, "shards/index.json: is not an index of token shards", situation=shards(lambda index: index["shards"][0].update(name="../../etc/passwd"))),
    Row("s14d", "FIT --data.text=shards", 2, "shards/index.json: is not an index of token shards", situation=shards(lambda index: index["shards"].append(index["shards"][0]))),
    Row("s14e", "FIT --data.text=shards", 2, "shards/index.json: has a wrong number of tokens for 00000-", situation=shards(lambda index: index["shards"][0].update(tokens=index["shards"][0]["tokens"] + 1)), leaves=("data",)),
    Row("s15", "FIT --data.text=shards", 2, "shards/index.json: has version 2, expected 1; prepare the text again", situation=shards(lambda index: index.update(format=2))),
    Row("s16", "FIT --data.text=shards --data.tokenizer=gpt2", 2, "shards: has tokens of tokenizer bytes, but data.tokenizer is gpt2", situation=shards()),
    Row("s17", "FIT --data.text=shards --data.clean=remove_empty_lines", 2, "shards: was prepared with clean null, but data.clean is remove_empty_lines", situation=shards()),
    Row("s18", "FIT --data.text=shards --data.cache_gigabytes=0", 2, "data.cache_gigabytes must be above 0, got 0", situation=shards()),
    Row("s19", "FIT --data.text=shards", 1, ".tokens: the shard is missing", situation=shards(without="00000-*"), leaves=("data",)),
    Row("s20", "FIT --data.text=s3://key:secret@a/b", 2, "s3://a/b: must have no credentials and no query; set them in the environment"),
    Row("s21", "FIT --data.text=https://a.b/c.txt", 2, "https://a.b/c.txt: data.text must be a file; give the address as data.url and a file name as data.text"),
    Row("s22", "FIT --data.text=http://127.0.0.1:1/c", 1, "http://127.0.0.1:1/c/index.json: cannot be read (connection refused)"),
]
CONFIG_FILES = [
    Row("1", "fit --config configs/x.yaml", 2, "configs/x.yaml: no such file"),
    Row("1a", "fit --config .", 2, ".: is a directory"),
    Row("1b", f"fit --config {'x' * 300}", 1, "x: file name too long"),
    Row("1c", "fit --config pipe", 2, "pipe: must be a regular file", situation=pipe),
    Row("1d", "fit", 2, "data.text is missing; name a text file, or use a config that names one"),
    bad_yaml("3", "a: 1\nb: 2\nc: [1, }\n", "bad.yaml:3: not valid YAML: "),
    bad_yaml("3a", b"a: \xff", "bad.yaml: not UTF-8 text (byte 0xff at offset 3)"),
    bad_yaml("3b", "seed_everything: 2024-13-45\n", "bad.yaml: not valid YAML: month must be in 1..12"),
    bad_yaml("3c", "model: {n_layers: 2, n_layers: 3}\n", "bad.yaml:1: not valid YAML: key 'n_layers' occurs twice"),
    bad_yaml("3d", "? [a]\n: 3\n", "bad.yaml:1: not valid YAML: a name must be a plain word"),
    bad_yaml("3e", "model: {<<: {n_layers: 1}}\n", "bad.yaml:1: not valid YAML: a name must be a plain word"),
    bad_yaml("3f", "a: {null: 2}\n", "bad.yaml:1: not valid YAML: a name must be a plain word"),
    bad_yaml("3g", "1: 2\n", "bad.yaml: a name must be a plain word, not 1"),
    bad_yaml("3h", "model: !!python/object/apply:os.getcwd []\n", "bad.yaml:1: not valid YAML: could not determine a "),
    bad_yaml("3i", "prompt: !text abc\n", "could not determine a constructor for the tag '!text'"),
    bad_yaml("3j", 'prompt: "\\ud800"\n', "bad.yaml:1: not valid YAML: a lone surrogate"),
    bad_yaml("3k", "a: &x [*x]\n", "bad.yaml:1: not valid YAML: an alias refers to a value that contains it"),
    bad_yaml("4", "", "bad.yaml: is empty"),
    bad_yaml("4a", "# nothing\n", "bad.yaml: is empty"),
    bad_yaml("4b", "- 1\n", "bad.yaml: must contain settings (name: value), not a list"),
    bad_yaml("4c", "model: 3\n", "bad.yaml: model must contain settings (name: value), got 3"),
    bad_yaml("7", "a: " + "x" * 1_000_000, "bad.yaml: too large for a config"),
    bad_yaml("7a", LAUGH, "bad.yaml: too large for a config"),
    bad_yaml("7b", "[" * 5000, "bad.yaml: nested too deeply for a config"),
    bad_yaml("9", "modle: {n_layers: 2}\n", "unknown setting 'modle.n_layers'; did you mean 'model.n_layers'?"),
    bad_yaml("9a", "__path__: x\n", "bad.yaml: unknown setting '__path__'"),
    bad_yaml("10", "model: {n_layer: 2}\n", "unknown setting 'model.n_layer'; did you mean 'model.n_layers'?"),
    bad_yaml("10a", "model: {block_size: 64}\n", "unknown setting 'model.block_size'; did you mean 'model.context_length'?"),
    bad_yaml("10b", "dropout: 0.1\n", "unknown setting 'dropout'; did you mean 'model.drop_rate'?"),
    bad_yaml("10c", "optimizer: {lr: 0.1}\n", "unknown setting 'optimizer.lr'; did you mean 'model.learning_rate'?"),
    bad_yaml("11", "model: {n_layers: two}\n", "model.n_layers must be an int, not 'two'"),
    bad_yaml("11i", "model: {n_layers: 3.5}\n", "model.n_layers must be an int, not 3.5"),
    bad_yaml("11j", "model: {n_layers: [1, null, x]}\n", "model.n_layers must be an int, not [1, null, x]"),
    bad_yaml("11k", "model: {tie_weights: 3}\n", "model.tie_weights must be true or false, not 3"),
    bad_yaml("11a", "evaluate_every: null\n", "evaluate_every must be an int, not null"),
    bad_yaml("11b", "trainer: {max_steps: null}\n", "trainer.max_steps must be an int, not null"),
    bad_yaml("11c", "model: {min_learning_rate: None}\n", "model.min_learning_rate must be a number or null, not 'None'"),
    bad_yaml("11d", "sampling: {stop_strings: null}\n", "sampling.stop_strings must be a list of texts, not null; put each text in quotes"),
    bad_yaml("11e", "model: {tie_weights:}\n", "model.tie_weights must be true or false, not null"),
    bad_yaml("11f", "prompt: [[1, 2]]\n", "prompt must be a list of texts, not [1, 2]; put each text in quotes"),
    bad_yaml("11g", "prompt: {a: 1}\n", "prompt must be a list of texts, not {a: 1}; put each text in quotes"),
    bad_yaml("", "expected: {sha256: b41e}\n", "expected.sha256 must be 64 hexadecimal digits, got 'b41e'"),
    bad_yaml("", f"expected: {{sha256: {'a' * 64}}}\n", "expected.steps must be an int of at least 1, got None"),
    bad_yaml("", f"expected: {{best_val_loss: [6, 5], sha256: {'a' * 64}, steps: 9, parameters: 9}}\n", "expected.best_val_loss must be the lowest and the highest value, got [6.0, 5.0]"),
    bad_yaml("", f"expected: {{best_val_loss: [.nan, 5], sha256: {'a' * 64}, steps: 9, parameters: 9}}\n", "expected.best_val_loss must be the lowest and the highest value, got [nan, 5.0]"),
    bad_yaml("", "expected: {best_val_loss: 6}\n", "expected.best_val_loss must be a list or null, not 6"),
    bad_yaml("", "expected: {val_loss: 6}\n", "unknown setting 'expected.val_loss'; did you mean 'expected.best_val_loss'?"),
    bad_yaml("24", "data: {context_length: 16}\n", "bad.yaml: data.context_length cannot be set; set model.context_length instead"),
    bad_yaml("24a", "data: {seed: 7}\n", "bad.yaml: data.seed cannot be set; set seed_everything instead"),
    bad_yaml("24b", "data: {evaluate_batches: 7}\n", "bad.yaml: data.evaluate_batches cannot be set; set evaluate_batches instead"),
    bad_yaml("", "resume: true\n", "bad.yaml: resume is given on the command line only (--resume)"),
    bad_yaml("", "run_dir: here\n", "bad.yaml: run_dir is given on the command line only (--run_dir)"),
]

SETTINGS = [
    Row("9", "FIT --modle.n_layers=2", 2, "unknown setting 'modle.n_layers'; did you mean 'model.n_layers'?"),
    Row("9b", "FIT --foo", 2, "unknown setting 'foo'"),
    Row("9c", "FIT foo", 2, "unexpected argument 'foo'; options begin with --"),
    Row("10", "FIT --model.n_layer=2", 2, "unknown setting 'model.n_layer'; did you mean 'model.n_layers'?"),
    Row("11", "FIT --model.n_layers=two", 2, "model.n_layers must be an int, not 'two'"),
    Row("11h", "FIT --model=null", 2, "model must be settings (--model.NAME VALUE), not null"),
    Row("13", "FIT --model.n_layers=0", 2, "model.n_layers must be an int of at least 1, got 0"),
    Row("13a", "FIT --model.n_layers=-1", 2, "model.n_layers must be an int of at least 1, got -1"),
    Row("14", "FIT --model.emb_dim=15", 2, "model.emb_dim (15) must be divisible by model.n_heads (2)"),
    Row("16", "FIT --model.vocab_size=0", 2, "model.vocab_size must be an int of at least 1, got 0"),
    Row("16a", "FIT --model.vocab_size=true", 2, "model.vocab_size must be an int or null, not true"),
    Row("17", "FIT --model.vocab_size=100", 2, "model.vocab_size (100) is smaller than the tokenizer's 257"),
    Row("19", "FIT --model.learning_rate=-0.1", 2, "model.learning_rate must be a finite number above 0, got -0.1"),
    Row("20", "FIT --model.learning_rate=fast", 2, "model.learning_rate must be a number, not 'fast'"),
    Row("20a", "FIT --model.learning_rate=nan", 2, "model.learning_rate must be a number, not 'nan'"),
    bad_yaml("20b", "model: {learning_rate: .nan}\n", "model.learning_rate must be a finite number above 0, got nan"),
    bad_yaml("20c", "model: {learning_rate: .inf}\n", "model.learning_rate must be a finite number above 0, got inf"),
    Row("20d", f"FIT --model.weight_decay=1{400 * '0'}", 2, "int too large to convert to float"),
    Row("", "FIT --model.optimizer=sgd", 2, "model.optimizer must be one of adamw, muon, got 'sgd'"),
    Row("", "FIT --model.optimizer=muon --trainer.strategy=fsdp", 2, "model.optimizer: muon needs whole matrices, which"),
    Row("", "FIT --trainer.strategy=fsdp --trainer.callbacks=EMAWeightAveraging", 2, "trainer.callbacks: EMAWeightAveraging needs whole weights, which trainer.strategy fsdp splits; use ddp"),
    Row("", "FIT --trainer.strategy=fsdp --trainer.precision=64-true", 2, "trainer.precision 64-true does not work with fsdp; use bf16-mixed or 32-true"),
    Row("", "FIT --trainer.strategy=fsdp_cpu_offload", 2, "trainer.strategy must be one of auto, ddp, fsdp, got"),
    Row("", "FIT --data.global_batch_size=0", 2, "data.global_batch_size must be an int of at least 1"),
    Row("", "FIT --data.global_batch_size=57", 2, "data.global_batch_size (57) must be a multiple of data.batch_size (56) times the number of processes (1)"),
    Row("", "FIT --data.global_batch_size=56000", 2, "data.global_batch_size (56000) exceeds the"),
    Row("", "FIT --data.global_batch_size=112 --trainer.accumulate_grad_batches=2", 2, "data.global_batch_size (112) sets the number of accumulated batches; leave trainer.accumulate_grad_batches out"),
    Row("", "FIT --data.global_batch_size=112 --trainer.limit_train_batches=0.5", 2, "trainer.limit_train_batches (0.5) must be an int if data.global_batch_size is set"),
    Row("", "FIT --process_timeout=0", 2, "process_timeout must be above 0"),
    Row("", "FIT --model.beta2=1", 2, "model.beta2 must be at least 0 and below 1, got 1.0"),
    Row("", "FIT --model.decay_steps=5", 2, "model.decay_steps (5) needs model.min_learning_rate"),
    Row("", "FIT --model.sampled_softmax=0", 2, "model.sampled_softmax must be an int of at least 1, got 0"),
    Row("22", "FIT --model.warmup_steps=500", 2, "model.warmup_steps (500) must be below the run's 15 steps"),
    Row("24", "FIT --data.context_length=16", 2, '"data.context_length" must be given via "model.context_length".'),
    Row("26", "FIT --model.context_length=99999", 2, "the training split has 18,413 tokens, but one window needs 100,000: model.context_length (99999) and"),
    Row("27", "FIT --model.context_length=8192", 2, "the validation split has 2,046 tokens, but one window needs 8,193"),
    Row("28", "FIT --data.batch_size=0", 2, "data.batch_size must be an int of at least 1, got 0"),
    Row("28a", "FIT --data.batch_size=-2", 2, "data.batch_size must be an int of at least 1, got -2"),
    Row("29", "FIT --data.batch_size=500", 2, "data.batch_size (500) exceeds the 287 training windows"),
    Row("30", "FIT --data.train_ratio=1.0", 2, "data.train_ratio must be between 0 and 1, got 1.0"),
    Row("30a", "FIT --data.train_ratio=0", 2, "data.train_ratio must be between 0 and 1, got 0"),
    Row("30b", "FIT --data.train_ratio=2", 2, "data.train_ratio must be between 0 and 1, got 2.0"),
    Row("30c", "FIT --data.val_text=tiny.yaml --data.train_ratio=0.5", 2, "data.train_ratio has no effect with data.val_text; set only"),
    Row("32", "FIT --data.num_workers=-1", 2, "data.num_workers must be an int from 0 to 16, got -1"),
    Row("32a", "FIT --data.num_workers=10000", 2, "data.num_workers must be an int from 0 to 16, got 10000"),
    Row("", "FIT --data.tokenizer=gpt5", 2, "data.tokenizer must be one of bytes, gpt2,"),
    Row("", "FIT --seed_everything=-1", 2, "seed_everything must be an int from 0 to 4294967295, got -1"),
    Row("", "FIT --seed_everything=true", 2, "seed_everything must be an int, not true"),
    Row("", "FIT --evaluate_every=0", 2, "evaluate_every must be an int of at least 1, got 0"),
    Row("", "FIT --save_every=0", 2, "save_every must be an int of at least 1, got 0"),
    Row("", "FIT --run_dir=", 2, "--run_dir is empty; give a folder"),
]

TRAINER = [
    Row("33", "FIT --trainer.max_epochs=0", 2, "trainer.max_epochs must be an int of at least 1, got 0"),
    Row("34", "FIT --trainer.max_epochs=-5", 2, "trainer.max_epochs must be an int of at least 1, got -5"),
    Row("34a", "FIT --trainer.max_epochs=-1", 2, "the run would never end; set trainer.max_epochs, trainer.max_steps or"),
    Row("34b", "FIT --trainer.max_time=abc", 2, "trainer.max_time must be a duration as DD:HH:MM:SS, got 'abc'"),
    Row("34e", "FIT --run_dir=run --trainer.max_time=00:00:00:00", 2, "nothing was trained, because trainer.max_time or a callback ended the run", leaves=("run",)),
    Row("34c", "FIT --trainer.max_epoch=3", 2, "unknown setting 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
    Row("34d", "FIT --trainer.min_epochs=3", 2, "trainer.min_epochs is not used here; use trainer.max_epochs"),
    Row("35", "FIT --trainer.fast_dev_run=true", 2, "trainer.fast_dev_run is not used here; use trainer.max_steps"),
    Row("35a", "FIT --overfit_batches=1", 2, "overfit_batches is not used here; use trainer.limit_train_batches"),
    bad_yaml("35b", "trainer: {val_check_interval: 100}\n", "trainer.val_check_interval is not used here; use evaluate_every"),
    bad_yaml("35c", "trainer: {barebones: true}\n", "trainer.barebones is not used here; leave it out"),
    Row("36", "FIT --trainer.precision=bf61", 2, "trainer.precision must be one of auto, 32-true, 16-mixed, bf16-mixed,"),
    Row("36a", "FIT --precision=32-true", 2, "unknown setting 'precision'; did you mean 'trainer.precision'?"),
    Row("37", "FIT --trainer.accelerator=gpuu", 2, "trainer.accelerator must be one of auto, cpu,"),
    Row("38", "FIT --trainer.accelerator=cuda", 2, "trainer.accelerator is cuda, but this machine has no CUDA device"),
    Row("38a", "FIT --trainer.accelerator=tpu", 2, "trainer.accelerator is tpu, but torch_xla is not installed"),
    Row("39", "FIT --trainer.devices=0", 2, "trainer.devices must be an int of at least 1, got 0"),
    Row("39a", "FIT --trainer.devices=9999", 2, "trainer.devices (9999) must be at most "),
    Row("39b", "FIT --trainer.devices=many", 2, "trainer: `devices` selected with `CPUAccelerator` should be an int > 0."),
    Row("39c", "FIT --trainer.num_nodes=2", 2, "trainer.num_nodes (2) needs torchrun or SLURM to start the processes"),
    Row("39d", "FIT --trainer.strategy=many", 2, "trainer.strategy must be one of auto, ddp, fsdp, got"),
    Row("39e", "FIT --trainer.strategy=ddp_spawn", 2, "trainer.strategy must be one of auto, ddp, fsdp, got"),
    Row("39f", "FIT --trainer.strategy=deepspeed_stage_2", 2, "trainer.strategy must be one of auto, ddp, fsdp, got"),
    Row("40", "FIT --trainer.precision=16-mixed", 2, "trainer.precision 16-mixed does not run on cpu"),
    Row("23", "FIT --trainer.gradient_clip_val=-1", 2, "trainer.gradient_clip_val must be a finite number of at least 0"),
    Row("23a", "FIT --trainer.gradient_clip_val=nan", 2, "trainer.gradient_clip_val must be an int or a number or null"),
    bad_yaml("23b", "trainer: {gradient_clip_val: .nan}\n", "trainer.gradient_clip_val must be a finite number of at least"),
    Row("", "FIT --trainer.accumulate_grad_batches=0", 2, "trainer.accumulate_grad_batches must be an int of at least 1"),
    Row("", "FIT --trainer.limit_train_batches=0", 2, "trainer.limit_train_batches must be an int of at least 1 or a"),
    Row("", "FIT --trainer.limit_val_batches=0.1", 2, "trainer.limit_val_batches (0.1) leaves none of the 1 batches"),
    Row("42", "", 2, COMMANDS),
    Row("42a", "train", 2, f"{COMMANDS}; got 'train'"),
    Row("42b", "predikt", 2, "got 'predikt'; did you mean predict?"),
]

CLASSES = [
    bad_class("43", "callbacks", "nope.Callback", "class_path 'nope.Callback' is not allowed; name a class of Lightning that takes no code, or"),
    bad_class("43a", "callbacks", "[{class_path: lightning.pytorch.callbacks.Nope}]", "'lightning.pytorch.callbacks.Nope' not found"),
    bad_class("43b", "callbacks", "foo", "trainer.callbacks must name a class of Lightning (class_path: NAME), not 'foo'"),
    Row("44", "FIT --trainer.callbacks='[{class_path: evilmod.X}]'", 2, "class_path 'evilmod.X' is not allowed", situation=own_module),
    bad_class("44a", "callbacks", "[{class_path: os.system}]", "class_path 'os.system' is not allowed"),
    bad_class("44b", "callbacks", "[{class_path: lightning.pytorch.callbacks.LambdaCallback}]", "LambdaCallback' is not allowed"),
    Row("44c", "FIT --allow_classes_of='*'", 2, "--allow_classes_of must be a module's name, got '*'"),
    bad_yaml("44d", "allow_classes_of: evilmod\n", "bad.yaml: allow_classes_of is given on the command line only"),
    bad_class("", "callbacks", "[{class_path: BackboneFinetuning}]", "BackboneFinetuning does not work here: AttributeError: 'GPTModule' object has no attribute 'backbone'"),
    bad_class("", "callbacks", "[{class_path: EarlyStopping}]", "trainer.callbacks: option 'monitor' is missing"),
    bad_class("", "callbacks", "[{class_path: EarlyStopping, init_args: {monitr: a}}]", "trainer.callbacks: unknown option 'monitr'"),
    bad_class("", "callbacks", "[{class_path: EarlyStopping, init_args: {monitor: loss}}]", "trainer.callbacks: EarlyStopping cannot monitor 'loss', only val_loss, val_perplexity, train_eval_loss,"),
    bad_class("", "callbacks", "[{class_path: BatchSizeFinder}]", "trainer.callbacks: BatchSizeFinder changes data.batch_size after the steps of the run are counted; set data."),
    bad_class("", "callbacks", "[{class_path: OnExceptionCheckpoint, init_args: {dirpath: .}}]", "trainer.callbacks: OnExceptionCheckpoint writes checkpoints that cannot be resumed exactly; use last.ckpt"),
    bad_class("", "callbacks", "[{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.01}}]", "trainer.callbacks: StochasticWeightAveraging does not save the averaged weights, and resumes with other learning rates; use EMAWeightAveraging"),
    bad_class("", "callbacks", "[{class_path: EMAWeightAveraging, init_args: {update_starting_at_epoch: 1}}]", "trainer.callbacks: EMAWeightAveraging's update_starting_at_epoch (1) would change the weights between an epoch's last"),
    bad_class("", "callbacks", "[{class_path: ModelPruning, init_args: {pruning_fn: l1_unstructured}}]", "trainer.callbacks: ModelPruning renames the weights, so that its checkpoints could not be read"),
    bad_class("", "plugins", "[{class_path: lightning.pytorch.plugins.DoublePrecision}]", "trainer.plugins: DoublePrecision cannot be set as a plugin; set trainer.precision (64-true, 16-true,"),
    bad_class("", "plugins", "[{class_path: lightning.fabric.plugins.XLAPrecision, init_args: {precision: 32-true}}]", "trainer.plugins: XLAPrecision cannot be set as a plugin; set trainer.precision"),
    bad_class("", "plugins", "[{class_path: lightning.pytorch.plugins.AsyncCheckpointIO}]", "trainer.plugins: AsyncCheckpointIO cannot be set, because checkpoints are written atomically by the program itself"),
    bad_class("", "plugins", "[{class_path: lightning.fabric.plugins.TorchCheckpointIO}]", "trainer.plugins: TorchCheckpointIO cannot be set, because checkpoints are written"),
    bad_class("", "strategy", "{class_path: lightning.pytorch.strategies.DeepSpeedStrategy}", "trainer.strategy: DeepSpeedStrategy writes checkpoints in its own format, as folders; use ddp or fsdp"),
    bad_class("", "strategy", "{class_path: lightning.pytorch.strategies.FSDPStrategy}", "trainer.strategy: FSDPStrategy is FSDP1; set trainer.strategy to fsdp, which is FSDP2"),
    bad_class("", "strategy", "{class_path: lightning.pytorch.strategies.ModelParallelStrategy}", "trainer.strategy: ModelParallelStrategy writes sharded checkpoints; set trainer.strategy to fsdp, which uses it"),
]

TEXTS = [
    Row("46", "FIT --data.text=nope.txt", 2, "nope.txt: no such file"),
    Row("46a", "FIT --data.text=", 2, "data.text is missing; name a text file, or use a config that names one"),
    Row("46b", "FIT --data.text=a.txt --data.text=b.txt", 2, "--data.text is given twice; for several documents name a folder"),
    Row("46c", "FIT --data.val_text=.", 2, ": contains no .txt or .jsonl file, only "),
    Row("46d", "FIT --data.text=pipe", 2, "pipe: data.text must be a regular file", situation=pipe),
    bad_text("48", "", "a.txt: is empty"),
    bad_text("48a", "a", "a.txt: contains only the character 'a'; there is nothing to learn"),
    bad_text("48b", " \n\n", "a.txt: contains only whitespace"),
    bad_text("50", "lamp", "a.txt: the text has 4 tokens, but one window needs 65: model.context_length (64) and one more as the last target; use a longer text"),
    Row("50a", "FIT --data.text=a.txt", 2, "the validation split has 60 tokens, but one window needs 65", {"a.txt": TEXT[:600]}),
    Row("50b", "test --ckpt_path last.ckpt --data.test_text=a.txt", 2, "a.txt: the text has 4 tokens, but one window needs 65", {"a.txt": "lamp"}),
    bad_text("51", b"\x80" + TEXT.encode(), "a.txt: not UTF-8 text (byte 0x80 at offset 0)"),
    bad_text("53", "\ufeff" + TEXT, "a.txt: starts with a byte order mark, which is removed", code=0),
    bad_text("55", TEXT + "\0", "a.txt: contains NUL bytes; not a text file"),
    bad_text("55a", "a" * 1000, "a.txt: contains only the character 'a'; there is nothing to learn"),
    bad_text("56", TEXT + "<|endoftext|>" + TEXT, "", code=0),
    Row("59", "FIT --data.text=huge.txt", 2, "huge.txt: contains NUL bytes; not a text file", situation=huge),
    Row("60", "FIT --data.text=a.txt", 1, "a.txt: permission denied", {"a.txt": TEXT}, situation=denied("a.txt")),
    Row("62", "VALIDATE", 2, f"{STORY}: is not the text that last.ckpt was trained on (the-lamp-at-low-water.txt, sha256", {"last.ckpt": set_in("gpt_lightning/text/sha256", "0" * 64)}),
    Row("62a", "RESUME", 2, f"{STORY}: is not the text that run/checkpoints/last.ckpt was trained on", situation=run_with(set_in("gpt_lightning/text/sha256", "0" * 64))),
    Row("62b", "RESUME --data.text=a.txt", 2, "; to continue with this text, give --allow_data_change", {"a.txt": TEXT * 10}, situation=run),
]

PROMPTS = [
    Row("63", "PREDICT --prompt=", 2, "prompt is empty; use <|endoftext|> to generate without a prompt"),
    bad_yaml("63a", "prompt: ['']\n", "prompt is empty; use <|endoftext|> to generate without a prompt"),
    Row("63b", "PREDICT --prompt", 2, "--prompt needs a text"),
    Row("63c", "PREDICT", 2, "predict needs --prompt TEXT, --prompts_file FILE (- for standard input) or --interactive"),
    Row("64", f"PREDICT --prompt={'x' * 65}", 0, "prompt has 65 tokens; the model sees only the last 64"),
    Row("65", "PREDICT --prompt='<|endoftext|>'", 0, ""),
    Row("66", "PREDICT --prompt=\U0001f600 --sampling.temperature=1", 0, ""),
    Row("68", "PREDICT --prompts_file=prompt.txt", 2, "prompt.txt: no such file"),
    Row("68a", "PREDICT --prompts_file=-", 2, "standard input: is empty; expected a prompt in each line", situation=no_input),
    Row("68b", "PREDICT --prompts_file=p.txt", 0, "", {"p.txt": "a\0b\n"}),
    *(Row("69", f"PREDICT --prompt={shlex.quote(one)}", 0, "") for one in ("123", "null", "a: b", "-x")),
    *(bad_yaml("69a", f"prompt: [{one}]\n", f"prompt must be a list of texts, not {one}; put each text in quotes") for one in ("1.5", "123")),
    Row("69b", "FIT --config more.yaml --trainer.max_steps=1", 0, "", {"more.yaml": "prompt: ['1.50', 'null', 'a: b']\n"}, leaves=("runs",)),
    Row("70", "PREDICT --prompt=x --sampling.top_k=99999", 2, "sampling.top_k must be an int from 1 to 257, got 99999"),
    Row("70a", "PREDICT --prompt=x --sampling.top_k=0", 2, "sampling.top_k must be an int from 1 to 257, got 0"),
    Row("70b", "FIT --sampling.top_k=258", 2, "sampling.top_k must be an int from 1 to 257, got 258"),
    Row("72", "PREDICT --prompt=x --sampling.temperature=-1", 2, "sampling.temperature must be a finite number of at least 0"),
    Row("74", "PREDICT --prompt=x --sampling.temperature=1e-300", 0, ""),
    Row("75", "PREDICT --prompt=x --sampling.max_new_tokens=-1", 2, "sampling.max_new_tokens must be an int of at least 1"),
    Row("75a", "FIT --sampling.max_new_tokens=0", 2, "sampling.max_new_tokens must be an int of at least 1, got 0"),
]

CHECKPOINTS = [
    Row("76", "predict --prompt=x", 2, "predict needs --ckpt_path CKPT"),
    Row("77", "predict --prompt=x --ckpt_path=runs/x/last.ckpt", 2, "runs/x/last.ckpt: no such file"),
    Row("79", "PREDICT --prompt=x", 2, "last.ckpt: is not a complete checkpoint", {"last.ckpt": b""}),
    Row("80", "PREDICT --prompt=x", 2, "last.ckpt: is not a complete checkpoint", {"last.ckpt": truncated}),
    Row("80a", "RESUME --trainer.max_epochs=3", 0, "run/checkpoints/last.ckpt: is not a complete checkpoint; resuming from the previous checkpoint, prev.ckpt", situation=run_with(truncated)),
    Row("80b", "RESUME", 2, "run/checkpoints/last.ckpt: is not a complete checkpoint", situation=run_with(truncated, prev=truncated)),
    Row("80c", "PREDICT --prompt=x", 2, "last.ckpt: is not a checkpoint", {"last.ckpt": "Once upon a time"}),
    Row("80d", "predict --prompt=x --ckpt_path=model.safetensors", 2, "model.safetensors: is not a checkpoint; convert it with `import --from model.safetensors --output NEW.ckpt`", {"model.safetensors": b"\10"}),
    Row("80e", "predict --prompt=x --ckpt_path=model.pth", 2, "model.pth: is not a checkpoint of gpt_lightning; convert it with `import --from model.pth --output NEW.ckpt`", {"model.pth": changed(lambda content: content.pop("gpt_lightning"))}),
    Row("80f", "predict --prompt=x --ckpt_path=hf", 2, "hf: is a folder, not a checkpoint; convert it with `import --from hf --output NEW.ckpt`", situation=hf_folder),
    Row("81", "PREDICT --prompt=x", 2, "last.ckpt: checksum mismatch", {"last.ckpt": with_a_flipped_bit}),
    Row("83", "PREDICT --prompt=x", 2, "last.ckpt: refused, because it contains more than tensors", {"last.ckpt": with_code}),
    Row("85", "RESUME", 2, "last.ckpt: has weights but no optimizer state; resume from a run's last.ckpt", situation=run_with(without_optimizer, prev=without_optimizer)),
    Row("86", "VALIDATE --model.emb_dim=32", 2, "last.ckpt has model.emb_dim 16, the settings say 32"),
    Row("86a", "VALIDATE --model.n_layers=12", 2, "last.ckpt has model.n_layers 1, the settings say 12"),
    Row("86b", "RESUME --model.emb_dim=32", 2, "last.ckpt has model.emb_dim 16, the settings say 32", situation=run),
    Row("87", "VALIDATE --data.tokenizer=gpt2", 2, "last.ckpt has data.tokenizer bytes, the settings say gpt2"),
    Row("87a", "VALIDATE --model.vocab_size=300", 2, "last.ckpt has model.vocab_size 257, the settings say 300"),
    Row("89", "PREDICT --prompt=x", 2, "last.ckpt: contains non-finite weights", {"last.ckpt": with_nan}),
    Row("86d", "PREDICT --prompt=x", 1, "out of memory: the ", {"last.ckpt": set_in("hyper_parameters/emb_dim", 2**40)}),
    Row("86e", "PREDICT --prompt=x", 2, "last.ckpt: has an unknown trainer.precision (foo)", {"last.ckpt": set_in("gpt_lightning/fit/trainer.precision", "foo")}),
    Row("86c", "PREDICT --prompt=x --model.emb_dim=32", 2, "unknown setting 'model.emb_dim'"),
    Row("86d", "PREDICT --prompt=x --data.text=x", 2, "unknown setting 'data.text'"),
    Row("86e", "PREDICT --prom=x", 2, "unknown setting 'prom'; did you mean 'prompt'?"),
    Row("90a", "VALIDATE", 0, "last.ckpt: ignoring its unknown setting model.n_experts", {"last.ckpt": set_in("hyper_parameters/n_experts", 8)}),
    Row("90", "PREDICT --prompt=x", 0, "last.ckpt: ignoring its unknown setting model.n_experts", {"last.ckpt": set_in("hyper_parameters/n_experts", 8)}),
    Row("91", "predict --prompt=x --ckpt_path=https://a.b/c.ckpt", 2, "https://a.b/c.ckpt: must be a local file"),
    Row("92", "predict --prompt=x --ckpt_path=best", 2, "best: no such file"),
    Row("92a", "predict --prompt=x --ckpt_path=run", 2, "run: is a folder, not a checkpoint", situation=a_run_folder),
    Row("92b", "predict --prompt=x --ckpt_path=run", 2, "not a checkpoint; it contains run/checkpoints/best.ckpt", situation=run),
    Row("92c", "FIT --resume --trainer.max_steps=1", 0, "", leaves=("runs",)),
    Row("92d", "PREDICT --prompt=x --run_dir=y", 2, "unknown setting 'run_dir'"),
    Row("92e", "predict --prompt=x --ckpt_path=pipe", 2, "pipe: must be a regular file", situation=pipe),
    Row("", "FIT --run_dir=run", 2, "run already contains a run; add --resume to resume it", situation=run),
]

MACHINE = [
    Row("94", "RESUME", 2, "run is in use by process 4711", situation=run_in_use),
    Row("95", "FIT", 1, "runs/tiny/1: permission denied", situation=denied("runs")),
    Row("96", "FIT --run_dir=run", 1, "run/checkpoints: permission denied", situation=denied("run/checkpoints"), leaves=("run",)),
    Row("98", "FIT --run_dir=run", 1, "for its checkpoints, but the disk has 1.0 kB free", situation=full_disk),
    Row("98a", "FIT --run_dir=run --save_every=3", 1, "run/checkpoints/last.ckpt: no space left on device while saving; the previous last.ckpt is intact", situation=disk_that_fills_up, leaves=("run",)),
    Row("99", "FIT --data.tokenizer=p50k_base", 1, "tokenizer p50k_base is not cached and cannot be downloaded (ProxyError); set TIKTOKEN_CACHE_DIR to a folder", situation=offline),
    Row("100", "FIT --data.tokenizer=p50k_base", 1, "checksum mismatch for the vocabulary of tokenizer p50k_base", situation=offline_with_a_damaged_vocabulary),
    Row("101", f"FIT --data.text=a.txt --data.url=http://a.b/a.txt#sha256={'0' * 64}", 1, "a.txt: no such file; http://a.b/a.txt: checksum mismatch, file not kept", situation=another_download),
    Row("102", "FIT --run_dir=run", 1, "lower data.batch_size (56), model.context_length (64) or the model", situation=no_memory, leaves=("run",)),
    Row("102a", "FIT --model.n_layers=1000000000", 1, f"out of memory: the {WEIGHTS:,} weights of model.emb_dim (16) and model.n_layers ("),
    Row("104", "FIT --run_dir=run --model.learning_rate=1e38", 3, "; try a lower model.learning_rate, more model.warmup_steps or trainer.gradient_clip_val", leaves=("run",)),
    Row("105", "FIT --run_dir=run", 143, "", situation=stopped_by(signal.SIGTERM), leaves=("run",)),
    Row("105a", "FIT --run_dir=run", 130, "", situation=stopped_by(signal.SIGINT), leaves=("run",)),
]
# fmt: on
ROWS = [*SHARDS, *CONFIG_FILES, *SETTINGS, *TRAINER, *CLASSES, *TEXTS, *PROMPTS, *CHECKPOINTS, *MACHINE]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_bad_input_is_reported_in_one_line_and_leaves_no_files(
    row: Row, command: Command, config: Path, trained: Path
) -> None:
    if torch.cuda.is_available() and ("cuda" in row.line or "16-" in row.line):
        pytest.skip("this machine has the device that the row needs to be missing")
    last = (trained / "checkpoints/last.ckpt").read_bytes()
    for name, content in {"last.ckpt": bytes, **row.files}.items():
        made = content(last) if callable(content) else content
        Path(name).write_bytes(made.encode() if isinstance(made, str) else made)
    first, _, rest = row.line.partition(" ")

    with pytest.MonkeyPatch.context() as patch:
        if row.situation is not None:
            row.situation(trained, patch)
        before = set(Path().rglob("*"))
        result = command(*shlex.split(f"{SHORT.get(first, first)} {rest}"))

    assert result.code == row.code, result.err
    assert LEFT_OVER.search(result.err) is None, result.err
    if not row.words:
        assert result.err == ""
    else:
        (line,) = result.err.splitlines()
        assert line.startswith(WARNING if row.code == 0 else ERROR)
        assert row.words in line
    new = {path for path in Path().rglob("*") if path not in before and path.parts[0] not in row.leaves}
    assert new == set()


# ---- cases that need a process of their own

THREADS = "the environment variable OMP_NUM_THREADS ({}) must be an int of at least 1"
GONE = f"{ERROR}the current folder was deleted; change to an existing one (cd)\n"


@pytest.mark.parametrize(
    ("line", "code", "stderr"),
    [
        pytest.param("(sleep 0.2; PROGRAM --help) | true; exit ${PIPESTATUS[0]}", 141, "", id="106"),
        pytest.param("PROGRAM --help >&-", 0, "", id="106a"),
        pytest.param("OMP_NUM_THREADS=0 PROGRAM check --config a.yaml", 2, f"{ERROR}{THREADS.format(0)}\n", id="119"),
        pytest.param("OMP_NUM_THREADS=two PROGRAM explain loss", 2, f"{ERROR}{THREADS.format('two')}\n", id="119a"),
        pytest.param("env -i LANG=C PROGRAM --help", 0, "", id="107"),
        pytest.param("cd gone && rmdir ../gone && PROGRAM --help", 0, "", id="107a"),
        pytest.param("cd gone && rmdir ../gone && PROGRAM fit", 1, GONE, id="107b"),
        pytest.param("cd gone && rmdir ../gone && PROGRAM plot", 1, GONE, id="107c"),
    ],
)
def test_an_unusual_environment_gives_at_most_one_line(tmp_path: Path, line: str, code: int, stderr: str) -> None:
    (tmp_path / "gone").mkdir()
    program = f"env PYTHONPATH={shlex.quote(str(ROOT))} {sys.executable} -m gpt_lightning"

    environment = os.environ | {"LC_ALL": "C"}  # bash warns of a locale that is not installed
    done = subprocess.run(
        ["bash", "-c", line.replace("PROGRAM", program)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (code, stderr)
    assert os.listdir(tmp_path) in ([], ["gone"])
