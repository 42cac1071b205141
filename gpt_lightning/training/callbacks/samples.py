"""Completions of the prompts during training."""

from __future__ import annotations

import html
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from gpt_lightning.console import labeled, say
from gpt_lightning.data.shards import ShardedTokens
from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.data.windows import TokenIds
from gpt_lightning.errors import MachineError, why_out_of_memory
from gpt_lightning.evaluation.memorization import Memorization, describe_copied
from gpt_lightning.files import append_row
from gpt_lightning.inference.completion import CompletedText, complete_all
from gpt_lightning.inference.sampling import SamplingConfig
from gpt_lightning.models.gpt import GPT
from gpt_lightning.runs.folder import Run
from gpt_lightning.runs.tables import read_samples
from gpt_lightning.training.callbacks.metrics import log_to_loggers, tensorboards_of
from gpt_lightning.training.callbacks.step_end import StepEnd, averages_in
from gpt_lightning.training.distributed import whole_network
from gpt_lightning.training.module import GPTModule

ROWS_SHOWN = 200  # samples in TensorBoard's table, the newest
MOST_SEARCHED = 100_000_000  # training tokens; a search takes about a second


class Samples(StepEnd):
    """Prints a completion of each prompt after each epoch, every N optimizer steps and at the end of the run.

    Newlines are printed as spaces, control characters as escapes. The line after it says how much of it is copied from
    the training text, of which the first MOST_SEARCHED tokens are searched, or the first shard. `predict` writes the
    same text from the checkpoint of that step: this callback must come after those that average weights and before the
    one that saves them.

    Args:
        run: The run folder; samples.jsonl is written there.
        token_ids: (N,) training tokens.
        tokenizer: Their tokenizer.
        prompts: Texts to complete.
        sampling: How the next token is chosen.
        every: Optimizer steps between samples; None for samples after each epoch only.
    """

    def __init__(
        self,
        run: Run,
        token_ids: TokenIds,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        sampling: SamplingConfig,
        every: int | None,
    ) -> None:
        self.run = run
        searched = (token_ids.sample() if isinstance(token_ids, ShardedTokens) else token_ids)[:MOST_SEARCHED]
        self.memorization = Memorization(searched, tokenizer)
        is_limited = len(searched) < len(token_ids)
        self.searched = f"; searched in the first {len(searched):,} training tokens" if is_limited else ""
        self.prompts = prompts
        self.sampling = sampling
        self.every = every
        self._newest: deque[dict[str, Any]] = deque(maxlen=ROWS_SHOWN)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and tensorboards_of(trainer):
            self._newest = deque(read_samples(self.run.samples_file), ROWS_SHOWN)  # a resumed run has some

    def after_step(self, trainer: Trainer, module: LightningModule, *, epoch_ended: bool, run_ends: bool) -> None:
        step = trainer.global_step
        by_steps = self.every is not None and step % self.every == 0
        if self.prompts and (epoch_ended or run_ends or by_steps):
            assert isinstance(module, GPTModule)
            with averages_in(trainer, module):
                network = whole_network(trainer, module.model)
                completed = [] if network is None else self._complete(network)
            if trainer.is_global_zero:
                self._record(trainer, completed, step)

    def _record(self, trainer: Trainer, completed: list[CompletedText], step: int) -> None:
        epoch = trainer.current_epoch + 1
        tokens = of = 0
        for one in completed:
            copied = self.memorization.describe(one)
            tokens, of = tokens + copied["tokens"], of + copied["of"]
            say(" ".join(one.text.splitlines()))
            say(labeled("copied", f"{describe_copied(copied, one.completion)}{self.searched}"))
            row = {"step": step, "epoch": epoch, "prompt": one.prompt, "completion": one.completion, "copied": copied}
            append_row(self.run.samples_file, row)
            self._newest.append(row)
        self._log(trainer, step, tokens / max(of, 1))

    def _log(self, trainer: Trainer, step: int, copied_share: float) -> None:
        """Log the share of copied tokens to all loggers, and the newest samples to TensorBoard."""
        log_to_loggers(trainer, {"copied_share": copied_share})
        for logger in tensorboards_of(trainer):
            logger.experiment.add_text("samples", samples_table(self._newest), step)

    def _complete(self, model: GPT) -> list[CompletedText]:
        try:
            return list(complete_all(model, self.memorization.tokenizer, self.prompts, self.sampling))
        except Exception as error:
            if (reason := why_out_of_memory(error)) is None:
                raise
            raise MachineError(
                f"out of memory while sampling ({reason}): lower sampling.batch_size ({self.sampling.batch_size}) "
                f"or sampling.max_new_tokens ({self.sampling.max_new_tokens})"
            ) from error


def samples_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return rows of samples.jsonl as a Markdown table, with special characters escaped."""

    def cell(text: object) -> str:
        return html.escape(" ".join(str(text).split())).replace("|", "&#124;")

    lines = ["| epoch | step | prompt | completion |", "|---|---|---|---|"]
    lines += [
        f"| {' | '.join(cell(row[name]) for name in ('epoch', 'step', 'prompt', 'completion'))} |" for row in rows
    ]
    return "\n".join(lines)
