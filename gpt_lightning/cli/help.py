"""The help of the commands: `--help` lists the main settings, one per line; docs/settings.md lists all settings."""

from __future__ import annotations

import re
import textwrap
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from gpt_lightning.cli.config_files import one_line_yaml
from gpt_lightning.console import PROGRAM
from gpt_lightning.errors import InputError

COLUMN = 39  # where the explanations start
# Command -> its usage and description, and its groups of settings: title -> names.
MATTER = {
    "fit": (
        "fit --config FILE [options]\n\n"
        "Train a GPT. Settings come from YAML files and from the command line, which wins.",
        {
            "data": "data.text data.val_text data.tokenizer data.train_ratio data.batch_size data.stride",
            "model": "model.context_length model.emb_dim model.n_heads model.n_layers model.drop_rate model.qkv_bias "
            "model.tie_weights model.init init_from",
            "training": "model.learning_rate model.weight_decay model.warmup_steps model.min_learning_rate "
            "trainer.max_epochs trainer.max_steps trainer.accumulate_grad_batches trainer.gradient_clip_val "
            "trainer.accelerator trainer.devices trainer.precision seed_everything evaluate_every "
            "early_stopping_patience",
            "sampling": "prompt sampling.max_new_tokens sampling.temperature sampling.top_k",
            "saving": "run_dir resume save_every save_minutes",
        },
    ),
    "validate": (
        "validate --ckpt_path CKPT [--data.text FILE]\n\n"
        "Print the loss and perplexity of a checkpoint on its validation split, or on the whole of another text.",
        {
            "options": "ckpt_path data.text data.batch_size trainer.accelerator trainer.precision "
            "trainer.limit_val_batches model.compile"
        },
    ),
    "test": (
        "test --ckpt_path CKPT --data.test_text FILE\n\nPrint the loss and perplexity of a checkpoint on a text.",
        {
            "options": "ckpt_path data.test_text data.batch_size trainer.accelerator trainer.precision "
            "trainer.limit_test_batches model.compile"
        },
    ),
    "predict": (
        "predict --ckpt_path CKPT --prompt TEXT [options]\n\nComplete prompts with a checkpoint.",
        {
            "prompts": "ckpt_path prompt prompts_file interactive config",
            "completions": "output resume jsonl",
            "sampling": "sampling.max_new_tokens sampling.temperature sampling.top_k sampling.top_p sampling.min_p "
            "sampling.repetition_penalty sampling.no_repeat_ngram_size sampling.min_new_tokens sampling.eos_id "
            "sampling.stop_strings sampling.num_samples sampling.seed sampling.batch_size",
            "device": "trainer.accelerator trainer.precision",
        },
    ),
}
MATTER["check"] = (
    "check --config FILE [options]\n\n"
    "Estimate the time, memory and disk of a run from three discarded steps. It takes the options of fit.",
    MATTER["fit"][1],
)
# Placeholders for the values of options without a default.
PLACEHOLDERS = {
    "ckpt_path": "CKPT",
    "config": "FILE",
    "data.test_text": "FILE",
    "data.text": "FILE",
    "init_from": "CKPT",
    "output": "FILE",
    "prompt": "TEXT",
    "prompts_file": "FILE",
    "run_dir": "DIR",
    "sampling.stop_strings": "TEXT",
}
# Help lines of the Trainer's main options; Lightning's documentation explains the others.
TRAINER = {
    "max_epochs": "Epochs of the whole run; -1 for no limit.",
    "max_steps": "Optimizer steps of the whole run; -1 for no limit.",
    "max_time": "Time limit as DD:HH:MM:SS; null for none.",
    "accumulate_grad_batches": "Batches whose gradients are summed for one optimizer step.",
    "gradient_clip_val": "Largest norm of the gradient; null does not clip.",
    "accelerator": "Device: auto (the fastest available), cpu, cuda or mps.",
    "devices": "Number of devices, or auto.",
    "strategy": "How devices work together: auto, ddp or fsdp.",
    "num_nodes": "Number of machines, started by torchrun or SLURM.",
    "log_every_n_steps": "Optimizer steps between rows of metrics.",
    "callbacks": "Callbacks of Lightning, by class_path.",
    "logger": "Loggers of Lightning, by class_path, besides TensorBoard; false for none.",
    "enable_progress_bar": "Whether to show a progress bar.",
}

OWN = ("precision", "limit_train_batches", "limit_val_batches", "limit_test_batches")  # lightning_cli.py has their help

SETTINGS_PAGE = f"""# Settings

<!-- python -m {PROGRAM} fit --help=markdown > docs/settings.md -->

Settings come from the defaults, then from the YAML files of `--config` in order, then from the command line as
`--section.name value`; the later wins. `validate`, `test` and a resumed run start from those of the checkpoint.

```bash
python -m {PROGRAM} fit --help
python -m {PROGRAM} fit --help=all
```

`trainer.*` are options of Lightning's `Trainer`. Those that are not listed here are explained in
[its documentation](https://lightning.ai/docs/pytorch/stable/common/trainer.html).
"""


def requested_help(arguments: list[str]) -> str | None:
    """Return which help the arguments ask for: "short", "all", "markdown", or None."""
    for argument in arguments:
        name, _, kind = argument.partition("=")
        if name in ("-h", "--help"):
            return kind or "short"
    return None


def print_help(parser: ArgumentParser, command: str, kind: str) -> NoReturn:
    """Print the help of a command and exit.

    Args:
        parser: Of all its settings.
        command: A command of `MATTER`.
        kind: See `requested_help`.

    Raises:
        InputError: There is no such kind.
        SystemExit: With code 0.
    """
    kinds = {"short": lambda: short_help(parser, command), "all": parser.format_help}
    if command == "fit":
        kinds["markdown"] = lambda: settings_page(parser)
    if kind not in kinds:
        raise InputError(f"--help={kind}: must be --help or --help=all")
    print(kinds[kind]())
    raise SystemExit(0)


def short_help(parser: ArgumentParser, command: str) -> str:
    """Return the short help of a command: one line with the default and a sentence for each main setting.

    Args:
        parser: The parser of all its settings.
        command: A key of `MATTER`.
    """
    start, groups = MATTER[command]
    lines = [f"usage: python -m {PROGRAM} {start}"]
    explained = explanations(parser)
    defaults = parser.get_defaults()
    for title, names in groups.items():
        lines += ["", f"{title}:"]
        for name in names.split():
            option = f"  --{name} {_value(name, defaults.get(name))}".rstrip()
            first_sentence = re.split(r"\. (?=[A-Zn])", explained[name])[0].removesuffix(".")
            lines.append(f"{option:<{COLUMN}} {first_sentence}")
    rest = "More: docs/sampling.md." if command == "predict" else "All settings: --help=all and docs/settings.md."
    lines += ["", rest]
    return "\n".join(lines)


def settings_page(parser: ArgumentParser) -> str:
    """Return docs/settings.md: every setting of `fit` that is not left to Lightning's documentation.

    Args:
        parser: The parser of `fit`.
    """
    explained, defaults = explanations(parser), parser.get_defaults()
    sections: dict[str, list[str]] = {"data": [], "model": [], "sampling": [], "trainer": [], "": []}
    for name, text in explained.items():
        section, _, short = name.rpartition(".")
        is_known = section != "trainer" or short in {*TRAINER, *OWN}
        if is_known and section in sections and name in defaults and name not in sections:
            sections[section].append(f"| `{name}` | `{_yaml(defaults[name])}` | {text} |")
    lines = [SETTINGS_PAGE]
    for section, rows in sections.items():
        lines += [f"## {section or 'The run'}", "", "| setting | default | |", "|---|---|---|", *rows, ""]
    return "\n".join(lines).rstrip()


def explanations(parser: ArgumentParser) -> dict[str, str]:
    """Return the help text of every option, by its full name."""
    found = {}
    for action in parser._actions:  # jsonargparse has no public list of a parser's options
        text = TRAINER.get(action.dest.removeprefix("trainer."), action.help)
        found[action.dest] = " ".join(str(text).split())
    return found


def _value(name: str, default: Any) -> str:
    """Return the value to show after an option: its default as YAML, or a placeholder."""
    if name in PLACEHOLDERS and default in (None, [], ""):
        return PLACEHOLDERS[name]
    return "" if default is False and "." not in name else _yaml(default)


def _yaml(value: Any) -> str:
    return textwrap.shorten(one_line_yaml(value), 60)
