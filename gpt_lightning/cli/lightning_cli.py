"""The commands fit, check, validate and test, built on LightningCLI.

Settings come from the defaults, the checkpoint, the YAML files in order, and the command line; later ones win. The
exception is the checkpoint's text, which only `--data.text` on the command line replaces.
"""

from __future__ import annotations

import logging
import threading
import warnings
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy

from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.cli.arguments import (
    LINKS,
    allowed_modules,
    prepare_arguments,
    was_passed,
)
from gpt_lightning.cli.config_files import ConfigFile, dump_settings, plain_defaults
from gpt_lightning.cli.help import explanations, print_help, requested_help
from gpt_lightning.cli.options import add_model_options, add_run_options, explain_trainer
from gpt_lightning.cli.parser_errors import ParserError, RaisingParser, explain_class_error, explain_parser_error
from gpt_lightning.cli.precedence import ARCHITECTURE, FREE_ON_RESUME, checkpoint_settings, keep, keep_text
from gpt_lightning.cli.trainer_options import (
    LIMITS,
    TAKING_CODE,
    TRAINER_DEFAULTS,
    TRAINER_FIXED,
    TRAINER_OWNED,
    check_split_weights,
    check_trainer,
    named_classes,
)
from gpt_lightning.console import PROGRAM, warn
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.data.sources import absolute
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.errors import InputError
from gpt_lightning.inference.completion import check_prompt
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.training import summary
from gpt_lightning.training.callbacks.checkpointing import AtomicCheckpointIO
from gpt_lightning.training.config import RunConfig, TrainingConfig
from gpt_lightning.training.distributed import (
    FullyShardedStrategy,
    connect,
    from_first,
    is_lost_process,
    launched_externally,
    launched_sizes,
    lost_process,
    require_same,
)
from gpt_lightning.training.dry_run import check
from gpt_lightning.training.evaluate import evaluate
from gpt_lightning.training.fit import fit
from gpt_lightning.training.hardware import check_precision, choose_precision, device_type
from gpt_lightning.training.module import GPTModule
from gpt_lightning.training.optimizers import OptimizerConfig
from gpt_lightning.training.resume import RESUME_SETTINGS, plan_run
from gpt_lightning.validation import require, require_integer


class Parser(RaisingParser, LightningArgumentParser):
    """LightningCLI's parser, which raises its errors as `ParserError`."""


class CLI(LightningCLI):
    """LightningCLI for one command.

    Args:
        command: fit, check, validate or test.
        arguments: The rest of the command line.
        may_launch: Whether Lightning may start the other processes of a run, with this command line.
    """

    def __init__(self, command: str, arguments: list[str], *, may_launch: bool) -> None:
        self.may_launch = may_launch
        self.is_check = command == "check"  # check has the settings of fit
        self.command = command = "fit" if self.is_check else command
        self.arguments = arguments
        self.checkpoint: dict[str, Any] | None = None
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
        """Return only the command that runs, because building the parsers of the others would take seconds."""
        data = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
        return {self.command: data | {"ckpt_path", "weights_only", "verbose", "return_predictions"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return self.parser_class(**kwargs)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("-c", "--config", action=ConfigFile, help="YAML file of settings; may be repeated.")

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_model_options(parser)
        parser.add_class_arguments(TextDataModule, "data", sub_configs=True)
        parser.add_class_arguments(
            Trainer,
            "trainer",
            skip={*TRAINER_OWNED, *LIMITS, "precision"},
            instantiate=False,
            fail_untyped=False,
            sub_configs=True,
        )
        parser.add_argument("--trainer.precision", type=int | str, default="auto")
        for name in LIMITS:
            parser.add_argument(f"--trainer.{name}", type=int | float | None, default=None)
        explain_trainer(parser)
        parser.set_defaults(TRAINER_DEFAULTS)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_run_options(parser, "check" if self.is_check else self.command)
        for source, target in LINKS.items():
            parser.link_arguments(source, target)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the settings; if there is a checkpoint, parse again with its settings as defaults."""
        if kind := requested_help(args):
            print_help(self._settings_parser, "check" if self.is_check else self.command, kind)
        self.defaults = plain_defaults(self._settings_parser.get_defaults())  # a checkpoint's settings replace them
        self._parse(parser, args)
        settings = self.config[self.command]
        try:
            self._settings_parser.validate(settings, skip_unset=False)  # jsonargparse accepts YAML's null so far
        except TypeError as error:
            raise InputError(explain_parser_error(str(error), self._setting_names())) from None
        if self.is_check and settings["resume"]:
            raise InputError("check estimates new runs only; leave --resume out")
        if self.command == "fit":
            first = settings["config"][0] if settings["config"] else settings["data"]["text"] or "run"
            name = Path(str(first)).stem
            if launched_externally():
                self._connect(settings)
            self.plan = from_first(
                lambda: plan_run(name, settings["run_dir"], settings["resume"], settings["allow_data_change"])
            )
            self.checkpoint_path = self.plan.checkpoint
            self.checkpoint = self.plan.content
        else:
            self.checkpoint_path = settings["ckpt_path"]
            if not self.checkpoint_path:
                raise InputError(f"{self.command} needs --ckpt_path CKPT")
            self.checkpoint = read_checkpoint(self.checkpoint_path)
        if self.checkpoint is not None:
            self._use_checkpoint(self.checkpoint, parser, args)
        elif settings["init_from"] is not None:
            self._use_init_from(settings["init_from"], parser, args)
        self._choose_precision()
        self._check_settings()

    def _connect(self, settings: Namespace) -> None:
        """Connect the processes that torchrun or SLURM has started, and compare their settings."""
        if self.is_check:
            raise InputError("check runs in one process; start it without torchrun and srun")
        if settings["run_dir"] is None:
            raise InputError("--run_dir DIR is needed under torchrun and SLURM, so that --resume finds the run")
        timeout = TrainingConfig(process_timeout=settings["process_timeout"]).process_timeout
        connect(timeout, uses_cuda=device_type(settings["trainer"]["accelerator"]) == "cuda")
        made_absolute = {"data.val_text", "data.test_text", "init_from"}  # may differ from machine to machine
        require_same({name: one for name, one in plain_defaults(settings).items() if name not in made_absolute})

    def _parse(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_args(args)
        except (ParserError, OverflowError) as error:
            raise InputError(explain_parser_error(str(error), self._setting_names())) from None
        settings = self.config[self.command]
        if self.command == "fit" and settings["init_from"] is not None:
            settings["init_from"] = absolute(settings["init_from"])
        data = settings["data"]
        for name in ("val_text", "test_text"):  # checkpoints store absolute paths
            if data[name] is not None:
                data[name] = absolute(data[name])

    @property
    def _settings_parser(self) -> LightningArgumentParser:
        """The parser of the command's settings."""
        return self._parser(self.command)

    def _setting_names(self) -> list[str]:
        return list(explanations(self._settings_parser))

    def _adopt(self, name: str, own: dict[str, Any], parser: LightningArgumentParser, args: Any) -> Namespace:
        """Parse again with a checkpoint's settings as defaults, so that any difference was given explicitly.

        Args:
            name: Name of the checkpoint.
            own: Settings of the checkpoint.
            parser: Parser of all settings.
            args: The command line.

        Raises:
            InputError: The checkpoint lacks a setting.
        """
        for setting in {*ARCHITECTURE, "data.tokenizer"} & own.keys():
            if own[setting] is None:
                raise InputError(f"{name}: its settings lack {setting}")
        self._settings_parser.set_defaults(own)
        self._parse(parser, args)
        return self.config[self.command]

    def _validate(self, name: str, settings: Namespace) -> None:
        """Check the types of settings from a checkpoint, because jsonargparse does not check defaults."""
        try:
            self._settings_parser.validate(settings)
        except (TypeError, ValueError) as error:
            raise InputError(f"{name}: {explain_parser_error(str(error), self._setting_names())}") from None

    def _use_checkpoint(self, checkpoint: dict[str, Any], parser: LightningArgumentParser, args: Any) -> None:
        """Use a checkpoint's settings, except those that YAML files and the command line may change.

        Raises:
            InputError: A setting differs from the checkpoint's; the message has both values.
        """
        name, own = str(self.checkpoint_path), checkpoint_settings(checkpoint)
        known = set(self._setting_names()) - set(LINKS.values())
        for setting in sorted(set(own) - known - set(LINKS.values()) - {"init_from"}):  # only fit has init_from
            warn(f"{name}: ignoring its unknown setting {setting}")
        own = {setting: value for setting, value in own.items() if setting in known}
        settings = self._adopt(name, own, parser, args)
        if not was_passed(self.arguments, "--data.text"):  # a YAML file does not replace the checkpoint's text
            keep_text(settings["data"], own, name)
        finds_rate = ("callbacks", "LearningRateFinder") in named_classes(settings["trainer"])
        if finds_rate and not was_passed(self.arguments, "--model.learning_rate"):
            settings["model"]["learning_rate"] = own.get("model.learning_rate")
        self._validate(name, settings)
        fixed = [*ARCHITECTURE, "data.tokenizer"]
        if settings["trainer"]["precision"] == "auto" and not was_passed(self.arguments, "--trainer.precision"):
            settings["trainer"]["precision"] = own.get("trainer.precision", "auto")
        if self.command == "fit":
            free = FREE_ON_RESUME | ({"data.val_text"} if settings["allow_data_change"] else set())
            free |= {"data.batch_size"} if own.get("data.global_batch_size") is not None else set()
            fixed = [setting for setting in own if setting not in free]
        keep(settings, own, fixed, name)

    def _use_init_from(self, name: str, parser: LightningArgumentParser, args: Any) -> None:
        """Use the architecture of `init_from`, except for dropout, the initialization and a shorter context.

        Raises:
            InputError: A setting does not fit the weights; the message has both values.
        """
        own = checkpoint_settings(read_checkpoint(name))
        fixed = {*ARCHITECTURE, "data.tokenizer"} - {"model.init"}
        settings = self._adopt(name, {setting: own.get(setting) for setting in fixed}, parser, args)
        self._validate(name, settings)
        longest = own["model.context_length"]
        if settings["model"]["context_length"] > longest:
            given = settings["model"]["context_length"]
            raise InputError(f"model.context_length ({given}) must be at most {longest}, init_from {name}'s")
        keep(settings, own, sorted(fixed - {"model.context_length", "model.drop_rate"}), f"init_from {name}")

    def _choose_precision(self) -> None:
        """Set the precision: of `fit` what the settings or this machine say, of evaluations float32 unless given.

        Evaluations of a checkpoint then agree between machines to the last digits.
        """
        trainer = self.config[self.command]["trainer"]
        given = trainer["precision"]
        check_precision(given)
        self.precision_reason = "as the settings say" if self.checkpoint is None else "as the run began"
        if self.command != "fit" and not was_passed(self.arguments, "--trainer.precision"):
            trainer["precision"] = "64-true" if given in ("64-true", "64", 64) else "32-true"
        elif given == "auto":
            alone = trainer["devices"] in ("auto", 1, "1") and not launched_externally()
            trainer["precision"], self.precision_reason = choose_precision(trainer["accelerator"], probe=alone)

    def _parse_ckpt_path(self) -> None:
        """Do nothing, because `parse_arguments` has already applied the checkpoint's settings."""

    # ---- building

    def _check_settings(self) -> None:
        """Check the settings outside `model`, `data` and `sampling`."""
        settings = self.config[self.command]
        self.training = TrainingConfig(**{one.name: settings[one.name] for one in fields(TrainingConfig)})
        check_trainer(settings["trainer"], is_launched=launched_externally())
        if self.command == "fit":
            check_split_weights(settings["trainer"], settings["model"]["optimizer"])
        if self.is_check and settings["devices"] is not None:
            require_integer("--devices", settings["devices"], 1)
            require(settings["strategy"] in ("ddp", "fsdp"), "--strategy", "be ddp or fsdp", settings["strategy"])
            planned = settings["trainer"].clone()
            planned["strategy"] = settings["strategy"]
            check_split_weights(planned, settings["model"]["optimizer"])
        both_passed = all(was_passed(self.arguments, f"--data.{name}") for name in ("val_text", "train_ratio"))
        if both_passed and settings["data"]["val_text"] is not None:
            raise InputError("data.train_ratio has no effect with data.val_text; set only one of them")
        for prompt in settings["prompt"]:
            check_prompt(prompt)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except InputError:
            raise
        except ValueError as error:  # from jsonargparse, about a class that YAML names
            raise InputError(explain_class_error(error)) from None
        self.settings = self.config_init[self.command]

    def instantiate_trainer(self, **_: Any) -> Trainer:
        """Build Lightning's Trainer; `fit` adds callbacks and loggers once the run folder is known."""
        config = {**self.config_init[self.command]["trainer"], **TRAINER_FIXED}
        if config["max_epochs"] is None:
            config["max_epochs"] = -1  # Lightning's default is 1000
        if launched_externally() and (config["devices"], config["num_nodes"]) == ("auto", 1):
            config["devices"], config["num_nodes"] = launched_sizes()
        timeout = timedelta(minutes=self.training.process_timeout)
        if config["strategy"] == "fsdp":
            config["strategy"] = FullyShardedStrategy(timeout=timeout)
            config["inference_mode"] = False  # FSDP2 keeps tensors of an evaluation for training
        elif config["strategy"] == "ddp":
            config["strategy"] = DDPStrategy(timeout=timeout)
        callbacks = as_list(config.pop("callbacks"))
        config["enable_progress_bar"] = any(isinstance(one, ProgressBar) for one in callbacks)
        config["enable_checkpointing"] = any(isinstance(one, Checkpoint) for one in callbacks)
        if self.command != "fit" or config["logger"] in (None, True):
            config["logger"] = False  # fit adds TensorBoard once the run folder is known
        plugins = [*as_list(config.pop("plugins")), AtomicCheckpointIO()]
        is_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
        if is_slurm and not any(isinstance(one, ClusterEnvironment) for one in plugins):
            plugins.append(SLURMEnvironment(auto_requeue=False))  # callbacks/signals.py requeues after the step
        try:
            return Trainer(**config, callbacks=callbacks, plugins=plugins)
        except (ValueError, TypeError) as error:
            raise InputError(f"trainer: {error}") from None

    # ---- commands

    def fit(self, model: Namespace, datamodule: TextDataModule) -> None:
        """Train, or for `check` estimate the cost of training.

        Args:
            model: The settings `model.*`; the network is built once the text is known.
            datamodule: The data module, before its setup.
        """
        config = self._run_config(model)
        if self.is_check:
            check(self.trainer, datamodule, config, self.settings["devices"], self.settings["strategy"])
            return
        command = summary.resume_command(self.arguments)
        if self.trainer.world_size > 1 and not self.may_launch and not launched_externally():
            raise InputError(
                f"train() uses one process, the settings ask for {self.trainer.world_size}; "
                f"use the command line: {command.removesuffix(' --resume')}"
            )
        resolved = dump_settings(self.config[self.command])
        self.run_folder = fit(self.trainer, datamodule, config, self.plan, resolved, self.defaults, command)

    def _run_config(self, model: Namespace) -> RunConfig:
        """Return the settings of the run as a typed and checked config."""
        settings = self.settings
        tokenizer_size = load_tokenizer(settings["data"].hparams["tokenizer"]).vocab_size
        vocab_size = tokenizer_size if model["vocab_size"] is None else model["vocab_size"]
        architecture = {one.name: model[one.name] for one in fields(GPTConfig)} | {"vocab_size": vocab_size}
        network = GPTConfig(**architecture)
        if vocab_size < tokenizer_size:
            raise InputError(f"model.vocab_size ({vocab_size}) is smaller than the tokenizer's {tokenizer_size}")
        trainer = settings["trainer"]
        return RunConfig(
            model=network,
            optimizer=OptimizerConfig(**{one.name: model[one.name] for one in fields(OptimizerConfig)}),
            training=self.training,
            sampling=settings["sampling"],
            expected=settings["expected"],
            compile=model["compile"],
            activation_checkpointing=model["activation_checkpointing"],
            init_from=settings["init_from"],
            max_epochs=trainer["max_epochs"],
            max_steps=trainer["max_steps"],
            accelerator=trainer["accelerator"],
            precision_reason=self.precision_reason,
            has_progress_bar=trainer["enable_progress_bar"] is not False,
            has_tensorboard=trainer["logger"] is not False,
            resume_settings={name: settings[name] for name in RESUME_SETTINGS},
        )

    def validate(self, model: Namespace, datamodule: TextDataModule) -> None:
        """Print loss and perplexity of the checkpoint on its validation split, or on all of `--data.text`."""
        self._evaluate(datamodule, "validate")

    def test(self, model: Namespace, datamodule: TextDataModule) -> None:
        """Print loss and perplexity of the checkpoint on data.test_text."""
        self._evaluate(datamodule, "test")

    def _evaluate(self, datamodule: TextDataModule, stage: str) -> None:
        assert self.checkpoint is not None
        is_whole = stage == "test" or was_passed(self.arguments, "--data.text")
        evaluate(
            self.trainer,
            datamodule,
            self.checkpoint,
            str(self.checkpoint_path),
            stage,
            is_whole=is_whole,
            compile=self.settings["model"]["compile"],
        )


def as_list(value: Any) -> list[Any]:
    """Return a new list of a value that may be None, one item or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _quiet_excepthook(arguments: threading.ExceptHookArgs) -> None:
    """Ignore a full disk in the thread that writes TensorBoard's events; the next event raises the error again."""
    if not isinstance(arguments.exc_value, OSError):
        threading.__excepthook__(arguments)


def quiet_lightning() -> None:
    """Silence messages of Lightning and TensorBoard that do not apply here."""
    threading.excepthook = _quiet_excepthook
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    for message in (
        # data.num_workers is a setting with its own default.
        ".*does not have many workers.*",
        # Workers of a corpus in shards are started anew for each epoch, as all others are.
        "Consider setting `persistent_workers=True`.*",
        # Caused by Lightning's use of pytree (torch >= 2.13).
        ".*LeafSpec.*is deprecated.*",
        # Losses are summed over the ranks before they are logged.
        ".*It is recommended to use .self.log.*sync_dist=True.*",
        # configure_model builds the complete network, not shards.
        ".*WeightAveraging callback with a model that overrides the configure_model.*",
        # The loss overwrites the logits' memory, but by no operation that autograd sees, so FSDP2's hook stays.
        "FSDP2-wrapped module .* returned a view tensor.*",
        # The data module saves the position in the epoch.
        ".*your dataloader is not resumable.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def run_command(command: str, arguments: list[str], *, may_launch: bool = True) -> CLI:
    """Run fit, check, validate or test.

    Args:
        command: The command.
        arguments: The rest of the command line.
        may_launch: See `CLI`.

    Returns:
        The CLI that ran.
    """
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
            *allowed_modules(arguments),
        ],
    )
    try:
        return CLI(command, arguments, may_launch=may_launch)
    except Exception as error:
        if is_lost_process(error):
            raise lost_process(error) from error
        raise
