"""`validate` and `test`: the loss of a checkpoint on a split or a whole text."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from gpt_lightning.checkpoints.loading import check_weights
from gpt_lightning.console import say
from gpt_lightning.data.datamodule import TextDataModule
from gpt_lightning.data.sources import short_name
from gpt_lightning.training.module import GPTModule
from gpt_lightning.training.resume import check_same_text
from gpt_lightning.training.summary import describe_evaluation

# Command -> split, prefix of its metrics.
STAGES = {"validate": ("validation", "val"), "test": ("test", "test")}


def evaluate(
    trainer: Trainer,
    data: TextDataModule,
    content: dict[str, Any],
    name: str,
    stage: str,
    *,
    is_whole: bool,
    compile: bool,  # noqa: A002  as in torch.compile
) -> None:
    """Print the loss and perplexity of a checkpoint.

    Args:
        trainer: A Trainer that has not been used.
        data: Data module that has not been set up.
        content: The checkpoint's content.
        name: File name of the checkpoint, for messages.
        stage: "validate" for the checkpoint's own validation split or all of `data.text`, "test" for `data.test_text`.
        is_whole: Whether to evaluate all of a text instead of the checkpoint's validation split.
        compile: Whether to run the network through `torch.compile`.

    Raises:
        InputError: The text differs from the one that the checkpoint was trained on, or the weights are invalid.
    """
    split, metric = STAGES[stage]
    if stage == "validate" and is_whole:
        data.setup_whole_text()
    else:
        data.setup(stage)
    if not is_whole:
        check_same_text(data, content, name)
    loaded = check_weights(content, name)
    network = loaded.build()
    if trainer.precision == "32-true":
        network = network.float()  # a bf16-true run's weights are bfloat16
    module = GPTModule(loaded.config, compile=compile, network=network)
    getattr(trainer, stage)(module, data, verbose=False)
    if trainer.is_global_zero:
        assert data.source is not None
        if is_whole:
            evaluated = f"all of {data.source.name}"
        elif data.hparams["val_text"] is not None:
            evaluated = f"all of {short_name(data.hparams['val_text'])}"
        else:
            evaluated = f"{split} split of {data.source.name}"
        loss, perplexity = module.evaluated[f"{metric}_loss"], module.evaluated[f"{metric}_perplexity"]
        tokens = module.evaluated_tokens[metric]
        say(describe_evaluation(evaluated, loss, perplexity, tokens, data.splits[split]))
