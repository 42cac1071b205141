"""Check the settings `trainer.*`, and refuse options and classes of Lightning that a run cannot use."""

from __future__ import annotations

import re

from jsonargparse import Namespace

from gpt_lightning.errors import InputError
from gpt_lightning.training.hardware import check_device
from gpt_lightning.validation import require, require_integer, require_number

# Options of the Trainer that are not settings here -> the setting to use instead.
TRAINER_OWNED = {
    "enable_checkpointing": "save_every",
    "enable_model_summary": None,
    "default_root_dir": "--run_dir",
    "fast_dev_run": "trainer.max_steps",
    "barebones": None,
    "val_check_interval": "evaluate_every",
    "check_val_every_n_epoch": "evaluate_every",
    "num_sanity_val_steps": None,
    "min_epochs": "trainer.max_epochs",
    "min_steps": "trainer.max_steps",
    "overfit_batches": "trainer.limit_train_batches",
    "limit_predict_batches": None,
    "reload_dataloaders_every_n_epochs": None,
    "use_distributed_sampler": None,
    "model_registry": None,
}
TRAINER_DEFAULTS = {"trainer.max_epochs": 10, "trainer.log_every_n_steps": 1}
TRAINER_FIXED = {
    "check_val_every_n_epoch": None,  # callbacks/evaluation.py starts evaluations
    "num_sanity_val_steps": -1,  # all batches: this is the evaluation before the first optimizer step
    "max_steps": -1,  # callbacks/evaluation.py ends the run
    "use_distributed_sampler": False,  # data/windows.py divides the windows among the ranks
    "enable_model_summary": False,
}
# Typed here as int | float: Lightning's Union may try float first, because Python caches Unions regardless of order
# (https://docs.python.org/3/library/typing.html#typing.Union).
LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches")
# Classes of Lightning that take code as a setting.
TAKING_CODE = ("lightning.pytorch.callbacks.LambdaCallback", "lightning.pytorch.callbacks.lambda_function")
CLASS_SETTINGS = ("trainer.callbacks", "trainer.logger", "trainer.plugins")
# Classes of Lightning that a run cannot use, and why.
REFUSED_CLASSES = {
    "BatchSizeFinder": "changes data.batch_size after the steps of the run are counted; set data.batch_size "
    "(`check` estimates its memory)",
    "OnExceptionCheckpoint": "writes checkpoints that cannot be resumed exactly; use last.ckpt",
    "StochasticWeightAveraging": "does not save the averaged weights, and resumes with other learning rates; "
    "use EMAWeightAveraging",
    "ModelPruning": "renames the weights, so that its checkpoints could not be read; leave it out",
    "FSDPStrategy": "is FSDP1; set trainer.strategy to fsdp, which is FSDP2",
    "ModelParallelStrategy": "writes sharded checkpoints; set trainer.strategy to fsdp, which uses it",
    "DeepSpeedStrategy": "writes checkpoints in its own format, as folders; use ddp or fsdp",
}
STRATEGIES = ("auto", "ddp", "fsdp")
SPLITS = "trainer.strategy fsdp splits; use ddp"
FSDP_PRECISIONS = ("32-true", "32", 32, "bf16-mixed", "bf16-true", "bf16")
# Endings of class names -> why a run cannot use these classes.
REFUSED_KINDS = {
    "Precision": "cannot be set as a plugin; set trainer.precision (64-true, 16-true, bf16-mixed ...)",
    "CheckpointIO": "cannot be set, because checkpoints are written atomically by the program itself",
}


def check_trainer(trainer: Namespace, *, is_launched: bool) -> None:
    """Check the settings `trainer.*` that Lightning would ignore or reject with a long message.

    Args:
        trainer: The settings.
        is_launched: Whether torchrun or SLURM has started the processes.

    Raises:
        InputError: A value is out of range, or asks for a device that this machine does not have.
    """
    limits = ("max_epochs", "max_steps", "max_time")
    if all(trainer[name] in (None, -1) for name in limits):
        raise InputError("the run would never end; set trainer.max_epochs, trainer.max_steps or trainer.max_time")
    for name in limits[:2]:
        if trainer[name] not in (None, -1):
            require_integer(f"trainer.{name}", trainer[name], 1)
    if isinstance(trainer["max_time"], str):
        is_duration = re.fullmatch(r"\d+:\d\d:\d\d:\d\d", trainer["max_time"].strip()) is not None
        require(is_duration, "trainer.max_time", "be a duration as DD:HH:MM:SS", trainer["max_time"])
    for name in LIMITS:
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
    if trainer["num_nodes"] != 1 and not is_launched:
        raise InputError(f"trainer.num_nodes ({trainer['num_nodes']}) needs torchrun or SLURM to start the processes")
    strategy = trainer["strategy"]
    if isinstance(strategy, str):
        require(strategy in STRATEGIES, "trainer.strategy", f"be one of {', '.join(STRATEGIES)}", strategy)
    for setting, name in named_classes(trainer):
        if reason := why_refused(name):
            raise InputError(f"trainer.{setting}: {name} {reason}")
    devices = "auto" if is_launched else trainer["devices"]  # torchrun may start more processes than cores
    check_device(trainer["accelerator"], devices, trainer["precision"])


def check_split_weights(trainer: Namespace, optimizer: str) -> None:
    """Raise `InputError` if `trainer.strategy` is fsdp, which splits the weights, and another setting needs them whole.

    Args:
        trainer: The settings `trainer.*`.
        optimizer: `model.optimizer`.
    """
    if trainer["strategy"] != "fsdp":
        return
    if optimizer == "muon":
        raise InputError(f"model.optimizer: muon needs whole matrices, which {SPLITS}")
    for setting, name in named_classes(trainer):
        if setting == "callbacks" and name.endswith("WeightAveraging"):
            raise InputError(f"trainer.callbacks: {name} needs whole weights, which {SPLITS}")
    if trainer["precision"] not in FSDP_PRECISIONS:
        precision = trainer["precision"]
        raise InputError(f"trainer.precision {precision} does not work with fsdp; use bf16-mixed or 32-true")


def why_refused(name: str) -> str | None:
    """Return why a run cannot use a class of Lightning, or None if it can."""
    kinds = [reason for end, reason in REFUSED_KINDS.items() if name.endswith(end)]
    return REFUSED_CLASSES.get(name, *kinds)


def named_classes(trainer: Namespace) -> list[tuple[str, str]]:
    """Return a setting and a class name without its module for each class of Lightning in the settings."""
    found = []
    for setting in ("callbacks", "logger", "plugins", "profiler", "strategy"):
        value = trainer[setting]
        for one in value if isinstance(value, list) else [value]:
            if path := getattr(one, "class_path", None):
                found.append((setting, path.rpartition(".")[2]))
    return found
