"""Settings before Lightning sees them: YAML files and arguments checked, errors put into words."""

from __future__ import annotations

import difflib
import math
import os
import re
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

from gpt_lightning.errors import InputError, MachineError, describe_os_error
from gpt_lightning.inference.completion import check_prompt
from gpt_lightning.training.distributed import launched_by_others
from gpt_lightning.training.hardware import PRECISIONS, check_device
from gpt_lightning.validation import require, require_integer, require_number

MAX_CONFIG_BYTES = 1_000_000
MAX_CONFIG_NODES = 100_000
SECTIONS = ("model", "data", "sampling", "trainer")
TYPED_ONLY = (
    "run_dir",
    "resume",
    "ckpt_path",
    "config",
    "allow_data_change",
    "allow_classes_of",
    "prompts_file",
    "jsonl",
    "output",
    "interactive",
)
# Settings that are given as another one: source -> target.
LINKS = {
    "model.context_length": "data.context_length",
    "seed_everything": "data.seed",
    "evaluate_batches": "data.evaluate_batches",
}
TEXT_OPTIONS = ("--data.text", "--data.val_text", "--data.test_text")
TEXT_LISTS = ("--prompt", "--sampling.stop_strings")
# What belongs to one text: whoever names another text does not mean these.
TEXT_SETTINGS = ("address", "sha256", "fallback_text", "text_source")
TYPE_WORDS = {
    "int": "an int",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "dict": "settings",
    "NoneType": "null",
}
CLASS_SETTINGS = ("trainer.callbacks", "trainer.logger", "trainer.plugins")
# Classes of Lightning that a run cannot use, and why.
REFUSED_CLASSES = {
    "BatchSizeFinder": "changes data.batch_size when the steps of the run are counted; set data.batch_size, "
    "whose memory `check` foretells",
    "OnExceptionCheckpoint": "saves what a run cannot go on from exactly; last.ckpt serves",
    "StochasticWeightAveraging": "neither saves its averages as weights nor goes on with the same learning "
    "rates; take EMAWeightAveraging",
    "ModelPruning": "gives the weights other names than a checkpoint's, so that nothing could read one",
    "ModelParallelStrategy": "needs a network that is written to be cut into parts; take ddp or fsdp",
    "DeepSpeedStrategy": "writes checkpoints of its own, in folders; take ddp or fsdp",
}
# The ends of the names of others.
REFUSED_KINDS = {
    "Precision": "is chosen by the setting precision (64-true, 16-true, bf16-mixed ...), not as a plugin",
    "CheckpointIO": "cannot be set: the program writes its checkpoints itself, each whole or not at all",
}
CLASS_ERRORS = {
    r"Importing '([\w.]+)' is not allowed": (
        "class_path '{}' is not allowed; only classes of Lightning that take no code may be named"
    ),
    r"given class_path '([\w.]+)': ": "class_path '{}' not found",
    r"Option '(\w+)' is not accepted": "unknown option '{}'",
    r"arguments are required: (\w+)": "option '{}' is missing",
}
# ---- YAML files

TEXT, SEQUENCE, NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:null"
NO_NAMES = ("tag:yaml.org,2002:merge", NULL)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key may stand only once, and prompts are texts as they are written: 1.50 is "1.50"."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        for option in TEXT_LISTS:
            self._make_texts(node, option.removeprefix("--"))
        return node

    def _make_texts(self, node: yaml.Node | None, name: str) -> None:
        """Makes a list of texts of a setting in a mapping, or of the one text that stands there."""
        if not isinstance(node, yaml.MappingNode):
            return
        for i, (key, value) in enumerate(node.value):
            if key.value == name and isinstance(value, yaml.SequenceNode):
                texts = [self._make_text(item) for item in value.value]
                node.value[i] = key, yaml.SequenceNode(value.tag, texts, value.start_mark)
            elif key.value == name and isinstance(value, yaml.ScalarNode):
                if value.tag == NULL and name != "prompt":  # a prompt may be any word; elsewhere null is none
                    continue
                node.value[i] = key, yaml.SequenceNode(SEQUENCE, [self._make_text(value)], value.start_mark)
            elif isinstance(key.value, str) and name.startswith(f"{key.value}."):
                self._make_texts(value, name.removeprefix(f"{key.value}."))

    def _make_text(self, node: yaml.Node) -> yaml.Node:
        if not isinstance(node, yaml.ScalarNode):
            return node
        untagged = self.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
        return yaml.ScalarNode(TEXT, node.value, node.start_mark, style='"') if node.tag in (TEXT, untagged) else node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag in NO_NAMES:
                problem = "a name must be a plain word"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key_node.value in seen:
                problem = f"key {key_node.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise yaml.constructor.ConstructorError(None, None, "half a character", node.start_mark)
        return value


def read_config(path: str) -> tuple[dict[str, Any], str]:
    """Reads a YAML file of settings.

    Returns:
        The settings; and the same in YAML that leaves no doubt of what is a text.

    Raises:
        InputError: No such file, a folder, empty, too large, not UTF-8, not YAML, not a mapping, a key
            twice, a tag, or a setting that can only be typed.
        MachineError: It cannot be read.
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise InputError(f"{path}: must be a regular file")  # a pipe may never end
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        message, code = describe_os_error(error)
        raise (InputError if code == InputError.exit_code else MachineError)(message) from None
    if len(data) > MAX_CONFIG_BYTES:
        raise InputError(f"{path}: too large for a config ({len(data):,} bytes, limit {MAX_CONFIG_BYTES:,})")
    try:
        content = data.decode("utf-8")
        node = yaml.compose(content, Loader=_Loader)
        if node is not None and _count_nodes(node, {}) > MAX_CONFIG_NODES:
            raise InputError(f"{path}: too large for a config (more than {MAX_CONFIG_NODES:,} values)")
        config = yaml.load(content, Loader=_Loader)  # a SafeLoader
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte 0x{data[error.start]:02x} at offset {error.start})") from None
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
    for name in TYPED_ONLY:
        if name in config:
            raise InputError(f"{path}: {name} is given on the command line only (--{name})")
    for name in SECTIONS:
        if not isinstance(config.get(name, {}), dict):
            raise InputError(f"{path}: {name} must hold settings (name: value), got {config[name]!r}")
    for source, target in LINKS.items():
        section, _, name = target.partition(".")
        if name in config.get(section, {}):
            raise InputError(f"{path}: {target} is given as {source}")
    return config, yaml.serialize(node, explicit_start=True)


def _count_nodes(node: yaml.Node, counted: dict[int, int]) -> int:
    """Values in a YAML tree with every alias written out."""
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
    """`--config FILE`: read by `read_config`; jsonargparse applies what that returns."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        config, content = read_config(values)
        super().__call__(parser, cfg, content, option_string)  # type: ignore[no-untyped-call]
        cfg[self.dest][-1] = values  # the name of the file, for that of the run
        data = config.get("data")
        if isinstance(data, dict) and "text" in data:
            for name in TEXT_SETTINGS:
                if name not in data:
                    cfg[f"data.{name}"] = None


# ---- arguments


def is_typed(arguments: list[str], option: str) -> bool:
    """Whether an option (`--name value` or `--name=value`) is among the arguments."""
    return any(argument == option or argument.startswith(f"{option}=") for argument in arguments)


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Rewrites two options into what jsonargparse understands by them.

    `--prompt TEXT` (and `--sampling.stop_strings TEXT`) adds a text, taken literally, to a list that replaces the
    YAML's; `--data.text FILE` stands for itself: the address, checksum and fallback of the YAML's text do not apply
    to it.
    """
    prepared: list[str] = []
    texts: dict[str, list[str]] = {}
    seen: set[str] = set()
    rest = iter(arguments)
    for argument in rest:
        name, has_value, value = argument.partition("=")
        if name in TEXT_LISTS:
            if not has_value:
                following = next(rest, None)
                if following is None:
                    raise InputError(f"{name} needs a text")
                value = following
            if name == "--prompt":
                check_prompt(value)
            texts.setdefault(name, []).append(value)
            continue
        if name in TEXT_OPTIONS and name in seen:
            raise InputError(f"{name} is given twice; many documents are a folder, a glob or a .jsonl file")
        seen.add(name)
        if name == "--data.text":
            prepared += [f"--data.{one}=null" for one in TEXT_SETTINGS if not is_typed(arguments, f"--data.{one}")]
        prepared.append(argument)
    for name, values in texts.items():  # quoted, so that one that looks like YAML stays a text
        prepared.append(f"{name}=" + yaml.safe_dump(values, default_style='"', width=math.inf).strip())
    return prepared


def explain_parser_error(message: str, known: list[str]) -> str:
    """The message of jsonargparse as one line that names the setting and says what was probably meant.

    Args:
        message: What jsonargparse says.
        known: The names of all settings.
    """
    message = " ".join(message.split()).removeprefix('Parser key "config": ')
    if stray := re.search(r"[Uu]nrecognized arguments: (?!-)(\S+)", message):
        return f"'{stray[1]}' belongs to no option; options begin with --"
    if section := re.search(r"Parser key \"(\w+)\": Unable to load config ['\"](.*?)['\"]", message):
        return f"{section[1]} must be settings (--{section[1]}.NAME VALUE), not '{section[2]}'"
    unknown = re.search(
        r"does not accept (?:option|nested key) '([\w.+-]+)'|[Uu]nrecognized arguments: (?:--)?([\w.+-]+)"
        r"|Key '([\w.+-]+)' is not expected|No action for key \"([\w.+-]+)\"",
        message,
    )
    if unknown:
        name = next(group for group in unknown.groups() if group)
        close = difflib.get_close_matches(name, known, 1)
        return f"unknown setting '{name}'" + (f"; did you mean '{close[0]}'?" if close else "")
    wrong_type = re.search(r'Parser key "([\w.]+)": (.*)Given value type: .*Given value:(.*)', message) or re.search(
        r'Parser key "([\w.]+)": (.*?)(?:Got|Given) value:(.*)', message
    )
    if wrong_type:
        name, expected, value = (group.strip() for group in wrong_type.groups())
        for pattern, words in CLASS_ERRORS.items():
            if found := re.search(pattern, expected):
                return f"{name}: {words.format(found[1])}"
        expected = expected.partition(" Errors: ")[0]
        if name == "trainer.precision":
            return f"{name} must be one of {', '.join(PRECISIONS)}; got '{value}'"
        if name in CLASS_SETTINGS:
            for one in re.findall(r"'class_path': '(?:\w+\.)*(\w+)'", value):
                if reason := why_refused(one):
                    return f"{name}: {one} {reason}"
            return f"{name} must name a class of Lightning (class_path: NAME), not '{value}'"
        types = [TYPE_WORDS[one] for one in TYPE_WORDS if f"<class '{one}'>" in expected]
        if types:
            return f"{name} must be {' or '.join(types)}, not " + (
                "null" if value == "None" and "null" not in types else f"'{value}'"
            )
    return message


def explain_class_error(error: BaseException) -> str:
    """What went wrong, in one line, where a class that YAML names could not be made.

    Args:
        error: Of jsonargparse, whose causes are the class's own error.
    """
    name = "trainer"
    while True:
        if found := re.search(r"class_path '([\w.]+)'", str(error)):
            name = f"trainer: {found[1].rpartition('.')[2]}"
        if error.__cause__ is None:
            return f"{name}: {' '.join(str(error).split())}"
        error = error.__cause__


# ---- Lightning's settings


def check_trainer(trainer: Any) -> None:
    """Checks the `trainer.*` settings that Lightning accepts silently or refuses at length.

    Raises:
        InputError: A value is out of range, or asks for a device that this machine does not have.
    """
    limits = ("max_epochs", "max_steps", "max_time")
    if all(trainer[name] in (None, -1) for name in limits):
        raise InputError("one of trainer.max_epochs, trainer.max_steps and trainer.max_time must end the run")
    for name in limits[:2]:
        if trainer[name] not in (None, -1):
            require_integer(f"trainer.{name}", trainer[name], 1)
    if isinstance(trainer["max_time"], str):
        is_duration = re.fullmatch(r"\d+:\d\d:\d\d:\d\d", trainer["max_time"].strip()) is not None
        require(is_duration, "trainer.max_time", "be a duration as DD:HH:MM:SS", trainer["max_time"])
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        limit = trainer[name]
        if limit is not None:
            is_share = isinstance(limit, float) and 0 < limit <= 1
            is_count = isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1
            require(is_share or is_count, f"trainer.{name}", "be an int of at least 1 or a share above 0", limit)
    require_integer("trainer.accumulate_grad_batches", trainer["accumulate_grad_batches"], 1)
    require_integer("trainer.log_every_n_steps", trainer["log_every_n_steps"], 1)
    clip = trainer["gradient_clip_val"]
    if clip is not None:
        must = "be a finite number of at least 0"
        require_number("trainer.gradient_clip_val", clip, must, lambda limit: limit >= 0)
    if trainer["num_nodes"] != 1 and not launched_by_others():
        raise InputError(f"trainer.num_nodes ({trainer['num_nodes']}) needs torchrun or SLURM to start the processes")
    strategy = trainer["strategy"]
    if isinstance(strategy, str) and any(word in strategy for word in ("spawn", "fork", "notebook")):
        raise InputError(f"trainer.strategy {strategy} cannot carry a run's open files to other processes; take ddp")
    if isinstance(strategy, str) and strategy.startswith("deepspeed"):
        raise InputError(f"trainer.strategy: {strategy} {REFUSED_CLASSES['DeepSpeedStrategy']}")
    for setting, name in named_classes(trainer):
        if reason := why_refused(name):
            raise InputError(f"trainer.{setting}: {name} {reason}")
    check_device(trainer["accelerator"], trainer["devices"], trainer["precision"])


def why_refused(name: str) -> str | None:
    """Why a run cannot use a class of Lightning; None where it can."""
    kinds = [reason for end, reason in REFUSED_KINDS.items() if name.endswith(end)]
    return REFUSED_CLASSES.get(name, *kinds)


def named_classes(trainer: Any) -> list[tuple[str, str]]:
    """The settings that name classes, each with the name of one without its module."""
    found = []
    for setting in ("callbacks", "logger", "plugins", "profiler", "strategy"):
        value = trainer[setting]
        for one in value if isinstance(value, list) else [value]:
            if path := getattr(one, "class_path", None):
                found.append((setting, path.rpartition(".")[2]))
    return found
