"""The command predict: complete prompts with a checkpoint.

Settings come from the defaults, the YAML files in order, and the command line; later ones win. From a run's YAML file
only `prompt`, `sampling`, `trainer.accelerator` and `trainer.precision` are used.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from gpt_lightning.checkpoints.loading import LoadedCheckpoint, open_checkpoint
from gpt_lightning.cli.arguments import literal_texts
from gpt_lightning.cli.config_files import read_config
from gpt_lightning.cli.help import print_help, requested_help
from gpt_lightning.cli.options import TRAINER_HELP
from gpt_lightning.cli.parser_errors import ParserError, RaisingParser, explain_parser_error, unknown_setting
from gpt_lightning.console import PROGRAM, labeled, warn
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.errors import InputError
from gpt_lightning.evaluation.memorization import Memorization, describe_copied
from gpt_lightning.evaluation.training_text import training_tokens
from gpt_lightning.files import check_folder
from gpt_lightning.inference.batch import Completer, check_done, check_new, job_name, open_output, write_rows
from gpt_lightning.inference.completion import CompletedText, check_prompt, complete_all
from gpt_lightning.inference.packed_linear import pack
from gpt_lightning.inference.prompts import STANDARD_INPUT, open_prompts
from gpt_lightning.inference.sampling import SamplingConfig
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT
from gpt_lightning.runs.folder import resolve_latest
from gpt_lightning.training.config import TrainingConfig
from gpt_lightning.training.hardware import PRECISION_ALIASES, PRECISIONS, check_precision, choose_device
from gpt_lightning.training.optimizers import OptimizerConfig

# trainer.precision -> type of the weights; float32 for the others.
WEIGHTS = {
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "64-true": torch.float64,
    "64": torch.float64,
    64: torch.float64,
}
# The settings `model.*` of a checkpoint.
MODEL_SETTINGS = {"compile", "activation_checkpointing"}.union(
    one.name for kind in (GPTConfig, OptimizerConfig) for one in fields(kind)
)


@dataclass(frozen=True)
class PredictConfig:
    """What to complete, and where to write the completions.

    Attributes:
        config: YAML files of settings.
        ckpt_path: The checkpoint.
        prompt: Prompts from the command line or YAML.
        prompts_file: File of prompts; - for standard input.
        jsonl: Whether to write JSON lines to stdout.
        output: File to write JSON lines to.
        resume: Whether to resume the job that wrote `output`.
        interactive: Whether to complete the lines of standard input.
        copied: Whether to find what completions copy from the training text.
        sampling: Settings of sampling.
        accelerator: The setting `trainer.accelerator`.
        precision: The setting `trainer.precision`.

    Raises:
        InputError: There is not exactly one source of prompts, or an option of the output does not fit the others.
    """

    config: list[str]
    ckpt_path: str
    prompt: list[str]
    prompts_file: str | None
    jsonl: bool
    output: str | None
    resume: bool
    interactive: bool
    copied: bool
    sampling: SamplingConfig
    accelerator: str
    precision: str | int

    def __post_init__(self) -> None:
        for prompt in self.prompt:
            check_prompt(prompt)
        if self.prompts_file is not None and self.prompt:
            raise InputError("prompts come from --prompt or from --prompts_file; give one of them")
        if self.interactive:
            for name in ("prompts_file", "output", "jsonl"):
                if getattr(self, name):
                    raise InputError(f"--interactive reads from and writes to the terminal; leave --{name} out")
            if self.sampling.num_samples > 1:
                raise InputError("--interactive makes one completion at a time; leave sampling.num_samples out")
        elif self.prompts_file is None and not self.prompt:
            raise InputError("predict needs --prompt TEXT, --prompts_file FILE (- for standard input) or --interactive")
        if self.resume and self.output is None:
            raise InputError("--resume needs --output FILE, the file of the interrupted job")
        if self.output is not None:
            self._check_output(self.output)
        check_precision(self.precision)

    def _check_output(self, output: str) -> None:
        if self.jsonl:
            raise InputError("--output FILE is always JSON lines; leave --jsonl out")
        path = self.prompts_file
        if path not in (None, STANDARD_INPUT) and os.path.realpath(path) == os.path.realpath(output):
            raise InputError(f"{path}: is the --prompts_file; name another --output")
        if not output or os.path.isdir(output):
            raise InputError(f"--output must name a file, got {output!r}")
        check_folder(Path(output))
        if not self.resume:
            check_new(Path(output))


# ---- settings


def make_parser() -> RaisingParser:
    """Build the parser of all options of predict."""
    program, description = f"python -m {PROGRAM} predict", "Complete prompts with a checkpoint."
    parser = RaisingParser(prog=program, description=description, allow_abbrev=False)
    add = parser.add_argument
    add("-c", "--config", action="append", default=[], metavar="FILE", help="YAML file of settings; may be repeated.")
    add("--ckpt_path", type=str | None, default=None, metavar="CKPT", help="Checkpoint to sample from.")
    add("--prompt", type=list[str], default=[], metavar="TEXT", help="Text to complete; may be repeated.")
    help_line = "File with a prompt in each line, or .jsonl; - is standard input."
    add("--prompts_file", type=str | None, default=None, metavar="FILE", help=help_line)
    add("--jsonl", action="store_true", help="Write JSON lines to stdout instead of text.")
    add("--output", type=str | None, default=None, metavar="FILE", help="Write JSON lines to a new file.")
    add("--resume", action="store_true", help="Resume the interrupted job that wrote --output.")
    add("--interactive", action="store_true", help="Complete lines of standard input, each with all earlier text.")
    add("--copied", action="store_true", help="Find what completions copy from the training text, which must be there.")
    parser.add_class_arguments(SamplingConfig, "sampling", as_group=False, instantiate=False)
    add("--trainer.accelerator", type=str, default="auto", help=TRAINER_HELP["accelerator"])
    help_line = "Type of the weights: 32-true, bf16-true ...; auto: as in training."
    add("--trainer.precision", type=int | str, default="auto", help=help_line)
    return parser


def read_run_config(path: str) -> dict[str, Any]:
    """Return the settings of a YAML file that `predict` uses.

    Other settings of a run are ignored; those in the sections model, data, expected and trainer are not even checked.

    Raises:
        InputError: See `read_config`; or a name is not a setting of a run.
    """
    config, _ = read_config(path)
    for section in ("sampling", "trainer"):
        config |= {f"{section}.{name}": value for name, value in config.pop(section, {}).items()}
    used = ["prompt", "trainer.accelerator", "trainer.precision"]
    used += [f"sampling.{one.name}" for one in fields(SamplingConfig)]
    ignored = ["model", "data", "expected", "trainer", "init_from", *(one.name for one in fields(TrainingConfig))]
    for name in config:
        is_misspelt = name.startswith("trainer.") and difflib.get_close_matches(name, used, 1, 0.85)
        if name not in used and (is_misspelt or name.partition(".")[0] not in ignored):
            raise InputError(unknown_setting(name, used + ignored))
    return {name: value for name, value in config.items() if name in used}


def parse(arguments: list[str]) -> Namespace:
    """Return all settings from the defaults, YAML files and the command line."""
    parser = make_parser()
    try:
        arguments = literal_texts(arguments)
        if kind := requested_help(arguments):
            print_help(parser, "predict", kind)
        settings = parser.parse_args(arguments)
        from_yaml = parser.get_defaults()
        for path in settings.config:
            from_yaml = parser.parse_object(read_run_config(path), namespace=from_yaml)
        settings = parser.parse_args(arguments, namespace=from_yaml)
        parser.validate(settings, skip_unset=False)  # jsonargparse accepts YAML's null so far
        return settings
    except (ParserError, OverflowError, TypeError) as error:
        raise InputError(explain_parser_error(str(error), list(parser.get_defaults().keys()))) from None


# ---- completions


def build_network(loaded: LoadedCheckpoint, config: PredictConfig) -> GPT:
    """Build the checkpoint's network on the chosen device, with weights of the chosen type, packed for decoding.

    Raises:
        InputError: This machine has no such device, or the device does not support the precision.
    """
    precision = config.precision
    if precision == "auto":
        precision = loaded.content["gpt_lightning"]["fit"].get("trainer.precision", "32-true")
        if precision not in [*PRECISIONS, *PRECISION_ALIASES]:
            raise InputError(f"{loaded.name}: has an unknown trainer.precision ({precision})")
    device = choose_device(config.accelerator, precision if precision in WEIGHTS else None)
    network = loaded.build().to(device, WEIGHTS.get(precision))
    pack(network, config.sampling.batch_size)
    return network


def write_texts(completer: Completer, prompts: Iterable[str], is_single: bool) -> None:
    """Write each prompt and its completion to stdout.

    Args:
        completer: Completes the prompts.
        prompts: All prompts.
        is_single: Whether there is only one completion, which is then written piece by piece while it is generated.
    """
    if is_single:
        (prompt,) = prompts
        _show(prompt)
        for _ in completer([prompt], show=_show):
            _show("\n")
    else:
        for one in completer(prompts):
            print(one.text, flush=True)


def _show(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def converse(completer: Completer, context: str) -> None:
    """Complete lines of standard input until it ends (Ctrl-D), each with all earlier text as context.

    An empty line continues the last completion.

    Args:
        completer: Makes one completion of each prompt.
        context: Text before the first line; may be empty.
    """
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    has_terminal = sys.stdin.isatty()
    while True:
        if has_terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        entered = sys.stdin.readline()
        if not entered:
            return
        entered = entered.removesuffix("\n")
        if entered:
            check_prompt(entered)
            context += ("\n" if context else "") + entered
        if not context:
            continue
        for one in completer([context], show=_show, warns=False):
            context += one.completion
            _show("\n")


def reporting_copies(completer: Completer, memorization: Memorization) -> Completer:
    """Return a completer that writes a line to stderr after each completion: how much of it is copied."""

    def complete(prompts: Iterable[str], **options: Any) -> Iterator[CompletedText]:
        for one in completer(prompts, **options):
            yield one  # the caller writes it to stdout before it asks for the next one
            print(labeled("copied", describe_copied(memorization.describe(one), one.completion)), file=sys.stderr)

    return complete


def write_json_lines(
    completer: Completer,
    prompts: list[str] | Iterator[str],
    config: PredictConfig,
    job: str,
    memorization: Memorization | None,
) -> None:
    """Write a JSON line for each completion, to stdout or to the output file.

    Args:
        completer: Completes the prompts.
        prompts: All prompts of the job.
        config: Where to write, and whether to resume.
        job: See `job_name`.
        memorization: Finds the field `copied` of each row; None leaves it out.
    """

    def describe(one: CompletedText) -> dict[str, Any]:
        return {} if memorization is None else {"copied": memorization.describe(one)}

    sampling = config.sampling
    total = len(prompts) * sampling.num_samples if isinstance(prompts, list) else None
    if config.output is None:
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # JSON must be UTF-8
        write_rows(completer, prompts, sys.stdout, job, 0, sampling.batch_size, total, describe)
        return
    output = Path(config.output)
    file, done = open_output(output, config.resume, job)
    with file:
        all_prompts = check_done(prompts, done, sampling.num_samples, output)
        write_rows(completer, all_prompts, file, job, len(done), sampling.batch_size, total, describe)


def run(arguments: list[str]) -> None:
    """Run `predict` with these arguments."""
    settings = parse(arguments)
    if not settings.ckpt_path:
        raise InputError("predict needs --ckpt_path CKPT")
    sampling = SamplingConfig(**settings.pop("sampling").as_dict())
    config = PredictConfig(sampling=sampling, **settings.pop("trainer").as_dict(), **settings.as_dict())
    loaded = open_checkpoint(config.ckpt_path)
    for name in sorted(set(loaded.content["hyper_parameters"]) - MODEL_SETTINGS):
        warn(f"{config.ckpt_path}: ignoring its unknown setting model.{name}")
    sampling.check_vocabulary(loaded.config.vocab_size)
    prompts = config.prompt if config.prompts_file is None else open_prompts(config.prompts_file)
    tokenizer = load_tokenizer(loaded.tokenizer)
    memorization = None
    if config.copied:
        memorization = Memorization(training_tokens(loaded.content, loaded.name), tokenizer)
    network = build_network(loaded, config)
    completer: Completer = partial(complete_all, network, tokenizer, sampling=sampling)
    has_rows = config.jsonl or config.output is not None
    if memorization is not None and not has_rows:
        completer = reporting_copies(completer, memorization)
    if config.interactive:
        converse(completer, "\n".join(config.prompt))
    elif has_rows:
        weight = network.pos_emb.weight
        rest = f"{weight.dtype} {weight.device.type}{' copied' if config.copied else ''}"
        job = job_name(Path(resolve_latest(config.ckpt_path)), sampling, rest)
        write_json_lines(completer, prompts, config, job, memorization)
    else:
        write_texts(completer, prompts, isinstance(prompts, list) and len(prompts) * sampling.num_samples == 1)
