"""Reword jsonargparse's errors as one line that names the setting."""

from __future__ import annotations

import ast
import difflib
import re
from typing import NoReturn

import yaml
from jsonargparse import ArgumentParser

from gpt_lightning.cli.arguments import LINKS, TEXT_LISTS
from gpt_lightning.cli.config_files import one_line_yaml
from gpt_lightning.cli.trainer_options import CLASS_SETTINGS, TRAINER_OWNED, why_refused
from gpt_lightning.errors import InputError

TYPES = {
    "int": "an int",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "dict": "settings",
    "NoneType": "null",
}
# Settings of nanoGPT, litgpt and transformers -> the same setting here.
OTHER_NAMES = {
    "block_size": "model.context_length",
    "n_positions": "model.context_length",
    "n_embd": "model.emb_dim",
    "hidden_size": "model.emb_dim",
    "n_head": "model.n_heads",
    "num_attention_heads": "model.n_heads",
    "n_layer": "model.n_layers",
    "num_hidden_layers": "model.n_layers",
    "dropout": "model.drop_rate",
    "resid_pdrop": "model.drop_rate",
    "embd_pdrop": "model.drop_rate",
    "attn_pdrop": "model.drop_rate",
    "bias": "model.qkv_bias",
    "attn_bias": "model.qkv_bias",
    "padded_vocab_size": "model.vocab_size",
    "tie_word_embeddings": "model.tie_weights",
    "lr": "model.learning_rate",
    "min_lr": "model.min_learning_rate",
    "warmup_iters": "model.warmup_steps",
    "lr_warmup_steps": "model.warmup_steps",
    "max_iters": "trainer.max_steps",
    "num_train_epochs": "trainer.max_epochs",
    "epochs": "trainer.max_epochs",
    "seed": "seed_everything",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "grad_clip": "trainer.gradient_clip_val",
    "max_norm": "trainer.gradient_clip_val",
    "max_grad_norm": "trainer.gradient_clip_val",
    "per_device_train_batch_size": "data.batch_size",
    "micro_batch_size": "data.batch_size",
    "eval_interval": "evaluate_every",
    "eval_steps": "evaluate_every",
    "eval_iters": "evaluate_batches",
    "save_interval": "save_every",
    "save_steps": "save_every",
    "log_interval": "trainer.log_every_n_steps",
    "logging_steps": "trainer.log_every_n_steps",
}
UNKNOWN = (
    r"does not accept (?:option|nested key) '([\w.+-]+)'|[Uu]nrecognized arguments: (?:--)?([\w.+-]+)"
    r"|Key '([\w.+-]+)' is not expected|No action for key \"([\w.+-]+)\""
)
UNION_TYPE = r'Parser key "([\w.]+)": (.*)Given value type: .*Given value:(.*)'
WRONG_TYPE = r'Parser key "([\w.]+)": (.*?)(?:Got|Given) value:(.*)'
WRONG_SECTION = r"Parser key \"(\w+)\": Unable to load config ['\"](.*?)['\"]"
WORDS = {
    r"[Uu]nrecognized arguments: (?!-)(\S+)": "unexpected argument '{0}'; options begin with --",
    r"Parser key \"([\w.]+)\": .*Importing '([\w.]+)' is not allowed": (
        "{0}: class_path '{1}' is not allowed; name a class of Lightning that takes no code, or use --allow_classes_of"
    ),
    r"Parser key \"([\w.]+)\": .*given class_path '([\w.]+)': ": "{0}: class_path '{1}' not found",
    r"Parser key \"([\w.]+)\": .*Option '(\w+)' is not accepted": "{0}: unknown option '{1}'",
    r"Parser key \"([\w.]+)\": .*arguments are required: (\w+)": "{0}: option '{1}' is missing",
}


class ParserError(InputError):
    """An error of jsonargparse, to be reworded by `explain_parser_error`."""


class RaisingParser(ArgumentParser):
    """A parser that raises `ParserError` instead of printing the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ParserError(message)


def unknown_setting(name: str, known: list[str]) -> str:
    """Return the message for an unknown setting, with a suggestion if there is one.

    Args:
        name: Name of the unknown setting, in any section.
        known: Names of all settings of the command.
    """
    word = name.rpartition(".")[2]
    if word in TRAINER_OWNED:
        instead = TRAINER_OWNED[word]
        is_setting = instead is not None and instead.removeprefix("--") in known
        return f"{name} is not used here; {f'use {instead}' if is_setting else 'leave it out'}"
    settings = [setting for setting in known if setting not in LINKS.values()]
    close = [setting for setting in settings if setting == OTHER_NAMES.get(word)]
    close += [setting for setting in settings if setting.rpartition(".")[2] == word]
    if not close and word not in OTHER_NAMES:
        close = difflib.get_close_matches(name, settings, 1)
    return f"unknown setting '{name}'" + (f"; did you mean '{close[0]}'?" if close else "")


def show_value(text: str) -> str:
    """Return a value from a message of jsonargparse as YAML would show it, with quotes around texts only.

    Args:
        text: The value as Python prints it, or as it was given on the command line.
    """
    for read in (ast.literal_eval, yaml.safe_load) if text else ():
        try:
            value = read(text)
            if value is None or isinstance(value, (bool, int, float, list, dict)):
                return one_line_yaml(value)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, yaml.YAMLError):
            continue
    return f"'{text}'"


def explain_parser_error(message: str, known: list[str]) -> str:
    """Reword a message of jsonargparse as one line with the setting, its value and what it must be.

    Args:
        message: The message of jsonargparse.
        known: Names of all settings of the command.
    """
    message = " ".join(message.split()).removeprefix('Parser key "config": ')
    for pattern, words in WORDS.items():
        if found := re.search(pattern, message):
            return words.format(*found.groups())
    if section := re.search(WRONG_SECTION, message):
        name, value = section.groups()
        return f"{name} must be settings (--{name}.NAME VALUE), not {show_value(value)}"
    if unknown := re.search(UNKNOWN, message):
        return unknown_setting(next(filter(None, unknown.groups())), known)
    wrong = re.search(UNION_TYPE, message) or re.search(WRONG_TYPE, message)
    if wrong is None:
        return message
    name, expected, value = (group.strip() for group in wrong.groups())
    allowed = expected.partition(" Errors: ")[0].replace("list[float]", "<class 'list'>")
    types = [words for one, words in TYPES.items() if f"<class '{one}'>" in allowed]
    is_text = value == "None" and "null" in types  # null would be accepted
    given = f"'{value}'" if is_text else show_value(value)
    if f"--{name}" in TEXT_LISTS:
        # Of a list jsonargparse names the item that is no text, so that a text stands where the list should.
        hint = f"write {name}: [{given}]" if given.startswith("'") else "put each text in quotes"
        return f"{name} must be a list of texts, not {given}; {hint}"
    if name in CLASS_SETTINGS:
        classes = re.findall(r"'class_path': '(?:\w+\.)*(\w+)'", value)
        reasons = [f"{name}: {one} {reason}" for one in classes if (reason := why_refused(one))]
        return next(iter(reasons), f"{name} must name a class of Lightning (class_path: NAME), not {given}")
    return f"{name} must be {' or '.join(types)}, not {given}" if types else message


def explain_class_error(error: BaseException) -> str:
    """Return as one line why a class that YAML names could not be constructed.

    Args:
        error: The error of jsonargparse; the last of its causes is the class's own error.
    """
    name = "trainer"
    while True:
        if found := re.search(r"class_path '([\w.]+)'", str(error)):
            name = f"trainer: {found[1].rpartition('.')[2]}"
        if error.__cause__ is None:
            return f"{name}: {' '.join(str(error).split())}"
        error = error.__cause__
