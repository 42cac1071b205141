"""The commands on LightningCLI: settings, their links and precedence, and what each command does.

Settings come, the later winning, from the defaults, from the checkpoint, from the YAML files in order,
and from the command line. A checkpoint's text yields to `--data.text` alone.
"""

from __future__ import annotations

import logging
import threading
import warnings
from enum import Enum
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

import torch
import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.cli.arguments import (
    ALLOW_CLASSES,
    LINKS,
    TEXT_SETTINGS,
    TYPED_ONLY,
    is_typed,
    prepare_arguments,
    typed_modules,
)
from gpt_lightning.cli.commands.predict import check_sources, predict
from gpt_lightning.cli.config_files import ConfigFile
from gpt_lightning.cli.parser_errors import ParserError, explain_class_error, explain_parser_error
from gpt_lightning.cli.precedence import FREE_ON_RESUME, checkpoint_settings
from gpt_lightning.cli.trainer_options import (
    LIMITS,
    TAKING_CODE,
    TRAINER_DEFAULTS,
    TRAINER_FIXED,
    TRAINER_OWNED,
    check_trainer,
    named_classes,
)
from gpt_lightning.console import PROGRAM, say, warn
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.data.sources import absolute, short_name
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.errors import InputError
from gpt_lightning.inference.completion import check_prompt, complete_all
from gpt_lightning.inference.packed_linear import pack
from gpt_lightning.inference.sampling import Sampling
from gpt_lightning.models.config import ARCHITECTURE
from gpt_lightning.training import summary
from gpt_lightning.training.callbacks.checkpointing import AtomicCheckpointIO, load_weights
from gpt_lightning.training.distributed import launched_by_others
from gpt_lightning.training.dry_run import check
from gpt_lightning.training.fit import train
from gpt_lightning.training.hardware import PRECISIONS, choose_precision
from gpt_lightning.training.module import GPTModule
from gpt_lightning.training.resume import RunChoice, check_same_text, choose_run
from gpt_lightning.validation import require, require_integer, require_number

# Of the weights that `predict` reads, by trainer.precision; float32 where it is another one.
WEIGHTS = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}


class Parser(LightningArgumentParser):
    """A parser that raises its errors instead of printing every option there is."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise ParserError(message)


class CLI(LightningCLI):
    """LightningCLI for one command.

    Args:
        command: fit, check, validate, test or predict.
        arguments: What was typed after it.
    """

    def __init__(self, command: str, arguments: list[str]) -> None:
        self.is_check = command == "check"  # the settings of fit, of which nothing is made
        self.command = command = "fit" if self.is_check else command
        self.arguments = arguments
        self.checkpoint: dict[str, Any] | None = None
        self.starts_from: tuple[str, dict[str, Any]] | None = None
        super().__init__(
            GPTModule,
            TextDataModule,
            save_config_callback=None,
            parser_class=Parser,
            parser_kwargs={"prog": f"python -m {PROGRAM}", "allow_abbrev": False},
            args=[command, *prepare_arguments(arguments)],
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # ---- settings

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the one that was asked for: building the others' parsers would take seconds."""
        data = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
        return {self.command: data | {"ckpt_path", "weights_only", "verbose", "return_predictions"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return self.parser_class(**kwargs)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("-c", "--config", action=ConfigFile, help="YAML file of settings; may be repeated")
        parser.add_argument("--seed_everything", type=int, default=123, help="seed of everything random in a run")

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(GPTModule, "model", sub_configs=True)
        parser.add_class_arguments(TextDataModule, "data", sub_configs=True)
        parser.add_class_arguments(
            Trainer, "trainer", skip={*TRAINER_OWNED, *LIMITS}, instantiate=False, fail_untyped=False, sub_configs=True
        )
        for name in LIMITS:
            what = "how many batches (an int), or which share of them (a float)"
            parser.add_argument(f"--trainer.{name}", type=int | float | None, default=None, help=what)
        parser.set_defaults(TRAINER_DEFAULTS)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Sampling, "sampling")
        parser.add_argument("--prompt", type=list[str], default=[], help="text to continue; may be repeated")
        parser.add_argument(
            "--precision",
            type=str,
            default="auto",
            help="of the arithmetic: auto (bf16-mixed where the hardware gains from it), or one of trainer.precision",
        )
        parser.add_argument(
            "--peak_flops",
            type=float | None,
            default=None,
            help="floating-point operations per second of one device, of which the model's share is logged; "
            "null takes the data sheet's, where it is known",
        )
        parser.add_argument("--evaluate_every", type=int, default=5, help="optimizer steps between evaluations")
        parser.add_argument("--evaluate_batches", type=int, default=5, help="training batches whose loss is evaluated")
        parser.add_argument(
            "--sample_every", type=int | None, default=None, help="optimizer steps between samples; null: each epoch"
        )
        parser.add_argument(
            "--early_stopping_patience",
            type=int | None,
            default=None,
            help="evaluations without a lower validation loss after which the run ends; null: never",
        )
        parser.add_argument(
            "--save_every",
            type=int | None,
            default=None,
            help="optimizer steps between checkpoints",
        )
        parser.add_argument(
            "--save_minutes",
            type=float | None,
            default=None,
            help="minutes between checkpoints; where save_every is null too, they take 1/40 of the time",
        )
        if self.command == "fit":
            parser.add_argument(
                "--init_from",
                type=str | None,
                default=None,
                help="checkpoint whose weights and architecture a new run starts from, with a fresh optimizer",
            )
            parser.add_argument("--run_dir", type=str | None, default=None, help="the run's folder (typed only)")
            parser.add_argument("--resume", action="store_true", help="go on with the newest run (typed only)")
            parser.add_argument(
                "--allow_data_change", action="store_true", help="go on with a run on another text (typed only)"
            )
            parser.add_argument(
                ALLOW_CLASSES,
                type=str | None,
                default=None,
                metavar="MODULE",
                help="let YAML name classes of this module of yours, which runs its code; may be repeated (typed only)",
            )
        else:
            parser.add_argument("--ckpt_path", type=str | None, default=None, help="checkpoint to use")
        if self.command == "predict":
            parser.add_argument(
                "--prompts_file", type=str | None, default=None, help="prompts, a line each, or .jsonl; - is stdin"
            )
            parser.add_argument("--jsonl", action="store_true", help="write JSON lines instead of text")
            parser.add_argument("--output", type=str | None, default=None, help="file for JSON lines")
            parser.add_argument("--resume", action="store_true", help="go on with the output of a stopped job")
            parser.add_argument("--interactive", action="store_true", help="complete what is typed, line by line")
        for source, target in LINKS.items():
            parser.link_arguments(source, target)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; where there is a checkpoint, again with its settings as defaults."""
        self._parse(parser, args)
        settings = self.config[self.command]
        try:
            self._parser(self.command).validate(settings, skip_unset=False)  # a null of YAML is let through until here
        except TypeError as error:
            raise InputError(explain_parser_error(str(error), self._setting_names())) from None
        if self.is_check and settings["resume"]:
            raise InputError("check looks at new runs; leave --resume out")
        if self.command == "fit":
            self.run_choice = self._choose_run(settings)
            self.checkpoint_path = self.run_choice.checkpoint
            self.checkpoint = self.run_choice.content
        else:
            self.checkpoint_path = settings["ckpt_path"]
            if not self.checkpoint_path:
                raise InputError(f"{self.command} needs --ckpt_path CKPT")
            self.checkpoint = read_checkpoint(self.checkpoint_path)
        if self.checkpoint is not None:
            self._use_settings_of(self.checkpoint, parser, args)
        elif settings["init_from"] is not None:
            self._start_from(settings["init_from"], parser, args)
        self._choose_precision()
        self._check_settings()

    def _parse(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_args(args)
        except (ParserError, OverflowError) as error:
            raise InputError(explain_parser_error(str(error), self._setting_names())) from None
        settings = self.config[self.command]
        asked, own = settings["precision"], settings["trainer"]["precision"]
        require(asked in ("auto", *PRECISIONS), "precision", f"be one of auto, {', '.join(PRECISIONS)}", asked)
        is_long_typed = is_typed(self.arguments, "--trainer.precision")
        is_short_typed = is_typed(self.arguments, "--precision")
        if asked != "auto":
            if is_long_typed and not is_short_typed:
                asked = own
            elif own not in (None, asked) and self.checkpoint is None and is_long_typed == is_short_typed:
                raise InputError(f"precision is {asked}, trainer.precision {own}; give one of them")
            settings["precision"] = settings["trainer"]["precision"] = asked
        if self.command == "fit" and settings["init_from"] is not None:
            settings["init_from"] = absolute(settings["init_from"])
        data = settings["data"]
        for name in ("val_text", "test_text"):  # as checkpoints have them
            if data[name] is not None:
                data[name] = absolute(data[name])

    def _setting_names(self) -> list[str]:
        return [action.dest for action in self._parser(self.command)._actions]

    def _use_settings_of(self, checkpoint: dict[str, Any], parser: LightningArgumentParser, args: Any) -> None:
        """Makes a checkpoint's settings the defaults; what differs now was typed, and may be refused.

        Raises:
            InputError: A setting that the checkpoint cannot be used with; names both values.
        """
        subparser = self._parser(self.command)
        own = checkpoint_settings(checkpoint)
        known = set(self._setting_names()) - set(LINKS.values())
        fixed = [*(f"model.{name}" for name in ARCHITECTURE), "data.tokenizer"]
        for name in fixed:
            if own.get(name) is None:
                raise InputError(f"{self.checkpoint_path}: its settings lack {name}")
        for name in sorted(set(own) - known - set(LINKS.values()) - {"init_from"}):  # which only fit has
            warn(f"{self.checkpoint_path}: ignoring its unknown setting {name}")
        subparser.set_defaults({name: value for name, value in own.items() if name in known})
        self._parse(parser, args)
        settings = self.config[self.command]
        if not is_typed(self.arguments, "--data.text"):  # the checkpoint's text, whatever a YAML file names
            named, kept = settings["data"]["text"], own.get("data.text")
            if named and isinstance(kept, str) and Path(named).name != Path(kept).name:
                warn(f"going on with {kept}, the text of {self.checkpoint_path}, not with {named}")
            for name in ("text", *TEXT_SETTINGS):
                settings["data"][name] = own.get(f"data.{name}")
        finds_rate = ("callbacks", "LearningRateFinder") in named_classes(settings["trainer"])
        if finds_rate and not is_typed(self.arguments, "--model.learning_rate"):
            settings["model"]["learning_rate"] = own.get("model.learning_rate")
        try:
            subparser.validate(settings)  # defaults are not
        except (TypeError, ValueError) as error:
            reason = explain_parser_error(str(error), self._setting_names())
            raise InputError(f"{self.checkpoint_path}: {reason}") from None
        if self.command == "fit":
            free = FREE_ON_RESUME | ({"data.val_text"} if settings["allow_data_change"] else set())
            fixed = [name for name in own if name in known and name not in free]
        for name in fixed:
            now, then = settings[name], own.get(name)
            if name == "model.vocab_size" and now is None:  # left to the tokenizer
                settings[name] = then
            elif now != then:
                raise InputError(f"{self.checkpoint_path} has {name} {then}, the settings say {now}")

    def _start_from(self, name: str, parser: LightningArgumentParser, args: Any) -> None:
        """Makes the architecture of `init_from` the default; what differs was typed or stands in a YAML file.

        Raises:
            InputError: A setting that its weights cannot be used with; names both values.
        """
        content = read_checkpoint(name)
        self.starts_from = (name, content)
        own = checkpoint_settings(content)
        fixed = [*(f"model.{setting}" for setting in ARCHITECTURE if setting != "init"), "data.tokenizer"]
        for setting in fixed:
            if own.get(setting) is None:
                raise InputError(f"{name}: its settings lack {setting}")
        self._parser(self.command).set_defaults({setting: own[setting] for setting in fixed})
        self._parse(parser, args)
        settings = self.config[self.command]
        try:
            self._parser(self.command).validate(settings)  # defaults are not
        except (TypeError, ValueError) as error:
            raise InputError(f"{name}: {explain_parser_error(str(error), self._setting_names())}") from None
        for setting in fixed:
            now, then = settings[setting], own[setting]
            if setting == "model.vocab_size" and now is None:  # left to the tokenizer
                settings[setting] = then
            elif setting == "model.context_length" and now > then:
                raise InputError(f"model.context_length ({now}) must be at most {then}, init_from {name}'s")
            elif now != then and setting not in ("model.context_length", "model.drop_rate"):
                raise InputError(f"init_from {name} has {setting} {then}, the settings say {now}")

    def _choose_precision(self) -> None:
        """Turns `precision: auto` into `trainer.precision`, where nothing else decides that."""
        trainer = self.config[self.command]["trainer"]
        given = trainer["precision"]
        self.precision_reason = "as the settings say" if self.checkpoint is None else "as the run began"
        elsewhere = self.command != "fit" and given == "bf16-mixed" and not self._is_precision_typed()
        if given is None or elsewhere:  # the checkpoint's machine may have had what this one has not
            alone = trainer["devices"] in ("auto", 1, "1") and not launched_by_others()
            trainer["precision"], self.precision_reason = choose_precision(trainer["accelerator"], probe=alone)

    def _is_precision_typed(self) -> bool:
        return any(is_typed(self.arguments, name) for name in ("--precision", "--trainer.precision"))

    def _parse_ckpt_path(self) -> None:
        """Nothing is left to do: `parse_arguments` has made the checkpoint's settings defaults."""

    def _choose_run(self, settings: Namespace) -> RunChoice:
        first = settings["config"][0] if settings["config"] else settings["data"]["text"] or "run"
        return choose_run(Path(str(first)).stem, settings)

    # ---- building

    def _check_settings(self) -> None:
        """What no class checks: the settings outside `model`, `data` and `sampling`."""
        settings = self.config[self.command]
        require_integer("seed_everything", settings["seed_everything"], 0, 2**32 - 1)
        check_trainer(settings["trainer"])
        for name in ("evaluate_every", "evaluate_batches", "sample_every", "save_every", "early_stopping_patience"):
            if settings[name] is not None:
                require_integer(name, settings[name], 1)
        if settings["peak_flops"] is not None:
            require_number("peak_flops", settings["peak_flops"], "be above 0", lambda rate: rate > 0)
        if settings["save_minutes"] is not None:
            require_number("save_minutes", settings["save_minutes"], "be above 0", lambda minutes: minutes > 0)
        both_typed = all(is_typed(self.arguments, f"--data.{name}") for name in ("val_text", "train_ratio"))
        if both_typed and settings["data"]["val_text"] is not None:
            raise InputError("data.train_ratio has no effect, because data.val_text is the validation text; give one")
        for prompt in settings["prompt"]:
            check_prompt(prompt)
        if self.command == "predict":
            check_sources(settings)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except InputError:
            raise
        except ValueError as error:  # of jsonargparse, about a class that YAML names
            raise InputError(explain_class_error(error)) from None
        self.settings = self.config_init[self.command]

    def instantiate_trainer(self, **_: Any) -> Trainer:
        """Lightning's Trainer; what `fit` adds to it waits until the run folder is known."""
        config = {**self.config_init[self.command]["trainer"], **TRAINER_FIXED}
        if config["max_epochs"] is None:
            config["max_epochs"] = -1  # Lightning would take 1000
        callbacks = as_list(config.pop("callbacks"))
        config["enable_progress_bar"] = any(isinstance(one, ProgressBar) for one in callbacks)
        config["enable_checkpointing"] = any(isinstance(one, Checkpoint) for one in callbacks)
        if self.command != "fit" or config["logger"] in (None, True):
            config["logger"] = False  # TensorBoard's is added once the run folder is known
        plugins = [*as_list(config.pop("plugins")), AtomicCheckpointIO()]
        if SLURMEnvironment.detect() and not any(isinstance(one, ClusterEnvironment) for one in plugins):
            plugins.append(SLURMEnvironment(auto_requeue=False))  # stopping.py does that, after the step
        try:
            return Trainer(**config, callbacks=callbacks, plugins=plugins)
        except (ValueError, TypeError) as error:
            raise InputError(f"trainer: {error}") from None

    # ---- commands

    def fit(self, model: GPTModule, datamodule: TextDataModule) -> None:
        """Trains, see `training.fit.train`; or says what training would come to."""
        model.starts_from, self.starts_from = self.starts_from, None  # it gives the file back when it has read it
        if self.is_check:
            check(self.trainer, model, datamodule, self.settings, self.precision_reason)
            return
        config = self._resolved_config()
        self.run_folder = train(
            self.trainer,
            model,
            datamodule,
            self.settings,
            self.run_choice,
            config,
            self.arguments,
            self.precision_reason,
        )

    def _resolved_config(self) -> str:
        """Every setting as YAML, paths absolute, that runs the same again."""
        settings = self.config[self.command].clone()
        for name in (*TYPED_ONLY, "__path__"):
            settings.pop(name, None)
        for name in ("text", "fallback_text"):
            if settings["data"][name] is not None:
                settings["data"][name] = absolute(settings["data"][name])
        for target in LINKS.values():
            settings.pop(target, None)
        body = yaml.safe_dump(plain(settings.as_dict()), sort_keys=False)
        return f"# All settings of this run. To run it again: python -m {PROGRAM} fit --config THIS_FILE\n{body}"

    def validate(self, model: GPTModule, datamodule: TextDataModule) -> None:
        """Prints loss and perplexity: of the checkpoint's own validation split, or of a whole text."""
        datamodule.whole_text = is_typed(self.arguments, "--data.text")
        self._evaluate(model, datamodule, "validate", "validation", "val")

    def test(self, model: GPTModule, datamodule: TextDataModule) -> None:
        """Prints loss and perplexity of data.test_text."""
        self._evaluate(model, datamodule, "test", "test", "test")

    def _evaluate(self, model: GPTModule, data: TextDataModule, stage: str, split: str, metric: str) -> None:
        assert self.checkpoint is not None
        data.is_compared = stage == "validate" and not data.whole_text
        data.setup(stage)
        if data.is_compared:
            check_same_text(data, self.checkpoint, str(self.checkpoint_path))
        load_weights(model, self.checkpoint, str(self.checkpoint_path))
        getattr(self.trainer, stage)(model, data, verbose=False)
        if self.trainer.is_global_zero:
            assert data.source is not None
            val_text = None if data.whole_text else data.hparams["val_text"]
            if stage == "validate" and val_text is not None:
                name = f"all of {short_name(val_text)}"
            elif stage == "validate" and not data.whole_text:
                name = f"{split} split of {short_name(data.source.path)}"
            else:
                name = f"all of {short_name(data.source.path)}"
            loss, perplexity = model.evaluated[f"{metric}_loss"], model.evaluated[f"{metric}_perplexity"]
            say(summary.describe_evaluation(name, loss, perplexity, model.evaluated_tokens[metric], data.splits[split]))

    def predict(self, model: GPTModule, datamodule: TextDataModule) -> None:
        """Completes prompts; see `prompting`."""
        assert self.checkpoint is not None
        sampling = self.settings["sampling"]
        sampling.check_vocabulary(model.hparams["vocab_size"])
        tokenizer = load_tokenizer(datamodule.hparams["tokenizer"])
        load_weights(model, self.checkpoint, str(self.checkpoint_path))
        model.to(self.trainer.strategy.root_device, WEIGHTS.get(self.trainer.precision))
        pack(model.model, sampling.batch_size)
        completer = partial(complete_all, model.model, tokenizer, sampling=sampling)
        weight = model.model.pos_emb.weight
        predict(completer, self.settings, Path(str(self.checkpoint_path)), f"{weight.dtype} {weight.device.type}")


def plain(value: Any) -> Any:
    """A setting as what YAML can hold: enums by their values, functions and classes by their names."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, Enum):
        return plain(value.value)
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return value if isinstance(value, (bool, int, float, str, NoneType)) else str(value)


def as_list(value: Any) -> list[Any]:
    """None, one or a list, as a new list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _quiet_excepthook(arguments: threading.ExceptHookArgs) -> None:
    """Says nothing of a full disk in the thread that writes TensorBoard's events: the next event raises it again."""
    if not isinstance(arguments.exc_value, OSError):
        threading.__excepthook__(arguments)


def quiet_lightning() -> None:
    """Leaves out what Lightning and TensorBoard say of themselves; a run's output is the run's."""
    threading.excepthook = _quiet_excepthook
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    for message in (
        # The loaders' num_workers is a setting with its own default.
        ".*does not have many workers.*",
        # Lightning's own use of pytree (torch >= 2.13).
        ".*LeafSpec.*is deprecated.*",
        # Losses are summed over the ranks before they are logged.
        ".*It is recommended to use .self.log.*sync_dist=True.*",
        # The network is built whole, not in shards.
        ".*WeightAveraging callback with a model that overrides the configure_model.*",
        # The position inside the epoch is kept by the data module.
        ".*your dataloader is not resumable.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def run_command(command: str, arguments: list[str]) -> CLI:
    """Runs fit, check, validate, test or predict with the arguments typed after it; returns what ran."""
    quiet_lightning()
    set_parsing_settings(
        config_read_mode_fsspec_enabled=False,
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*", *TAKING_CODE],
        import_path_allowlist=[
            "lightning.pytorch",
            "lightning.fabric.plugins",
            "torch.optim",
            "gpt_lightning.data",
            *typed_modules(arguments),
        ],
    )
    return CLI(command, arguments)
