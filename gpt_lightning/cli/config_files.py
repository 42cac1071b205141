"""YAML files of settings: read strictly, written so that jsonargparse reads the same."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]

from gpt_lightning.cli.arguments import CLI_ONLY, LINKS, TEXT_SETTINGS
from gpt_lightning.console import PROGRAM
from gpt_lightning.data.sources import absolute
from gpt_lightning.errors import InputError
from gpt_lightning.files import decode_utf8, with_filename

MAX_CONFIG_BYTES = 1_000_000
MAX_CONFIG_NODES = 100_000
SECTIONS = ("model", "data", "sampling", "trainer")
NO_NAMES = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:null")


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key may stand only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag in NO_NAMES:
                problem = "a name must be a plain word"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key_node.value in seen:
                problem = f"key {key_node.value!r} occurs twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise yaml.constructor.ConstructorError(None, None, "half a character", node.start_mark)
        return value


def read_config(path: str) -> tuple[dict[str, Any], str]:
    """Read a YAML file of settings.

    Returns:
        The settings, and the same as YAML for jsonargparse.

    Raises:
        InputError: No such file, a folder, empty, too large, not UTF-8, not YAML, not a mapping, a key that occurs
            twice, a tag, or a setting of the command line only.
        MachineError: It cannot be read.
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise InputError(f"{path}: must be a regular file")  # a pipe may never end
    with with_filename(path):
        data = Path(path).read_bytes()
    if len(data) > MAX_CONFIG_BYTES:
        raise InputError(f"{path}: too large for a config ({len(data):,} bytes, limit {MAX_CONFIG_BYTES:,})")
    content = decode_utf8(data, path)
    try:
        node = yaml.compose(content, Loader=_Loader)
        if node is not None and _count_nodes(node, {}) > MAX_CONFIG_NODES:
            raise InputError(f"{path}: too large for a config (more than {MAX_CONFIG_NODES:,} values)")
        config = yaml.load(content, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(f"{path}{line}: not valid YAML: {problem}") from None
    except InputError:
        raise
    except ValueError as error:  # a date that no calendar has
        raise InputError(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise InputError(f"{path}: not a config: nested too deeply") from None
    if config is None:
        raise InputError(f"{path}: is empty")
    if not isinstance(config, dict):
        raise InputError(f"{path}: is a {type(config).__name__}, not settings (name: value)")
    for name in config:
        if not isinstance(name, str):
            raise InputError(f"{path}: a name must be a plain word, not {name!r}")
    if "__path__" in config:  # jsonargparse's own
        raise InputError(f"{path}: unknown setting '__path__'")
    for name in CLI_ONLY:
        if name in config:
            raise InputError(f"{path}: {name} is given on the command line only (--{name})")
    for name in SECTIONS:
        if not isinstance(config.get(name, {}), dict):
            raise InputError(f"{path}: {name} must hold settings (name: value), got {config[name]!r}")
    for source, target in LINKS.items():
        section, _, name = target.partition(".")
        if name in config.get(section, {}):
            raise InputError(f"{path}: {target} is given as {source}")
    return config, yaml.serialize(node, explicit_start=True)  # `---`: jsonargparse takes other text for a path


def _count_nodes(node: yaml.Node, counted: dict[int, int]) -> int:
    """Return the number of values in a YAML tree, every alias written out."""
    if counted.get(id(node)) == 0:
        raise yaml.composer.ComposerError(None, None, "an alias inside of what it stands for", node.start_mark)
    if id(node) not in counted:
        counted[id(node)] = 0  # until it is known
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        counted[id(node)] = 1 + sum(_count_nodes(child, counted) for child in children)
    return counted[id(node)]


class ConfigFile(ActionConfigFile):
    """`--config FILE`: checked by `read_config`, then read by jsonargparse."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        config, content = read_config(values)
        super().__call__(parser, cfg, content, option_string)  # type: ignore[no-untyped-call]
        cfg[self.dest][-1] = values  # the name of the file, for that of the run
        data = config.get("data")
        if isinstance(data, dict) and "text" in data:
            for name in TEXT_SETTINGS:
                if name not in data:
                    cfg[f"data.{name}"] = None


def dump_settings(settings: Namespace) -> str:
    """Return every setting of a run as YAML with absolute paths: a config that trains the same again."""
    settings = settings.clone()
    for name in (*CLI_ONLY, "__path__", *LINKS.values()):
        settings.pop(name, None)
    for name in ("text", "fallback_text"):
        if settings["data"][name] is not None:
            settings["data"][name] = absolute(settings["data"][name])
    body = yaml.dump(plain(settings.as_dict()), Dumper=Quoting, sort_keys=False)
    return f"# All settings of this run. To run it again: python -m {PROGRAM} fit --config THIS_FILE\n{body}"


class Quoting(yaml.SafeDumper):
    """Quotes texts that begin like a number: "1e3" is a number for jsonargparse, and none for PyYAML."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Return the node of a text."""
        node = super().represent_str(data)
        if data[:1].isascii() and not data[:1].isalpha():
            node.style = '"'
        return node


Quoting.add_representer(str, Quoting.represent_str)


def plain(value: Any) -> Any:
    """Return a setting as plain data: enums by their values, functions and classes by their names."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, Enum):
        return plain(value.value)
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return value if isinstance(value, (bool, int, float, str, NoneType)) else str(value)
