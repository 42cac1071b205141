"""Show what a checkpoint contains, or what differs between two.

    python -m gpt_lightning info CKPT [--json]
    python -m gpt_lightning info A B [--json]

The first form prints the network, the tokenizer, the text, the origin of the weights, the progress and losses of the
run, the versions, and the checksum of the file. The second form prints what differs from A to B, and the norm of the
difference between the weights of each part of the network.
"""

from __future__ import annotations

import json
import os
from typing import Any

from gpt_lightning.checkpoints.description import (
    ALL,
    describe_checkpoint,
    different_architecture,
    plain,
    weight_differences,
)
from gpt_lightning.checkpoints.loading import LoadedCheckpoint, open_checkpoint
from gpt_lightning.cli.arguments import LINKS, Parser
from gpt_lightning.cli.config_files import one_line_yaml
from gpt_lightning.cli.precedence import checkpoint_settings
from gpt_lightning.console import format_bytes, labeled, plural, say, table
from gpt_lightning.data.sources import sha256_of
from gpt_lightning.errors import InputError
from gpt_lightning.runs.folder import resolve_latest

COMPARED = ("text", "progress", "evaluated", "baselines", "versions")
SHA256_DIGITS = 12  # shown of a text's


def run(arguments: list[str]) -> None:
    """Run `info` with these arguments."""
    parser = Parser("info", __doc__)
    parser.add_argument("checkpoint", nargs="+", metavar="CKPT", help="a checkpoint, or two to compare")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    names = options.checkpoint
    if len(names) > 2:
        raise InputError(f"info takes one checkpoint, or two to compare; got {len(names)}")
    if len(names) == 1:
        found = describe_file(names[0])
        lines = [] if options.json else _lines_of_one(found)
    else:
        found = compare(*(open_checkpoint(name) for name in names))
        lines = [] if options.json else _lines_of_two(found)
    if options.json:
        print(json.dumps(found, indent=2))
    for line in lines:
        say(line)


def describe(checkpoint: LoadedCheckpoint) -> dict[str, Any]:
    """Describe a checkpoint as data for JSON, with its settings by the names that `fit` gives them.

    Raises:
        InputError: See `describe_checkpoint`.
    """
    found = describe_checkpoint(checkpoint)
    settings = plain(checkpoint_settings(checkpoint.content), checkpoint.name)
    settings.pop("init_from", None)  # described with the weights
    for source, copy in LINKS.items():
        if copy in settings:
            settings[source] = settings.pop(copy)
    return found | {"settings": dict(sorted(settings.items()))}


# ---- one checkpoint


def describe_file(name: str) -> dict[str, Any]:
    """Describe a checkpoint as `describe` does, and the size and checksum of its file.

    Args:
        name: Path of the file.

    Raises:
        InputError: See `open_checkpoint` and `describe`; or the file was replaced while it was read.
    """
    path = resolve_latest(name)
    before = _identity(path)
    found = describe(open_checkpoint(name))
    file = {"path": name, "bytes": os.path.getsize(path), "sha256": sha256_of(path)}
    if _identity(path) != before:  # by a run that saves
        raise InputError(f"{name}: was replaced while it was read; run the command again")
    return found | {"file": file}


def _identity(path: str) -> tuple[int, int, int] | None:
    if not os.path.exists(path):
        return None
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _lines_of_one(found: dict[str, Any]) -> list[str]:
    text, evaluated, progress, file = (found[key] for key in ("text", "evaluated", "progress", "file"))
    losses = [
        f"{label} loss {_number(evaluated[f'{key}_loss'])} "
        f"(perplexity {_number(evaluated.get(f'{key}_perplexity'), 2)})"
        for label, key in (("Train", "train_eval"), ("Val", "val"))
        if f"{key}_loss" in evaluated
    ]
    baselines = [
        f"{name} {_number(value)}" for name, value in found["baselines"].items() if not name.endswith("_tokens")
    ]
    return [
        labeled("model", found["model"]["description"]),
        labeled("tokenizer", f"{found['tokenizer']}; {found['model']['vocab_size']:,} token ids in the model"),
        labeled("text", "unknown" if text is None else _about_text(text)),
        labeled("weights", _origin(found["weights"])),
        labeled(
            "progress",
            f"step {progress['steps']:,}, {plural(progress['epochs'], 'epoch')} finished, "
            f"{progress['tokens_seen']:,} tokens seen",
        ),
        labeled("evaluated", ", ".join(losses) or "never"),
        *([labeled("baselines", ", ".join(baselines))] if baselines else []),
        labeled("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())),
        labeled("file", f"{file['path']}: {format_bytes(file['bytes'])}, {_contents(found['weights'])}"),
        labeled("sha256", file["sha256"]),
    ]


def _about_text(text: dict[str, Any]) -> str:
    sizes = f"{text['characters']:,} characters, {text['tokens']:,} tokens"
    validation = f"; validation text: {_short(text['val_sha256'])}" if text["val_sha256"] else ""
    return f"{text['name']}: {sizes}, {_short(text['sha256'])}{validation}"


def _short(sha256: str) -> str:
    return f"sha256 {sha256[:SHA256_DIGITS]}..."


def _origin(weights: dict[str, Any]) -> str:
    imported, start = weights["imported"], weights["init_from"]
    if imported is not None:
        return f"imported from {imported.get('from')} ({imported.get('layout')})"
    return "trained from random weights" if start is None else f"trained from {start}"


def _contents(weights: dict[str, Any]) -> str:
    what = "weights, optimizer and random states" if weights["optimizer"] else "weights only"
    return f"{what}, {' and '.join(weights['types'])}"


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "not finite"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


# ---- two checkpoints


def compare(a: LoadedCheckpoint, b: LoadedCheckpoint) -> dict[str, Any]:
    """Describe what differs between two checkpoints as data for JSON.

    Returns:
        "a" and "b": path and weights of each; "settings", "text" and so on: name -> the value in a and in b, for those
        that differ, without a side that has none; "architecture": the settings that make the weights incomparable;
        "norms": see `weight_differences`, None if the architectures differ; "equal": what both have and is the same.

    Raises:
        InputError: See `describe`.
    """
    left, right = describe(a), describe(b)
    architecture = different_architecture(a, b)
    norms = None if architecture else weight_differences(a, b)
    equal = [name for name in ("settings", *COMPARED) if left[name] and left[name] == right[name]]
    return {
        **{side: {"path": one.name} | about["weights"] for side, one, about in (("a", a, left), ("b", b, right))},
        "settings": _differences(left["settings"], right["settings"]),
        **{name: _differences(left[name] or {}, right[name] or {}) for name in COMPARED},
        "architecture": architecture,
        "norms": norms,
        "equal": [*equal, "weights"] if norms is not None and norms[ALL]["difference"] == 0 else equal,
    }


def _differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: {side: values[name] for side, values in (("a", one), ("b", other)) if name in values}
        for name in one | other
        if name not in one or name not in other or one[name] != other[name]
    }


def _lines_of_two(found: dict[str, Any]) -> list[str]:
    a, b, norms = found["a"], found["b"], found["norms"]
    lines = [labeled(label, f"{one['path']}: {_contents(one)}") for label, one in (("A", a), ("B", b))]
    if _origin(a) != _origin(b):
        lines.append(labeled("weights", f"{_origin(a)} -> {_origin(b)}"))
    lines += [
        labeled("setting", f"{name} {one_line_yaml(values['a'])} -> {one_line_yaml(values['b'])}")
        for name, values in found["settings"].items()
        if len(values) == 2
    ]
    for side in ("a", "b"):
        if only := [name for name, values in found["settings"].items() if list(values) == [side]]:
            lines.append(labeled(f"only in {side.upper()}", ", ".join(only)))
    for name in COMPARED:
        if changes := [f"{key} {_side(key, one, 'a')} -> {_side(key, one, 'b')}" for key, one in found[name].items()]:
            lines.append(labeled(name, ", ".join(changes)))
    if norms is None:
        lines.append(labeled("norms", f"none, because the architectures differ ({', '.join(found['architecture'])})"))
    elif "weights" not in found["equal"]:
        lines.append(labeled("norms", "of the weights of A, of B - A, and the second relative to the first"))
        columns = ("norm", "difference", "relative")
        rows = [[part, *(_significant(one[key]) for key in columns)] for part, one in norms.items()]
        lines += table("<>>>", ["", "A", "B - A", "relative"], rows).splitlines()
    return [*lines, *([labeled("equal", ", ".join(found["equal"]))] if found["equal"] else [])]


def _side(key: str, values: dict[str, Any], side: str) -> str:
    """Return the value in one of two checkpoints, as it is shown."""
    if side not in values:
        return "none"
    value = values[side]
    if isinstance(value, str):
        return f"{value[:SHA256_DIGITS]}..." if key.endswith("sha256") else value
    return one_line_yaml(value) if isinstance(value, (list, dict)) else _number(value, 6)


def _significant(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
