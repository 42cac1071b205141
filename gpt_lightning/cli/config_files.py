"""Read YAML files of settings strictly, and write settings so that jsonargparse reads back the same values."""

from __future__ import annotations

import difflib
import math
import os
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]

from gpt_lightning.cli.arguments import CLI_ONLY, EXPECTED_TEXT, LINKS, TEXT_SETTINGS, changes_losses
from gpt_lightning.console import PROGRAM
from gpt_lightning.data.sources import absolute
from gpt_lightning.errors import InputError
from gpt_lightning.files import decode_utf8, packaged_folder, with_filename

LONGEST_NAME = 100  # of a packaged config; a longer one is a file's
MAX_CONFIG_BYTES = 1_000_000
MAX_CONFIG_NODES = 100_000
SECTIONS = ("model", "data", "sampling", "expected", "trainer")
NO_NAMES = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:null")


class _Loader(yaml.SafeLoader):
    """A safe YAML loader that rejects repeated keys."""

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
            raise yaml.constructor.ConstructorError(None, None, "a lone surrogate", node.start_mark)
        return value


def packaged_configs() -> dict[str, Path]:
    """Return the configs that come with the package, by their names without a suffix."""
    return {path.stem: path for path in sorted(packaged_folder("configs").glob("*.yaml"))}


def find_config(path: str) -> str:
    """Return the path of a config; a name without a suffix or a folder is that of a packaged one.

    Raises:
        InputError: There is no packaged config of that name.
    """
    if os.path.exists(path) or Path(path).suffix or os.path.dirname(path) or len(path) > LONGEST_NAME:
        return path
    configs = packaged_configs()
    if path not in configs:
        close = difflib.get_close_matches(path, configs, 1)
        hint = f"; did you mean {close[0]}?" if close else f" ({', '.join(configs)})"
        raise InputError(f"{path}: no such file, and no packaged config has this name{hint}")
    return str(configs[path])


def read_config(path: str) -> tuple[dict[str, Any], str]:
    """Read a YAML file of settings, or a packaged config, see `find_config`.

    Returns:
        The settings, and the same settings as YAML for jsonargparse.

    Raises:
        InputError: The file does not exist, is a folder, empty, too large, not UTF-8, not YAML or not a mapping; or
            it contains a repeated key, a tag, or a setting that only the command line may have.
        MachineError: The file cannot be read.
    """
    path = find_config(path)
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise InputError(f"{path}: must be a regular file")  # reading a pipe may never end
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
    except ValueError as error:  # an impossible date, such as 2024-13-45
        raise InputError(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply for a config") from None
    if config is None:
        raise InputError(f"{path}: is empty")
    if not isinstance(config, dict):
        raise InputError(f"{path}: must contain settings (name: value), not a {type(config).__name__}")
    for name in config:
        if not isinstance(name, str):
            raise InputError(f"{path}: a name must be a plain word, not {name!r}")
    if "__path__" in config:  # reserved by jsonargparse
        raise InputError(f"{path}: unknown setting '__path__'")
    for name in CLI_ONLY:
        if name in config:
            raise InputError(f"{path}: {name} is given on the command line only (--{name})")
    for name in SECTIONS:
        if not isinstance(config.get(name, {}), dict):
            raise InputError(f"{path}: {name} must contain settings (name: value), got {config[name]!r}")
    for source, target in LINKS.items():
        section, _, name = target.partition(".")
        if name in config.get(section, {}):
            raise InputError(f"{path}: {target} cannot be set; set {source} instead")
    return config, yaml.serialize(node, explicit_start=True)  # without `---`, jsonargparse may read it as a path


def _count_nodes(node: yaml.Node, counted: dict[int, int]) -> int:
    """Return the number of values in a YAML tree with all aliases expanded."""
    if counted.get(id(node)) == 0:
        raise yaml.composer.ComposerError(None, None, "an alias refers to a value that contains it", node.start_mark)
    if id(node) not in counted:
        counted[id(node)] = 0  # being counted: meeting it again means a recursive alias
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        counted[id(node)] = 1 + sum(_count_nodes(child, counted) for child in children)
    return counted[id(node)]


class ConfigFile(ActionConfigFile):
    """The action of `--config FILE`: check the file with `read_config`, then let jsonargparse read it."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        config, content = read_config(values)
        super().__call__(parser, cfg, content, option_string)  # type: ignore[no-untyped-call]
        cfg[self.dest][-1] = values  # the file's name, which the run is named after
        data = config.get("data")
        if isinstance(data, dict) and "text" in data:
            for name in TEXT_SETTINGS:
                if name not in data:
                    cfg[f"data.{name}"] = None
        if "expected" not in config and any(map(changes_losses, _full_names(config))):
            cfg[EXPECTED_TEXT] = None


def _full_names(config: dict[str, Any]) -> list[str]:
    """Return the full names of the settings of a YAML file."""
    return [
        f"{name}.{one}" if name in SECTIONS else name
        for name, value in config.items()
        for one in (value if name in SECTIONS else [None])
    ]


def dump_settings(settings: Namespace) -> str:
    """Return all settings of a run as YAML with absolute paths: a config that reproduces the run."""
    settings = settings.clone()
    for name in (*CLI_ONLY, "__path__", *LINKS.values()):
        settings.pop(name, None)
    for name in ("text", "fallback_text"):
        if settings["data"][name] is not None:
            settings["data"][name] = absolute(settings["data"][name])
    body = yaml.dump(plain(settings.as_dict()), Dumper=Quoting, sort_keys=False)
    return f"# All settings of this run. To run it again: python -m {PROGRAM} fit --config THIS_FILE\n{body}"


def plain_defaults(defaults: Namespace) -> dict[str, Any]:
    """Return the default of each setting that `dump_settings` writes, by its full name, as plain data."""
    left_out = {*CLI_ONLY, "__path__", *LINKS.values()}
    return {name: plain(value) for name, value in defaults.items() if name not in left_out}


class Quoting(yaml.SafeDumper):
    """A YAML dumper that quotes texts starting like a number: jsonargparse reads 1e3 as a number, PyYAML as a text."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Return the YAML node of a text."""
        node = super().represent_str(data)
        if data[:1].isascii() and not data[:1].isalpha():
            node.style = '"'
        return node


Quoting.add_representer(str, Quoting.represent_str)


def one_line_yaml(value: Any) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


def plain(value: Any) -> Any:
    """Convert a setting to plain data: enums to their values, functions and classes to their names."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, Enum):
        return plain(value.value)
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return value if isinstance(value, (bool, int, float, str, NoneType)) else str(value)
