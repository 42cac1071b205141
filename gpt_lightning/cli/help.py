"""The help of the commands: `--help` lists the main settings, one per line; docs/settings.md lists all settings."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from gpt_lightning.cli.config_files import one_line_yaml
from gpt_lightning.cli.options import TRAINER_HELP, settings_of
from gpt_lightning.console import PROGRAM
from gpt_lightning.errors import InputError

COLUMN = 39  # where the explanations start


@dataclass(frozen=True)
class Help:
    """The short help of a command.

    Attributes:
        usage: The rest of the usage line.
        description: What the command does.
        groups: Title -> names of settings.
        explained: Explanations that differ from those of `fit`.
        values: Defaults that differ from those of `fit`.
        rest: Where the other settings are explained.
    """

    usage: str
    description: str
    groups: dict[str, str]
    explained: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    rest: str = "All settings: --help=all."


FIT_GROUPS = {
    "data": "data.text data.val_text data.tokenizer data.train_ratio data.batch_size data.stride",
    "model": "model.context_length model.emb_dim model.n_heads model.n_layers model.drop_rate model.qkv_bias "
    "model.tie_weights model.init init_from",
    "training": "model.optimizer model.learning_rate model.weight_decay model.warmup_steps model.min_learning_rate "
    "trainer.max_epochs trainer.max_steps trainer.accumulate_grad_batches trainer.gradient_clip_val "
    "trainer.accelerator trainer.devices trainer.precision seed_everything evaluate_every early_stopping_patience",
    "sampling": "prompt sampling.max_new_tokens sampling.temperature sampling.top_k",
    "saving": "run_dir resume save_every save_minutes",
}
EVALUATED = "data.batch_size trainer.accelerator trainer.precision"
OF_EVALUATION = {"trainer.precision": "Numeric precision of Lightning."}
FROM_CHECKPOINT = {"trainer.precision": "32-true", "data.batch_size": "N"}
HELP = {
    "fit": Help(
        "fit --config FILE [options]",
        "Train a GPT. Settings come from YAML files and from the command line, which wins.",
        FIT_GROUPS,
        rest="All settings: --help=all and docs/settings.md.",
    ),
    "check": Help(
        "check --config FILE [options]",
        "Estimate the time, memory and disk of a run from three discarded steps. It takes the settings of fit.",
        FIT_GROUPS | {"saving": "run_dir save_every save_minutes", "several devices": "devices strategy"},
        rest="All settings: --help=all and docs/settings.md.",
    ),
    "validate": Help(
        "validate --ckpt_path CKPT [--data.text FILE]",
        "Print the loss and perplexity of a checkpoint on its validation split, or on all of another text.",
        {"options": f"ckpt_path data.text {EVALUATED} trainer.limit_val_batches model.compile"},
        OF_EVALUATION | {"data.text": "Text to evaluate instead of the checkpoint's validation split."},
        FROM_CHECKPOINT,
    ),
    "test": Help(
        "test --ckpt_path CKPT --data.test_text FILE",
        "Print the loss and perplexity of a checkpoint on a text.",
        {"options": f"ckpt_path data.test_text {EVALUATED} trainer.limit_test_batches model.compile"},
        OF_EVALUATION | {"data.test_text": "Text to evaluate."},
        FROM_CHECKPOINT,
    ),
    "predict": Help(
        "predict --ckpt_path CKPT --prompt TEXT [options]",
        "Complete prompts with a checkpoint.",
        {
            "prompts": "ckpt_path prompt prompts_file interactive config",
            "completions": "output resume jsonl copied",
            "sampling": "sampling.max_new_tokens sampling.temperature sampling.top_k sampling.top_p sampling.min_p "
            "sampling.repetition_penalty sampling.no_repeat_ngram_size sampling.min_new_tokens sampling.eos_id "
            "sampling.stop_strings sampling.num_samples sampling.seed sampling.batch_size",
            "device": "trainer.accelerator trainer.precision",
        },
        rest="docs/sampling.md explains them.",
    ),
}
# Placeholders for the values of options without a default.
PLACEHOLDERS = {
    "ckpt_path": "CKPT",
    "config": "FILE",
    "data.test_text": "FILE",
    "data.text": "FILE",
    "devices": "N",
    "init_from": "CKPT",
    "output": "FILE",
    "prompt": "TEXT",
    "prompts_file": "FILE",
    "run_dir": "DIR",
    "sampling.stop_strings": "TEXT",
}
SETTINGS_PAGE = f"""# Settings

<!-- python -m {PROGRAM} fit --help=markdown > docs/settings.md -->

Settings come from the defaults, then from the YAML files of `--config` in order, then from the command line as
`--section.name value`; the later wins. `validate` and `test` use the settings of the checkpoint. To resume a run, repeat
its config and what was given on the command line, or give the YAML file in its folder.

```bash
python -m {PROGRAM} fit --help
python -m {PROGRAM} fit --help=all
```

`trainer.*` are options of Lightning's `Trainer`. Those that are not listed here are explained in
[its documentation](https://lightning.ai/docs/pytorch/stable/common/trainer.html).

## Coming from another trainer

| here | nanoGPT | litgpt | transformers |
|---|---|---|---|
| `context_length` | `block_size` | `block_size` | `n_positions` |
| `emb_dim`, `n_heads`, `n_layers` | `n_embd`, `n_head`, `n_layer` | `n_embd`, `n_head`, `n_layer` | `n_embd`, `n_head`, `n_layer` |
| `drop_rate` | `dropout` | none | `resid_pdrop`, `embd_pdrop`, `attn_pdrop` |
| `qkv_bias` | `bias` (of all layers) | `attn_bias` | always on |
| `data.batch_size` | `batch_size` | `--train.micro_batch_size` | `per_device_train_batch_size` |
| `accumulate_grad_batches` | `gradient_accumulation_steps` | `--train.global_batch_size` / micro | `gradient_accumulation_steps` |
| `warmup_steps`, `min_learning_rate` | `warmup_iters`, `min_lr` | `--train.lr_warmup_steps`, `--train.min_lr` | `warmup_steps`, `lr_scheduler_type` |
| `gradient_clip_val` | `grad_clip` | `--train.max_norm` | `max_grad_norm` |
| `evaluate_every`, `evaluate_batches` | `eval_interval`, `eval_iters` | `--eval.interval`, `--eval.max_iters` | `eval_steps` |
"""  # noqa: E501


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
        command: A command of `HELP`.
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
    """Return the help of a command: each main setting with its default and one line.

    Args:
        parser: Of all its settings.
        command: A command of `HELP`.
    """
    page = HELP[command]
    lines = [f"usage: python -m {PROGRAM} {page.usage}", "", page.description]
    explained, defaults = explanations(parser) | page.explained, parser.get_defaults()
    for title, names in page.groups.items():
        lines += ["", f"{title}:"]
        for name in names.split():
            value = page.values.get(name) or _value(name, defaults.get(name))
            first_sentence = re.split(r"\. (?=[A-Z]|null)", explained[name])[0].removesuffix(".")
            lines.append(f"{f'  --{name} {value}'.rstrip():<{COLUMN}} {first_sentence}")
    return "\n".join([*lines, "", page.rest])


def settings_page(parser: ArgumentParser) -> str:
    """Return docs/settings.md: every setting of `fit` that is not left to Lightning's documentation.

    Args:
        parser: The parser of `fit`.
    """
    explained, defaults = explanations(parser), parser.get_defaults()
    sections: dict[str, list[str]] = {name: [] for name in ("data", "model", "sampling", "expected", "trainer", "")}
    for name, text in explained.items():
        section, _, short = name.rpartition(".")
        is_known = section != "trainer" or short in TRAINER_HELP
        if is_known and section in sections and name in defaults and name not in sections:
            sections[section].append(f"| `{name}` | `{_yaml(defaults[name])}` | {text} |")
    lines = [SETTINGS_PAGE]
    for section, rows in sections.items():
        lines += [f"## {section or 'The run'}", "", "| setting | default | |", "|---|---|---|", *rows, ""]
    return "\n".join(lines).rstrip()


def explanations(parser: ArgumentParser) -> dict[str, str]:
    """Return the help text of every setting, by its full name."""
    return {action.dest: " ".join((action.help or "").split()) for action in settings_of(parser)}


def _value(name: str, default: Any) -> str:
    """Return the value to show after an option: its default as YAML, or a placeholder."""
    if name in PLACEHOLDERS and default in (None, [], ""):
        return PLACEHOLDERS[name]
    return "" if default is False and "." not in name else _yaml(default)


def _yaml(value: Any) -> str:
    return textwrap.shorten(one_line_yaml(value), 60)
