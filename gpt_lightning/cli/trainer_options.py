"""Which options and classes of Lightning's Trainer a run may use."""

from __future__ import annotations

import re

from jsonargparse import Namespace

from gpt_lightning.errors import InputError
from gpt_lightning.training.distributed import launched_externally
from gpt_lightning.training.hardware import check_device
from gpt_lightning.validation import require, require_integer, require_number

# Lightning's, less what the program decides itself.
TRAINER_OWNED = {
    "enable_checkpointing",
    "enable_model_summary",
    "default_root_dir",
    "fast_dev_run",
    "barebones",
    "val_check_interval",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "min_epochs",
    "min_steps",
    "overfit_batches",
    "limit_predict_batches",
    "reload_dataloaders_every_n_epochs",
    "use_distributed_sampler",
    "model_registry",
}
TRAINER_DEFAULTS = {"trainer.max_epochs": 10, "trainer.log_every_n_steps": 1}
TRAINER_FIXED = {
    "check_val_every_n_epoch": None,  # callbacks/evaluation.py decides
    "num_sanity_val_steps": -1,  # the evaluation before the first optimizer step, over everything
    "max_steps": -1,  # callbacks/evaluation.py stops the run
    "use_distributed_sampler": False,  # data/windows.py knows the ranks
    "enable_model_summary": False,
}
# Read here as a count or a share: which of the two a Union of Lightning's tries first is not sure
# (https://docs.python.org/3/library/typing.html#typing.Union, and its cache).
LIMITS = {
    "limit_train_batches": "an epoch",
    "limit_val_batches": "an evaluation",
    "limit_test_batches": "the test text",
}
# Classes of Lightning whose settings are code.
TAKING_CODE = ("lightning.pytorch.callbacks.LambdaCallback", "lightning.pytorch.callbacks.lambda_function")
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
    "Precision": "is chosen by the setting trainer.precision (64-true, 16-true, bf16-mixed ...), not as a plugin",
    "CheckpointIO": "cannot be set: the program writes its checkpoints itself, each whole or not at all",
}


def check_trainer(trainer: Namespace) -> None:
    """Check the `trainer.*` settings that Lightning accepts silently or refuses at length.

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
    if trainer["num_nodes"] != 1 and not launched_externally():
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
    """Return why a run cannot use a class of Lightning, or None if it can."""
    kinds = [reason for end, reason in REFUSED_KINDS.items() if name.endswith(end)]
    return REFUSED_CLASSES.get(name, *kinds)


def named_classes(trainer: Namespace) -> list[tuple[str, str]]:
    """Return the settings that name classes, each with a class's name without its module."""
    found = []
    for setting in ("callbacks", "logger", "plugins", "profiler", "strategy"):
        value = trainer[setting]
        for one in value if isinstance(value, list) else [value]:
            if path := getattr(one, "class_path", None):
                found.append((setting, path.rpartition(".")[2]))
    return found
