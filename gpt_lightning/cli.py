"""The commands on LightningCLI: settings, their links and precedence, and what each command does.

Settings come, the later winning, from the defaults, from the checkpoint (all commands but fit), from
the YAML files in order, and from the command line.
"""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from gpt_lightning import report
from gpt_lightning.callbacks import Evaluation, Metrics, Progress, Samples, StepBar, say
from gpt_lightning.checkpoint import AtomicCheckpointIO, RunCheckpoints, load_weights, read_checkpoint
from gpt_lightning.data import TextDataModule
from gpt_lightning.errors import PROGRAM, InputError, require_integer, warn
from gpt_lightning.generation import Sampling, check_prompt, complete
from gpt_lightning.module import ARCHITECTURE, GPTModule
from gpt_lightning.runs import (
    MANY_LAUNCHED,
    RUN_DIR_VARIABLE,
    RUNS,
    Run,
    check_empty,
    new_run_folder,
    numbered_runs,
    replace_text,
)
from gpt_lightning.settings import (
    TEXT_SETTINGS,
    TYPED_ONLY,
    ConfigFile,
    check_trainer,
    explain_parser_error,
    is_typed,
    prepare_arguments,
)
from gpt_lightning.tokenizer import load_tokenizer

# Lightning's, less what the program decides itself.
TRAINER_OWNED = {
    "logger",
    "enable_checkpointing",
    "enable_model_summary",
    "default_root_dir",
    "fast_dev_run",
    "barebones",
    "val_check_interval",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "overfit_batches",
    "reload_dataloaders_every_n_epochs",
    "use_distributed_sampler",
    "model_registry",
}
TRAINER_FIXED = {
    "logger": False,  # set once the run folder is known
    "check_val_every_n_epoch": None,  # callbacks.Evaluation decides
    "num_sanity_val_steps": -1,  # the evaluation before the first update, over everything
    "max_steps": -1,  # callbacks.Evaluation stops the run
    "use_distributed_sampler": False,  # data.TrainOrder knows the ranks
    "enable_model_summary": False,
}
# What a resumed run may change; everything else that its checkpoint names stays as it was.
FREE_ON_RESUME = {
    "data.num_workers",
    "data.test_text",
    "data.text",
    "data.address",
    "data.sha256",
    "data.fallback_text",
    "evaluate_batches",
}
LINKS = {
    "model.context_length": "data.context_length",
    "seed_everything": "data.seed",
    "evaluate_batches": "data.evaluate_batches",
}


class ParserError(InputError):
    """What jsonargparse says; `CLI` puts it into words."""


class Parser(LightningArgumentParser):
    """A parser that raises its errors instead of printing every option there is."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise ParserError(message)


class CLI(LightningCLI):
    """LightningCLI for one command.

    Args:
        command: fit, validate, test or predict.
        arguments: What was typed after it.
    """

    def __init__(self, command: str, arguments: list[str]) -> None:
        self.command = command
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
            Trainer, "trainer", skip=TRAINER_OWNED, instantiate=False, fail_untyped=False, sub_configs=True
        )
        parser.set_defaults({"trainer.max_epochs": 10, "trainer.log_every_n_steps": 1})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Sampling, "sampling")
        parser.add_argument("--prompt", type=list[str], default=[], help="text to continue; may be repeated")
        parser.add_argument("--evaluate_every", type=int, default=5, help="optimizer steps between evaluations")
        parser.add_argument("--evaluate_batches", type=int, default=5, help="training batches whose loss is evaluated")
        parser.add_argument(
            "--sample_every", type=int | None, default=None, help="optimizer steps between samples; null: each epoch"
        )
        parser.add_argument(
            "--save_every",
            type=int | None,
            default=None,
            help="optimizer steps between checkpoints; null: as often as takes less than 1/40 of the time",
        )
        if self.command == "fit":
            parser.add_argument("--run_dir", type=str | None, default=None, help="the run's folder (typed only)")
            parser.add_argument("--resume", action="store_true", help="go on with the newest run (typed only)")
        else:
            parser.add_argument("--ckpt_path", type=str | None, default=None, help="checkpoint to use")
        for source, target in LINKS.items():
            parser.link_arguments(source, target)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; where there is a checkpoint, again with its settings as defaults."""
        self._parse(parser, args)
        settings = self.config[self.command]
        if self.command == "fit":
            self.name = self._run_name(settings)
            self.checkpoint_path = self._choose_run(settings)
        else:
            self.checkpoint_path = settings["ckpt_path"]
            if self.checkpoint_path is None:
                raise InputError(f"{self.command} needs --ckpt_path CKPT")
        self.checkpoint = read_checkpoint(self.checkpoint_path) if self.checkpoint_path else None
        if self.checkpoint is not None:
            self._use_settings_of(self.checkpoint, parser, args)
        self._check_settings()

    def _parse(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_args(args)
        except ParserError as error:
            known = [action.dest for action in self._parser(self.command)._actions]
            raise InputError(explain_parser_error(str(error), known)) from None

    def _use_settings_of(self, checkpoint: dict[str, Any], parser: LightningArgumentParser, args: Any) -> None:
        """Makes a checkpoint's settings the defaults; what differs now was typed, and may be refused.

        Raises:
            InputError: A setting that the checkpoint cannot be used with; names both values.
        """
        subparser = self._parser(self.command)
        own = checkpoint_settings(checkpoint, str(self.checkpoint_path))
        known = {action.dest for action in subparser._actions} - set(LINKS.values())
        for name in sorted(set(own) - known - set(LINKS.values())):
            warn(f"{self.checkpoint_path}: ignoring its unknown setting {name}")
        subparser.set_defaults({name: value for name, value in own.items() if name in known})
        self._parse(parser, args)
        settings = self.config[self.command]
        if not is_typed(self.arguments, "--data.text"):  # the checkpoint's text, whatever a YAML file names
            for name in ("text", *TEXT_SETTINGS):
                settings["data"][name] = own.get(f"data.{name}")
        fixed = [*(f"model.{name}" for name in ARCHITECTURE), "data.tokenizer"]
        if self.command == "fit":
            fixed = [name for name in own if name in known and name not in FREE_ON_RESUME]
        for name in fixed:
            if settings[name] is not None and settings[name] != own.get(name):
                raise InputError(
                    f"{self.checkpoint_path} has {name} {own.get(name)}, the settings say {settings[name]}"
                )

    def _parse_ckpt_path(self) -> None:
        """Nothing is left to do: `parse_arguments` has made the checkpoint's settings defaults."""

    @staticmethod
    def _run_name(settings: Namespace) -> str:
        """The stem of the first config, else of the text."""
        first = settings["config"][0] if settings["config"] else settings["data"]["text"] or "run"
        return Path(str(first)).stem

    def _choose_run(self, settings: Namespace) -> Path | None:
        """Which run to go on with; None to start one. Sets `self.run_folder` (None: a new number)."""
        self.run_folder: Path | None = Path(settings["run_dir"]) if settings["run_dir"] else None
        limits = settings["trainer"]["max_epochs"], settings["trainer"]["max_steps"]
        if self.run_folder is None:
            if any(variable in os.environ for variable in MANY_LAUNCHED):
                raise InputError("--run_dir DIR is required where other programs start the processes")
            if not settings["resume"]:
                return None
            for folder in reversed(numbered_runs(self.name)):
                last = folder / "checkpoints" / "last.ckpt"
                if not last.exists() or not limits_reached(read_checkpoint(last), *limits):
                    self.run_folder = folder
                    return last if last.exists() else None
            return None
        if not settings["resume"]:
            if RUN_DIR_VARIABLE not in os.environ:  # set: rank 0 of this command has just made it
                check_empty(self.run_folder)
            return None
        last = self.run_folder / "checkpoints" / "last.ckpt"
        return last if last.exists() else None

    # ---- building

    def _check_settings(self) -> None:
        """What no class checks: the settings outside `model`, `data` and `sampling`."""
        settings = self.config[self.command]
        require_integer("seed_everything", settings["seed_everything"], 0, 2**32 - 1)
        check_trainer(settings["trainer"])
        for name in ("evaluate_every", "evaluate_batches", "sample_every", "save_every"):
            if settings[name] is not None:
                require_integer(name, settings[name], 1)
        for prompt in settings["prompt"]:
            check_prompt(prompt)

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        self.settings = self.config_init[self.command]

    def instantiate_trainer(self, **_: Any) -> Trainer:
        """Lightning's Trainer; what `fit` adds to it waits until the run folder is known."""
        config = {**self.config_init[self.command]["trainer"], **TRAINER_FIXED}
        self.show_progress = config["enable_progress_bar"] is not False
        callbacks = as_list(config.pop("callbacks"))
        config["enable_progress_bar"] = any(isinstance(one, ProgressBar) for one in callbacks)
        config["enable_checkpointing"] = any(isinstance(one, Checkpoint) for one in callbacks)
        plugins = [*as_list(config.pop("plugins")), AtomicCheckpointIO()]
        try:
            return Trainer(**config, callbacks=callbacks, plugins=plugins)
        except (ValueError, TypeError) as error:
            raise InputError(f"trainer: {error}") from None

    # ---- commands

    def fit(self, model: GPTModule, datamodule: TextDataModule) -> None:
        """Trains: everything is checked first, then the folder is made, then the network."""
        settings, trainer, checkpoint = self.settings, self.trainer, self.checkpoint
        start = time.monotonic()
        max_steps = self.config[self.command]["trainer"]["max_steps"]
        datamodule.setup("fit")
        self._check_text(datamodule)
        model.set_vocabulary(datamodule.tokenizer.vocab_size)
        settings["sampling"].check_vocabulary(model.hparams["vocab_size"])
        if checkpoint is not None and limits_reached(checkpoint, trainer.max_epochs, max_steps):
            say(f"{self.run_folder}: finished; nothing is left to do within trainer.max_epochs and max_steps")
            return
        batches = limited("limit_train_batches", trainer.limit_train_batches, datamodule.train_batches)
        limited("limit_val_batches", trainer.limit_val_batches, datamodule.val_batches)
        steps_per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
        total_steps = min_limit(steps_per_epoch, trainer.max_epochs, max_steps)
        if model.hparams["warmup_steps"] >= total_steps:
            raise InputError(
                f"model.warmup_steps ({model.hparams['warmup_steps']}) must be below the run's {total_steps} steps"
            )
        if model.hparams["min_learning_rate"] is not None and math.isinf(total_steps):
            raise InputError("model.min_learning_rate needs an end: set trainer.max_epochs or trainer.max_steps")
        model.total_steps = total_steps
        run = self._open_run(model)
        progress = Progress()
        checkpoints = RunCheckpoints(run, progress, settings["save_every"])
        trainer.callbacks = [  # type: ignore[attr-defined]
            progress,
            Metrics(run, progress),
            Samples(run, datamodule.tokenizer, settings["prompt"], settings["sampling"], settings["sample_every"]),
            *([StepBar(total_steps)] if self.show_progress and not trainer.progress_bar_callback else []),
            *trainer.callbacks,  # type: ignore[attr-defined]
            Evaluation(run, progress, settings["evaluate_every"], max_steps),
            checkpoints,
        ]
        resumed_step = checkpoint["global_step"] if checkpoint else 0
        trainer.loggers = [
            TensorBoardLogger(str(run.path), name="", version="", purge_step=resumed_step + 1 if checkpoint else None)
        ]
        if trainer.is_global_zero:
            for line in self._header(model, datamodule, run):
                say(line)
            if checkpoint is not None:
                say(f"going on    after step {resumed_step} of {run.shown}")
        if checkpoint is not None:
            trainer.num_sanity_val_steps = 0
            del checkpoint
            self.checkpoint = None
        seed_everything(settings["seed_everything"], workers=True, verbose=False)
        trainer.fit(model, datamodule, ckpt_path=self.checkpoint_path, weights_only=True)
        os.environ.pop(RUN_DIR_VARIABLE, None)
        if trainer.is_global_zero:
            self._say_farewell(run, progress, checkpoints, time.monotonic() - start)
        run.close()

    def _check_text(self, data: TextDataModule) -> None:
        """A checkpoint goes on with the text that it saw."""
        assert data.source is not None
        if self.checkpoint is not None:
            seen = self.checkpoint["gpt_lightning"]["text"]
            if data.source.sha256 != seen["sha256"]:
                raise InputError(
                    f"{data.source.path}: is not the text that {self.checkpoint_path} was trained on "
                    f"({seen['name']}, sha256 {seen['sha256'][:12]}...)"
                )

    def _open_run(self, model: GPTModule) -> Run:
        """Chooses, makes, locks and describes the run folder. Rank 0 does; the others are told."""
        if self.trainer.is_global_zero:
            folder = self.run_folder or new_run_folder(self.name)
            run = Run(folder)
            run.open()
            run.check_space(sum(report.checkpoint_bytes(report.count_parameters(model))))
            os.environ[RUN_DIR_VARIABLE] = str(run.path)
            if self.checkpoint is None:
                run.cut_logs(-1)
            else:
                run.cut_logs(self.checkpoint["global_step"])
            replace_text(run.path / f"{self.name}.yaml", self._resolved_config())
            if run.path.parent == (RUNS / self.name).absolute():
                run.link_latest()
            return run
        return Run(Path(os.environ.get(RUN_DIR_VARIABLE) or self.run_folder))  # type: ignore[arg-type]

    def _resolved_config(self) -> str:
        """Every setting as YAML, paths absolute, that runs the same again."""
        settings = self.config[self.command].clone()
        for name in (*TYPED_ONLY, "__path__"):
            settings.pop(name, None)
        for name in ("text", "val_text", "test_text", "fallback_text"):
            if settings["data"][name] is not None:
                settings["data"][name] = os.path.abspath(settings["data"][name])
        body = self._parser(self.command).dump(settings, skip_validation=True)
        return f"# All settings of this run. To run it again: python -m {PROGRAM} fit --config THIS_FILE\n{body}"

    def _header(self, model: GPTModule, data: TextDataModule, run: Run) -> list[str]:
        parameters = report.count_parameters(model)
        return [
            *report.describe_data(data, self.trainer.accumulate_grad_batches),
            report.describe_model(model, parameters),
            report.describe_device(self.trainer, self.config[self.command]["trainer"]["accelerator"]),
            report.describe_folder(run.shown, parameters),
        ]

    def _say_farewell(self, run: Run, progress: Progress, checkpoints: RunCheckpoints, seconds: float) -> None:
        speed = progress.session_tokens / max(progress.session_seconds, 1e-9)
        say(f"Training completed in {seconds / 60:.2f} minutes.")
        say(
            f"{progress.tokens_seen:,} tokens seen, {speed:,.0f} tokens per second in the training steps, "
            f"{100 * checkpoints.saving_seconds / seconds:.1f} % of the time spent on saving."
        )
        say(
            f"best.ckpt is of step {checkpoints.best_step} (Val loss {checkpoints.best_val_loss:.3f}), "
            f"last.ckpt of step {self.trainer.global_step}. To sample:"
        )
        prompt = self.settings["prompt"][0] if self.settings["prompt"] else "Every effort moves you"
        say("  " + report.predict_command(f"{run.shown}/checkpoints/{run.best.name}", prompt))

    def validate(self, model: GPTModule, datamodule: TextDataModule) -> None:
        """Prints loss and perplexity: of the checkpoint's own validation split, or of a whole text."""
        datamodule.whole_text = is_typed(self.arguments, "--data.text")
        self._evaluate(model, datamodule, "validate", "validation", "val")

    def test(self, model: GPTModule, datamodule: TextDataModule) -> None:
        """Prints loss and perplexity of data.test_text."""
        self._evaluate(model, datamodule, "test", "test", "test")

    def _evaluate(self, model: GPTModule, data: TextDataModule, stage: str, split: str, metric: str) -> None:
        assert self.checkpoint is not None
        data.setup(stage)
        if stage == "validate" and not data.whole_text:
            self._check_text(data)
        load_weights(model, self.checkpoint, str(self.checkpoint_path))
        getattr(self.trainer, stage)(model, data, verbose=False)
        if self.trainer.is_global_zero:
            assert data.source is not None
            results = model.evaluated
            name = f"all of {data.source.path.name}" if data.whole_text else f"{split} split of {data.source.path.name}"
            if stage == "test":
                name = f"all of {data.source.path.name}"
            say(
                report.describe_evaluation(
                    name, results[f"{metric}_loss"], results[f"{metric}_perplexity"], data.splits[split]
                )
            )

    def predict(self, model: GPTModule, datamodule: TextDataModule) -> None:
        """Writes each prompt and its completion to stdout, and nothing else."""
        assert self.checkpoint is not None
        prompts, sampling = self.settings["prompt"], self.settings["sampling"]
        if not prompts:
            raise InputError("predict needs --prompt TEXT")
        sampling.check_vocabulary(model.hparams["vocab_size"])
        tokenizer = load_tokenizer(datamodule.hparams["tokenizer"])
        load_weights(model, self.checkpoint, str(self.checkpoint_path))
        model.to(self.trainer.strategy.root_device)
        for prompt in prompts:
            print(prompt + complete(model.model, tokenizer, prompt, sampling), flush=True)


def as_list(value: Any) -> list[Any]:
    """None, one or a list, as a new list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def limited(name: str, limit: float, batches: int) -> int:
    """How many of the batches a limit of Lightning (a number, or a share as a float) lets through.

    Raises:
        InputError: None.
    """
    count = min(limit, batches) if isinstance(limit, int) else int(batches * limit)
    if count < 1:
        raise InputError(f"trainer.{name} ({limit}) leaves none of the {batches} batches")
    return int(count)


def min_limit(steps_per_epoch: int, max_epochs: int | None, max_steps: int) -> float:
    """Optimizer steps of the whole run; infinite where neither limit is set."""
    by_epochs = math.inf if max_epochs is None or max_epochs == -1 else steps_per_epoch * max_epochs
    return min(by_epochs, math.inf if max_steps == -1 else max_steps)


def limits_reached(checkpoint: dict[str, Any], max_epochs: int | None, max_steps: int) -> bool:
    """Whether a run has come as far as the limits let it."""
    progress = checkpoint["gpt_lightning"]["progress"]
    by_epochs = max_epochs is not None and max_epochs != -1 and progress["epochs"] >= max_epochs
    return by_epochs or (max_steps != -1 and progress["steps"] >= max_steps)


def checkpoint_settings(checkpoint: dict[str, Any], path: str) -> dict[str, Any]:
    """A checkpoint's settings by their full names.

    Raises:
        InputError: It has none.
    """
    model = checkpoint.get(GPTModule.CHECKPOINT_HYPER_PARAMS_KEY)
    data = checkpoint.get(TextDataModule.CHECKPOINT_HYPER_PARAMS_KEY)
    if not isinstance(model, dict) or not isinstance(data, dict):
        raise InputError(f"{path}: has no settings")
    own = {f"model.{name}": value for name, value in model.items()}
    own |= {f"data.{name}": value for name, value in data.items()}
    return own | checkpoint["gpt_lightning"]["fit"]


def quiet_lightning() -> None:
    """Leaves out what Lightning says of itself; a run's output is the run's."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    for message in (
        # jsonargparse 4.49 and later (https://github.com/Lightning-AI/pytorch-lightning/issues/21900)
        ".*jsonargparse.*",
        # The loaders' num_workers is a setting with its own default.
        ".*does not have many workers.*",
        # Lightning's own use of pytree (torch >= 2.13).
        ".*LeafSpec.*is deprecated.*",
        # The position inside the epoch is kept by the data module.
        ".*your dataloader is not resumable.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def run_command(command: str, arguments: list[str]) -> None:
    """Runs fit, validate, test or predict with the arguments typed after it."""
    quiet_lightning()
    set_parsing_settings(
        config_read_mode_fsspec_enabled=False,
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*"],
        import_path_allowlist=["lightning.pytorch", "torch.optim"],
    )
    CLI(command, arguments)
