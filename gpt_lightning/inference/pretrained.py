"""Load a trained model and its tokenizer from a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gpt_lightning.checkpoints.loading import LoadedCheckpoint, open_checkpoint
from gpt_lightning.data.tokenizer import Tokenizer, load_tokenizer, text_to_token_ids
from gpt_lightning.errors import InputError
from gpt_lightning.inference.completion import CompletedText, check_prompt, complete_all
from gpt_lightning.inference.generate import evaluation_mode
from gpt_lightning.inference.sampling import SamplingConfig
from gpt_lightning.models.gpt import GPT
from gpt_lightning.models.loss import cross_entropy


@dataclass(frozen=True)
class TrainedGPT:
    """A model and its tokenizer.

    Attributes:
        model: The model, in evaluation mode; `.to(device)` moves it.
        tokenizer: The tokenizer that the model was trained with.
    """

    model: GPT
    tokenizer: Tokenizer

    def complete(self, prompt: str, **sampling: Any) -> str:
        """Return the completion of a prompt, without the prompt; the first of several samples. See `complete_all`."""
        return self.complete_all([prompt], **sampling)[0].completion

    def complete_all(self, prompts: Sequence[str], **sampling: Any) -> list[CompletedText]:
        """Return all completions of all prompts, with token ids, log-probabilities and finish reasons.

        Args:
            prompts: Non-empty texts.
            sampling: Fields of `SamplingConfig`: max_new_tokens, temperature, top_k, num_samples, seed ...

        Raises:
            InputError: A prompt is empty, or a field is unknown or out of range.
        """
        unknown = sorted(set(sampling) - set(SamplingConfig.__dataclass_fields__))
        if unknown:
            raise InputError(
                f"unknown setting {unknown[0]!r}; sampling has {', '.join(SamplingConfig.__dataclass_fields__)}"
            )
        for prompt in prompts:
            check_prompt(prompt)
        return list(complete_all(self.model, self.tokenizer, prompts, SamplingConfig(**sampling)))

    def loss(self, text: str) -> float:
        """Return the mean loss of a text in nats per token, over all tokens except the first.

        The text is evaluated in windows of context_length tokens; the last one may be shorter. `validate` uses full
        windows only.

        Raises:
            InputError: The text has fewer than two tokens.
        """
        token_ids = text_to_token_ids(text, self.tokenizer).to(self.model.tok_emb.weight.device)  # (1, T)
        predicted = token_ids.shape[1] - 1
        if predicted < 1:
            raise InputError(f"the loss of a text needs at least 2 tokens, got {token_ids.shape[1]}")
        total = torch.zeros((), dtype=torch.float64)
        with evaluation_mode(self.model):
            for start in range(0, predicted, self.model.context_length):
                piece = token_ids[:, start : start + self.model.context_length + 1]
                losses = cross_entropy(self.model(piece[:, :-1]), piece[:, 1:])
                total += losses.double().sum().cpu()
        return total.item() / predicted


def load(checkpoint: str | os.PathLike[str]) -> TrainedGPT:
    """Load the model and the tokenizer of a checkpoint, on the CPU.

    Raises:
        InputError: See `checkpoints.loading.open_checkpoint`.
    """
    return build_trained(open_checkpoint(os.fspath(checkpoint)))


def build_trained(checkpoint: LoadedCheckpoint) -> TrainedGPT:
    """Build the model and load the tokenizer of an opened checkpoint, on the CPU."""
    return TrainedGPT(checkpoint.build(), load_tokenizer(checkpoint.tokenizer))
