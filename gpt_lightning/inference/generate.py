"""Generate token ids step by step.

The global random state, and the mode and weights of the model, are left unchanged.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gpt_lightning.errors import not_finite
from gpt_lightning.inference.kv_cache import IncrementalDecoder
from gpt_lightning.inference.sampling import SamplingConfig, process_logits, sample_next_token
from gpt_lightning.models.gpt import GPT


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Turn dropout and gradients off, then restore the mode of every module."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


@dataclass
class NewToken:
    """The result of one step of `generate` for one row.

    Attributes:
        row: Index of the prompt.
        token_id: The new token; None if the row ended without one.
        log_prob: Natural logarithm of the probability that the model gave the token, before any sampling setting.
        finish_reason: Empty while the row continues; else length (max_new_tokens reached), eos (an eos_id was chosen)
            or exhausted (no_repeat_ngram_size allows no token). The caller may set it to end the row after this token.
    """

    row: int
    token_id: int | None
    log_prob: float
    finish_reason: str


def generate(
    model: GPT, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, samples: Sequence[int] | None = None
) -> Iterator[list[NewToken]]:
    """Continue a batch of prompts of any lengths and yield the new tokens of each step.

    The model is in evaluation mode only while a step is computed, and in its own mode between the steps.

    Each row has its own random generator, and its logits are those of the row alone up to rounding. So its tokens do
    not depend on the other rows, unless two candidates are nearly tied (their logits differ by about one part in 10^6
    in float32, one in 100 in bfloat16).

    Args:
        model: The model, in training or evaluation mode.
        prompts: Token ids of each row, at least one row of at least one token.
        sampling: Settings; stop_strings, num_samples and batch_size are ignored.
        samples: Sample number of each row, which is added to its seed; None for 0.

    Yields:
        A token for each row that is not finished, in order.

    Raises:
        DivergedError: A logit is NaN or infinite.
    """
    assert prompts
    assert all(prompts)
    texts = [list(prompt) for prompt in prompts]  # prompt and completion
    generators = [sampling.generator(sample) for sample in samples or [0] * len(prompts)]
    depends_on_text = sampling.repetition_penalty != 1 or sampling.no_repeat_ngram_size is not None
    decoder = IncrementalDecoder(model, max(map(len, texts)) + sampling.max_new_tokens)
    running = list(range(len(texts)))
    for new_tokens in range(sampling.max_new_tokens):
        with evaluation_mode(model):  # ends before the yield, so that the caller's code does not run in it
            logits = model.out_head(decoder.last_hidden_states([texts[row] for row in running])).float()  # (B, V)
            choices = logits
            if depends_on_text or new_tokens < sampling.min_new_tokens:
                rows = zip(logits, running, strict=True)
                choices = torch.stack([process_logits(one, texts[row], new_tokens, sampling) for one, row in rows])
            new_ids = sample_next_token(choices, sampling, [generators[row] for row in running])[:, None]  # (B, 1)
            new_ids = new_ids.to(logits.device)
            chosen = choices.gather(-1, new_ids)[:, 0].tolist()
            log_probs = (logits.gather(-1, new_ids)[:, 0] - logits.logsumexp(-1)).tolist()
        if not all(map(math.isfinite, log_probs)):
            raise not_finite()
        step = []
        for row, token_id, logit, log_prob in zip(running, new_ids[:, 0].tolist(), chosen, log_probs, strict=True):
            if logit == -math.inf or token_id in sampling.eos_ids:
                step.append(NewToken(row, None, log_prob, "exhausted" if logit == -math.inf else "eos"))
            else:
                texts[row].append(token_id)
                is_last = new_tokens + 1 == sampling.max_new_tokens
                step.append(NewToken(row, token_id, log_prob, "length" if is_last else ""))
        yield step
        running = [token.row for token in step if not token.finish_reason]
        if not running:
            return
