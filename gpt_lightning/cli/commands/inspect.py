"""Inspect the candidates for the next token, or how hard each token of a text is.

    python -m gpt_lightning inspect --ckpt_path CKPT --prompt TEXT [--temperature T ...] [--top_k K]
                                    [--candidates 10] [--draws 1000] [--seed 123] [--output CHART.png]
    python -m gpt_lightning inspect --ckpt_path CKPT --prompt TEXT --grid [--temperature T ...] [--top_k K ...]
                                    [--max_new_tokens 25]
    python -m gpt_lightning inspect --ckpt_path CKPT --text FILE [--output PAGE.html]
    python -m gpt_lightning inspect --ckpt_path CKPT --prompt TEXT --output PAGE.html
    python -m gpt_lightning inspect --untrained CONFIG (--text FILE | --prompt TEXT) [--seed N] [--output PAGE.html]

The first form prints a table of the most likely next tokens: their probabilities at each temperature, with and
without top-k, and how often each was drawn. --output CHART.png, or CHART.pdf, also writes a bar chart of the
probabilities, in both formats. The second form completes the prompt with each combination of temperature and top-k.

The others measure the loss of each token of a text, with a checkpoint or with the initial weights of a config. They
write a page in which each token is coloured by its loss, or print a table. A terminal shows a text of more than 30
tokens in colours instead of the table, unless NO_COLOR is set.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from gpt_lightning.checkpoints.loading import open_checkpoint
from gpt_lightning.cli.arguments import Parser, was_passed
from gpt_lightning.console import say, table, warn
from gpt_lightning.data.text import read_text
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.errors import InputError, not_finite
from gpt_lightning.evaluation.copy_finder import CopyFinder, shortest_run
from gpt_lightning.evaluation.next_token import candidates, draw_bars
from gpt_lightning.evaluation.token_page import render_token_page
from gpt_lightning.evaluation.token_text import coloured_text, prediction_rows, prediction_table, totals_lines
from gpt_lightning.evaluation.tokens import score_tokens, total
from gpt_lightning.evaluation.training_text import find_training_tokens
from gpt_lightning.files import check_absent, check_folder, replace_bytes
from gpt_lightning.inference.completion import check_prompt, complete_all, warn_of_length
from gpt_lightning.inference.generate import evaluation_mode
from gpt_lightning.inference.pretrained import TrainedGPT, build_trained, load
from gpt_lightning.inference.sampling import SamplingConfig
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT
from gpt_lightning.runs.figures import FORMATS
from gpt_lightning.validation import require, require_integer

TEMPERATURES = (1.0, 0.1, 5.0)  # of the first figure in the reference notes (docs/book.md)
MOST_DRAWS = 100_000  # takes a minute or two
MOST_TOKENS = 200_000  # a page of 40 MB
SCREEN_TOKENS = 30  # a terminal shows a table of so many tokens
OF_CANDIDATES = ("temperature", "top_k", "candidates", "draws", "grid", "max_new_tokens")


def next_tokens(
    gpt: TrainedGPT, prompt: str, settings: list[SamplingConfig], count: int, draws: int, chart: Path | None
) -> None:
    """Print a table of the most likely next tokens, and draw a bar chart of it.

    Args:
        gpt: The model and its tokenizer.
        prompt: Non-empty text.
        settings: Settings with temperatures above 0; each gives two columns.
        count: Number of tokens in the table.
        draws: Number of tokens drawn with each setting.
        chart: The chart's path without its ending; None for no chart.
    """
    prompt_ids = gpt.tokenizer.encode(prompt)
    warn_of_length(len(prompt_ids), gpt.model.context_length)
    ids = torch.tensor([prompt_ids[-gpt.model.context_length :]])
    with evaluation_mode(gpt.model):
        logits = gpt.model.out_head(gpt.model.hidden_states(ids)[:, -1])  # (1, V)
    if not logits.isfinite().all():
        raise not_finite()
    likely = logits[0].topk(count).indices.tolist()
    words = [repr(gpt.tokenizer.decode([i])) for i in likely]
    print(f"After {prompt!r}, the {count} most likely of {gpt.model.vocab_size:,} tokens, {draws:,} draws each:")
    print(candidates(words, logits, settings, draws, likely))
    if chart is not None:
        draw_bars(words, logits, settings, chart, likely)


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


def token_losses(
    gpt: TrainedGPT, name: str, model: str, text: str, output: Path | None, training_ids: NDArray[Any] | None
) -> None:
    """Print the loss of each token of a text, or write it to a page, and print the totals.

    Args:
        gpt: The model and its tokenizer.
        name: Name of the text.
        model: Name of the model.
        text: The text.
        output: The page to write; None to print.
        training_ids: Tokens that the model was trained on, whose runs the page marks; None if they are not there.

    Raises:
        InputError: The text has fewer than two or more than `MOST_TOKENS` tokens.
    """
    limit = f"more than {MOST_TOKENS:,} tokens; use a part of it"
    if len(text) > 50 * MOST_TOKENS:  # encoding it would take long
        raise InputError(f"{name}: has {limit}")
    token_ids, vocab_size = gpt.tokenizer.encode(text), gpt.model.vocab_size
    if len(token_ids) > MOST_TOKENS:
        raise InputError(f"{name}: has {limit}")
    scores = score_tokens(gpt.model, token_ids)
    if output is not None:
        copied = []
        if training_ids is not None:
            runs = CopyFinder(training_ids).copied_runs(token_ids, shortest_run(training_ids, gpt.tokenizer))
            copied = [(run.start, run.start + run.length) for run in runs]
        page = render_token_page(name, model, gpt.tokenizer, gpt.model.config, token_ids, scores, copied)
        replace_bytes(output, page.encode())
        say(str(output))
    elif len(token_ids) > SCREEN_TOKENS and _shows_colours():
        print(coloured_text(gpt.tokenizer, token_ids, scores, vocab_size))
    else:
        print(prediction_table(prediction_rows(gpt.tokenizer, token_ids, scores)))
    print("\n".join(totals_lines(total(scores, token_ids, gpt.tokenizer), vocab_size)))


def _shows_colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def untrained(path: str, seed: int | None) -> tuple[TrainedGPT, int]:
    """Return the model that `fit` would train with a config, with its initial weights, and their seed.

    Args:
        path: A YAML file of settings, or the name of a packaged config.
        seed: Seed of the weights; None for the config's.

    Raises:
        InputError: The config cannot be read, or its model cannot be built or has trained weights.
    """
    # imported here, because jsonargparse takes long to import
    from gpt_lightning.cli.commands.predict import MODEL_SETTINGS
    from gpt_lightning.cli.config_files import read_config
    from gpt_lightning.cli.parser_errors import unknown_setting

    config, _ = read_config(path)
    if config.get("init_from") is not None:
        raise InputError(f"{path}: starts from init_from ({config['init_from']}); inspect that with --ckpt_path")
    for section in ("model", "data"):
        config |= {f"{section}.{name}": value for name, value in config.get(section, {}).items()}
    settings = {name.removeprefix("model."): value for name, value in config.items() if name.startswith("model.")}
    for name in settings:
        if name not in MODEL_SETTINGS:
            known = [f"model.{one}" for one in sorted(MODEL_SETTINGS)]
            raise InputError(f"{path}: {unknown_setting(f'model.{name}', known)}")
    seed = config.get("seed_everything", 123) if seed is None else seed
    require_integer("seed_everything", seed, 0, 2**32 - 1)
    name = config.get("data.tokenizer", "gpt2")
    require(isinstance(name, str), "data.tokenizer", "be a text", name)
    tokenizer = load_tokenizer(name)
    if settings.get("vocab_size") is None:
        settings["vocab_size"] = tokenizer.vocab_size
    architecture = GPTConfig(**{one.name: settings[one.name] for one in fields(GPTConfig) if one.name in settings})
    architecture.check_memory()
    if architecture.vocab_size < tokenizer.vocab_size:
        size = architecture.vocab_size
        raise InputError(f"model.vocab_size ({size}) is smaller than the tokenizer's {tokenizer.vocab_size}")
    torch.manual_seed(seed)
    return TrainedGPT(GPT(architecture).eval(), tokenizer), seed


def run(arguments: list[str]) -> None:
    """Run `inspect` with these arguments."""
    parser = Parser("inspect", __doc__)
    add = parser.add_argument
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--ckpt_path", metavar="CKPT", help="checkpoint to inspect")
    model.add_argument("--untrained", metavar="CONFIG", help="inspect the initial weights of a config's model instead")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--prompt", action="append", metavar="TEXT", help="text before the next token")
    text.add_argument("--text", metavar="FILE", help="file whose tokens are measured")
    add("--temperature", type=float, action="append", help="may be repeated; default: 1, 0.1 and 5")
    add("--top_k", type=int, action="append", help="may be repeated")
    add("--candidates", type=int, default=10, help="number of tokens to show")
    add("--draws", type=int, default=1000, help="number of tokens drawn with each setting")
    add("--seed", type=int, help="seed of the draws (default: 123), or of untrained weights (default: the config's)")
    add("--output", metavar="PATH", help="page.html for the losses of the tokens, chart.png or .pdf for the bar chart")
    add("--grid", action="store_true", help="complete the prompt at each temperature with each top_k")
    add("--max_new_tokens", type=int, default=25, help="length of each completion with --grid")
    options = parser.parse_args(arguments)
    for prompt in options.prompt or ():
        check_prompt(prompt)
    if options.prompt and len(options.prompt) > 1:
        raise InputError("inspect takes one --prompt")
    is_page = options.output is not None and options.output.lower().endswith(".html")
    if is_page or options.text is not None or options.untrained is not None:
        _run_tokens(arguments, options, is_page)
    else:
        _run_candidates(arguments, options)


def _check_absent_in_folder(output: Path) -> None:
    check_absent(output)
    check_folder(output)


def _run_tokens(arguments: Sequence[str], options: argparse.Namespace, is_page: bool) -> None:
    for name in (*OF_CANDIDATES, *(["seed"] if options.untrained is None else [])):
        if was_passed(list(arguments), f"--{name}"):
            raise InputError(f"--{name} has no effect on the losses of tokens; leave it out")
    output = None
    if options.output is not None:
        if not is_page:
            raise InputError(f"--output ({options.output}) must end with .html, because token losses are a page")
        output = Path(options.output)
        _check_absent_in_folder(output)
    training_ids = clean = None
    if options.untrained is None:
        opened = open_checkpoint(options.ckpt_path)
        gpt, model = build_trained(opened), f"Model: {options.ckpt_path}"
        clean = opened.content["datamodule_hyper_parameters"].get("clean")
        if output is not None:
            training_ids, missing = find_training_tokens(opened)
            if missing:
                warn(f"copied runs are not marked: {missing}")
    else:
        gpt, seed = untrained(options.untrained, options.seed)
        model = f"Model: untrained, of {options.untrained}, seed {seed}"
    text = options.prompt[0] if options.text is None else read_text(options.text, setting="--text", clean=clean).content
    token_losses(
        gpt, "the prompt" if options.text is None else Path(options.text).name, model, text, output, training_ids
    )


def _run_candidates(arguments: list[str], options: argparse.Namespace) -> None:
    (prompt,) = options.prompt
    for name in ("candidates", "draws", "output") if options.grid else ("max_new_tokens",):
        if was_passed(arguments, f"--{name}"):
            raise InputError(f"--{name} has no effect {'with' if options.grid else 'without'} --grid; leave it out")
    seed = 123 if options.seed is None else options.seed
    temperatures, top_ks = options.temperature or list(TEMPERATURES), options.top_k or []
    sampling = SamplingConfig(seed=seed, max_new_tokens=options.max_new_tokens)
    settings = [SamplingConfig(temperature=one, top_k=k, seed=seed) for one in temperatures for k in (None, *top_ks)]
    require_integer("--draws", options.draws, 1, MOST_DRAWS)
    if not options.grid and any(one.is_greedy for one in settings):
        raise InputError("--temperature must be above 0, because at 0 nothing is drawn; --grid accepts 0")
    chart = None if options.output is None else _chart_path(options.output)
    gpt = load(options.ckpt_path)
    require_integer("--candidates", options.candidates, 1, gpt.model.vocab_size)
    for one in settings:
        one.check_vocabulary(gpt.model.vocab_size)
    if options.grid:
        grid(gpt, prompt, temperatures, [None, *top_ks], sampling)
    else:
        next_tokens(gpt, prompt, settings, options.candidates, options.draws, chart)


def _chart_path(output: str) -> Path:
    """Return the path of a bar chart without its ending, after checking that its files can be written."""
    stem, ending = os.path.splitext(output)
    if ending.lower().removeprefix(".") not in FORMATS:
        raise InputError(
            f"--output ({output}) must end with .html, for a page of the losses of the prompt's tokens, or with .png "
            "or .pdf, for a bar chart of the next token"
        )
    for one in FORMATS:
        _check_absent_in_folder(Path(f"{stem}.{one}"))
    return Path(stem)
