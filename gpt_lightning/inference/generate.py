"""The completion loop: token ids in, token ids out.

The global random state, the training mode and the model stay as they were found.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from gpt_lightning.inference.kv_cache import IncrementalDecoder
from gpt_lightning.inference.sampling import SamplingConfig, process_logits, sample_next_token
from gpt_lightning.models.gpt import GPT


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout and gradients off; afterwards every module has the mode it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


@dataclass
class Completion:
    """What the model added to a prompt.

    Attributes:
        token_ids: Without the prompt, and without the id that ended it.
        log_probs: Of each, the logarithm of the probability that the model itself gave it, before all settings.
        finish_reason: length (max_new_tokens), eos (an eos_id), stop (the listener said so) or exhausted (no token
            was left that no_repeat_ngram_size allows). Empty while it goes on.
    """

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reason: str = ""


Listener = Callable[[int, int], bool]


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    samples: Sequence[int] | None = None,
    listener: Listener | None = None,
) -> list[Completion]:
    """Continues prompts of any lengths together, each until an eos_id, max_new_tokens or the listener's word.

    A row gets what it would get alone: it has its own generator, and its logits differ from those that it would
    have alone by no more than the rounding of sums in another order. So its tokens are the same unless two
    candidates are as close as that (about one in 10^6 of the logits in float32, one in 100 in bfloat16).

    Args:
        model: Any mode; it is put back.
        prompts: Token ids of each row, at least one.
        sampling: See there; of stop_strings, num_samples and batch_size it knows nothing.
        samples: The number of each row among the samples of its prompt; None for 0.
        listener: Called with the row and the id of each new token; whether the row ends with it.

    Returns:
        A completion per row.
    """
    completions = [Completion() for _ in prompts]
    texts = [list(prompt) for prompt in prompts]  # prompt and completion
    generators = [sampling.generator(sample) for sample in samples or [0] * len(prompts)]
    looks_back = sampling.repetition_penalty != 1 or sampling.no_repeat_ngram_size is not None
    with evaluation_mode(model):
        decoder = IncrementalDecoder(model, max(map(len, texts)) + sampling.max_new_tokens)
        running = list(range(len(texts)))
        while running:
            logits = model.out_head(decoder.last_hidden_states([texts[row] for row in running])).float()  # (B, V)
            new_tokens = len(completions[running[0]].token_ids)
            choices = logits
            if looks_back or new_tokens < sampling.min_new_tokens:
                rows = zip(logits, running, strict=True)
                choices = torch.stack([process_logits(one, texts[row], new_tokens, sampling) for one, row in rows])
            new_ids = sample_next_token(choices, sampling, [generators[row] for row in running])[:, None]  # (B, 1)
            new_ids = new_ids.to(logits.device)
            chances = choices.gather(-1, new_ids)[:, 0].tolist()
            log_probs = (logits.gather(-1, new_ids)[:, 0] - logits.logsumexp(-1)).tolist()
            for row, token_id, chance, log_prob in zip(
                running, new_ids[:, 0].tolist(), chances, log_probs, strict=True
            ):
                completion = completions[row]
                if chance == -math.inf or token_id in sampling.eos_ids:
                    completion.finish_reason = "exhausted" if chance == -math.inf else "eos"
                    continue
                texts[row].append(token_id)
                completion.token_ids.append(token_id)
                completion.log_probs.append(log_prob)
                if listener is not None and listener(row, token_id):
                    completion.finish_reason = "stop"
                elif len(completion.token_ids) == sampling.max_new_tokens:
                    completion.finish_reason = "length"
            running = [row for row in running if not completions[row].finish_reason]
    return completions
