"""Recompute the worked examples of the reference notes (docs/book.md) with this program's own functions.

    python -m gpt_lightning explain windows     inputs and targets of a sentence, windows of The Verdict
    python -m gpt_lightning explain loss        from logits to loss and perplexity, on an untrained GPT-2
    python -m gpt_lightning explain sampling    temperature and top-k on two small vocabularies

No trained model is needed. No file is written unless --output names a folder for the figures of sampling.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from gpt_lightning.cli.arguments import Parser
from gpt_lightning.console import table
from gpt_lightning.data.corpus import split_text
from gpt_lightning.data.sources import DATA_ENV
from gpt_lightning.data.text import read_text
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.data.windows import Windows
from gpt_lightning.errors import InputError
from gpt_lightning.evaluation.next_token import candidates, draw_bars
from gpt_lightning.evaluation.token_text import mean_line, prediction_rows, prediction_table
from gpt_lightning.evaluation.tokens import score_tokens
from gpt_lightning.inference.generate import evaluation_mode
from gpt_lightning.inference.sampling import SamplingConfig
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT
from gpt_lightning.models.loss import cross_entropy, perplexity

SEED = 123
SENTENCE = "World War I or the First"
VERDICT = "the-verdict.txt"
INPUTS = ("every effort moves", "I really like")
TARGETS = (" effort moves you", " really like chocolate")
# The toy vocabularies of the notes' sections 5.3 and "Greedy Decoding"; the logits of the second are drawn at random.
WORDS_A = ("closer", "every", "effort", "forward", "inches", "moves", "pizza", "toward", "you")
LOGITS_A = (4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79)
WORDS_B = ("war", "battle", "revolution", "novel", "experiment", "day", "journey", "movement")
# Probabilities of the target tokens in the second note; its untrained model is not that of `explain loss`.
PROBS_B = (9.9453e-06, 1.9495e-05, 1.4662e-05, 1.8303e-05, 1.6926e-05, 2.1331e-05, 1.0184e-05, 1.8939e-05)


def explain_windows() -> None:
    """Print how a sentence becomes inputs and targets, and how many windows a text gives."""
    tokenizer = load_tokenizer("gpt2")
    token_ids = tokenizer.encode(SENTENCE)
    print(f"The text {SENTENCE!r} is {len(token_ids)} tokens:")
    print(table("><", ["id", "token"], [[str(i), repr(tokenizer.decode([i]))] for i in token_ids]))
    windows = Windows(torch.tensor(token_ids), context_length=4, stride=1)
    print("\nIts windows of 4 tokens with stride 1; each target is the token after its input:")
    rows = []
    for i in range(len(windows)):
        for name, ids in zip(("inputs", "targets"), windows[i], strict=True):
            text = repr(tokenizer.decode(ids.tolist()))
            rows.append([f"{i + 1}", name, " ".join(f"{j:>5}" for j in ids.tolist()), text])
    print(table("><<<", ["window", "", "ids", "text"], rows))
    inputs, targets = (ids.tolist() for ids in windows[0])
    print("\nEach token of a window is one prediction task. Those of the first window:")
    rows = [[repr(tokenizer.decode(inputs[: n + 1])), repr(tokenizer.decode([targets[n]]))] for n in range(len(inputs))]
    print(table("<<", ["after", "comes"], rows))
    print(
        "\nWith a stride equal to the context length, every token of a full window is predicted once. The Verdict,\n"
        "split at 90 % of its characters, in batches of 2 (training drops an odd window, validation keeps it):"
    )
    print(_verdict_windows())


def _verdict_windows() -> str:
    folders = [Path("data"), *([Path(folder)] if (folder := os.environ.get(DATA_ENV)) else [])]
    path = next((folder / VERDICT for folder in folders if (folder / VERDICT).is_file()), None)
    if path is None:
        return f"  {VERDICT} is neither in data/ nor in the folder named by {DATA_ENV}; `fit` downloads it"
    tokenizer = load_tokenizer("gpt2")
    text = read_text(path).content
    parts = split_text(text, 0.9)
    tokens = [torch.tensor(tokenizer.encode(part)) for part in parts]
    lines = [
        f"  {len(text):,} characters, {len(tokenizer.encode(text)):,} tokens; "
        f"{len(parts[0]):,} + {len(parts[1]):,} characters, {len(tokens[0]):,} + {len(tokens[1]):,} tokens"
    ]
    rows = []
    for context in (64, 128, 256, 1024):
        train, val = (len(Windows(part, context, context)) for part in tokens)
        rows.append(
            [
                f"{context}",
                f"{train} + {val}",
                f"{train // 2} + {-(-val // 2)}",
                f"{train // 2 * 2 * context:,} + {val * context:,}",
            ]
        )
    lines.append(table(">>>>", ["context", "windows", "batches", "tokens trained on + validated"], rows))
    lines.append("  Context 1024 leaves no validation window, so `fit` refuses it for this text.")
    return "\n".join(lines)


def explain_loss() -> None:
    """Print every step from logits to loss and perplexity for an untrained GPT-2."""
    tokenizer = load_tokenizer("gpt2")
    inputs, targets = (torch.tensor([tokenizer.encode(text) for text in texts]) for texts in (INPUTS, TARGETS))
    print(f"An untrained GPT-2 small (context 256, seed {SEED}) reads 2 texts of 3 tokens.")
    torch.manual_seed(SEED)
    model = GPT(GPTConfig(tokenizer.vocab_size, context_length=256))
    with evaluation_mode(model):
        logits = model(inputs)  # (2, 3, V)
    probs = torch.softmax(logits, dim=-1)
    target_probs = probs.gather(-1, targets[..., None]).squeeze(-1)  # (2, 3)
    print(f"Its logits have the shape {tuple(logits.shape)}: one for each token of the vocabulary, at each position.")
    print("The softmax turns them into probabilities; the loss uses only those of the target tokens:")
    texts = torch.cat([inputs, targets[:, -1:]], dim=1).tolist()  # (2, 4)
    print(prediction_table([row for ids in texts for row in prediction_rows(tokenizer, ids, score_tokens(model, ids))]))
    loss = cross_entropy(logits, targets).mean().item()
    print(mean_line(-target_probs.log().mean().item()))
    print(
        f"\ncross_entropy does all of this at once, on logits {tuple(logits.flatten(0, 1).shape)} and targets "
        f"{tuple(targets.flatten().shape)}:\n  loss {loss:.4f}, perplexity exp(loss) = {perplexity(loss):,.4f}"
    )
    guess = math.log(tokenizer.vocab_size)
    meanings: dict[float, str] = {
        0.0: "certain of every target token",
        guess: f"uniform: ln V, all {tokenizer.vocab_size:,} tokens equally likely",
        loss: "this model: as uncertain as a choice among that many equally likely tokens",
        12.0: "confident of wrong tokens: the perplexity can exceed V",
    }
    print("\nWhat a loss means:")
    rows = [[f"{value:.4f}", f"{perplexity(value):,.1f}", meaning] for value, meaning in meanings.items()]
    print(table(">><", ["loss", "perplexity", "the model is"], rows))
    print("\nThe second reference note's eight probabilities, from another untrained model on 2 texts of 4 tokens:")
    rows = [[f"{prob:.4e}", f"{-math.log(prob):.4f}"] for prob in PROBS_B]
    print(table(">>", ["probability", "negative logarithm"], rows))
    print(mean_line(-sum(map(math.log, PROBS_B)) / len(PROBS_B)))
    print(
        "\nThe perplexity of several batches is exp of their mean loss, not the mean of their perplexities: losses 1\n"
        f"and 3 give exp(2) = {perplexity(2):.3f}, not ({perplexity(1):.3f} + {perplexity(3):.3f}) / 2 = "
        f"{(perplexity(1) + perplexity(3)) / 2:.3f}."
    )


def explain_sampling(output: Path | None) -> None:
    """Print the probabilities of two toy vocabularies under temperatures and top-k, and how often tokens are drawn.

    Args:
        output: Folder for two bar charts, as PDF and PNG; None for no charts.
    """
    torch.manual_seed(SEED)
    examples = (
        ("every effort moves you", WORDS_A, torch.tensor([LOGITS_A]), (1.0, 0.1, 5.0), 1000),
        ("at the start of the", WORDS_B, torch.normal(0.0, 4.0, (1, len(WORDS_B))), (1.0, 0.3, 1.5), 100),
    )
    print("The next token is the most likely one (argmax: always the same text), or is drawn by probability.")
    print("A temperature T divides the logits before the softmax: T < 1 sharpens the distribution, T > 1 flattens it.")
    print("Top-k sets all but the k largest logits to -inf. T = 0 equals argmax, and so does top-k with k = 1.")
    for number, (prompt, words, logits, temperatures, draws) in enumerate(examples, start=1):
        settings = [SamplingConfig(temperature=one, seed=SEED) for one in temperatures]
        print(f"\nAfter {prompt!r}, {draws:,} draws each from seed {SEED}; argmax: {words[int(logits.argmax())]!r}")
        everything = range(len(words))
        top_3 = SamplingConfig(temperature=1.0, top_k=3, seed=SEED)
        print(candidates(words, logits, [*settings, top_3], draws, everything))
        if output is not None:
            draw_bars(words, logits, settings, output / f"temperature-{number}", everything)


def run(arguments: list[str]) -> None:
    """Run `explain` with these arguments."""
    parser = Parser("explain", __doc__)
    parser.add_argument("what", choices=("windows", "loss", "sampling"))
    parser.add_argument("--output", metavar="FOLDER", help="folder for the two bar charts of sampling")
    options = parser.parse_args(arguments)
    if options.output is not None and options.what != "sampling":
        raise InputError(f"explain {options.what} draws no figures; leave --output out")
    if options.what == "windows":
        explain_windows()
    elif options.what == "loss":
        explain_loss()
    else:
        explain_sampling(None if options.output is None else Path(options.output))
