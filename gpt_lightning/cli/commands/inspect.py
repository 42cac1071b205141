"""Inspect next-token probabilities under different sampling settings.

    python -m gpt_lightning inspect --ckpt_path CKPT --prompt TEXT [--temperature T ...] [--top_k K]
                                    [--candidates 10] [--draws 1000] [--seed 123] [--output FOLDER]
    python -m gpt_lightning inspect --ckpt_path CKPT --prompt TEXT --grid [--temperature T ...] [--top_k K ...]
                                    [--max_new_tokens 25]

The first form prints a table of the most likely next tokens: their probabilities at each temperature, with and
without top-k, and how often each was drawn. --output also writes a bar chart of the probabilities. The second form
completes the prompt with each combination of temperature and top-k.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from gpt_lightning.cli.arguments import Parser, was_passed
from gpt_lightning.console import table
from gpt_lightning.errors import InputError
from gpt_lightning.evaluation.next_token import candidates, draw_bars
from gpt_lightning.inference.completion import check_prompt, complete_all, warn_of_length
from gpt_lightning.inference.generate import evaluation_mode
from gpt_lightning.inference.pretrained import TrainedGPT, load
from gpt_lightning.inference.sampling import SamplingConfig
from gpt_lightning.validation import require_integer

TEMPERATURES = (1.0, 0.1, 5.0)  # of the first figure in the reference notes (docs/book.md)
MOST_DRAWS = 100_000  # takes a minute or two


def next_tokens(
    gpt: TrainedGPT, prompt: str, settings: list[SamplingConfig], count: int, draws: int, output: Path | None
) -> None:
    """Print a table of the most likely next tokens, and draw a bar chart of it.

    Args:
        gpt: The model and its tokenizer.
        prompt: Non-empty text.
        settings: Settings with temperatures above 0; each gives two columns.
        count: Number of tokens in the table.
        draws: Number of tokens drawn with each setting.
        output: Folder for the chart, as PDF and PNG; None for no chart.
    """
    prompt_ids = gpt.tokenizer.encode(prompt)
    warn_of_length(len(prompt_ids), gpt.model.context_length)
    ids = torch.tensor([prompt_ids[-gpt.model.context_length :]])
    with evaluation_mode(gpt.model):
        logits = gpt.model.out_head(gpt.model.hidden_states(ids)[:, -1])  # (1, V)
    likely = logits[0].topk(count).indices.tolist()
    words = [repr(gpt.tokenizer.decode([i])) for i in likely]
    print(f"After {prompt!r}, the {count} most likely of {gpt.model.vocab_size:,} tokens, {draws:,} draws each:")
    print(candidates(words, logits, settings, draws, likely))
    if output is not None:
        draw_bars(words, logits, settings, output / "next-token", likely)


def grid(
    gpt: TrainedGPT, prompt: str, temperatures: list[float], top_ks: list[int | None], sampling: SamplingConfig
) -> None:
    """Print a completion of the prompt for each combination of temperature and top-k.

    Args:
        gpt: The model and its tokenizer.
        prompt: Non-empty text.
        temperatures: Temperatures, 0 or above.
        top_ks: Values of top-k; None for no top-k.
        sampling: All other settings.
    """
    rows: list[list[str]] = []
    for temperature in temperatures:
        for top_k in top_ks:
            one = replace(sampling, temperature=temperature, top_k=top_k)
            (completed,) = complete_all(gpt.model, gpt.tokenizer, [prompt], one, warns=not rows)
            rows.append([f"{temperature:g}", "all" if top_k is None else f"{top_k}", repr(completed.completion)])
    print(f"Completions of {prompt!r} from seed {sampling.seed}:")
    print(table(">><", ["temperature", "top_k", "completion"], rows))


def run(arguments: list[str]) -> None:
    """Run `inspect` with these arguments."""
    parser = Parser("inspect", __doc__)
    parser.add_argument("--ckpt_path", required=True, metavar="CKPT", help="checkpoint to inspect")
    parser.add_argument("--prompt", required=True, action="append", metavar="TEXT", help="text before the next token")
    parser.add_argument("--temperature", type=float, action="append", help="may be repeated; default: 1, 0.1 and 5")
    parser.add_argument("--top_k", type=int, action="append", help="may be repeated")
    parser.add_argument("--candidates", type=int, default=10, help="number of tokens to show")
    parser.add_argument("--draws", type=int, default=1000, help="number of tokens drawn with each setting")
    parser.add_argument("--seed", type=int, default=123, help="seed of the draws")
    parser.add_argument("--output", metavar="FOLDER", help="folder for the bar chart")
    parser.add_argument("--grid", action="store_true", help="complete the prompt at each temperature with each top_k")
    parser.add_argument("--max_new_tokens", type=int, default=25, help="length of each completion with --grid")
    options = parser.parse_args(arguments)
    if len(options.prompt) > 1:
        raise InputError("inspect takes one --prompt")
    (prompt,) = options.prompt
    check_prompt(prompt)
    for name in ("candidates", "draws", "output") if options.grid else ("max_new_tokens",):
        if was_passed(arguments, f"--{name}"):
            raise InputError(f"--{name} has no effect {'with' if options.grid else 'without'} --grid; leave it out")
    temperatures, top_ks = options.temperature or list(TEMPERATURES), options.top_k or []
    sampling = SamplingConfig(seed=options.seed, max_new_tokens=options.max_new_tokens)
    settings = [
        SamplingConfig(temperature=one, top_k=k, seed=options.seed) for one in temperatures for k in (None, *top_ks)
    ]
    require_integer("--draws", options.draws, 1, MOST_DRAWS)
    if not options.grid and any(one.is_greedy for one in settings):
        raise InputError("--temperature must be above 0, because at 0 nothing is drawn; --grid accepts 0")
    gpt = load(options.ckpt_path)
    require_integer("--candidates", options.candidates, 1, gpt.model.vocab_size)
    for one in settings:
        one.check_vocabulary(gpt.model.vocab_size)
    if options.grid:
        grid(gpt, prompt, temperatures, [None, *top_ks], sampling)
    else:
        output = None if options.output is None else Path(options.output)
        next_tokens(gpt, prompt, settings, options.candidates, options.draws, output)
