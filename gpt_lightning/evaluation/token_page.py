"""Write an HTML page of a text in which each token is coloured by its loss.

The page is one file without scripts and without a network. What is known of a token is an attribute of its element,
which the style sheet shows on hover, keyboard focus or tap; so a token costs one element. Blocks of text outside of the
window are not laid out.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_lightning.console import visible
from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.evaluation.token_colours import DARK, LIGHT, WORSE, ink, level
from gpt_lightning.evaluation.token_text import AFTER, token_name, token_pieces
from gpt_lightning.evaluation.tokens import TokenScores, total
from gpt_lightning.files import load_template
from gpt_lightning.models.config import GPTConfig

TEMPLATE = Path(__file__).with_name("token_page.html")
BLOCK_TOKENS = 200  # a block of text has at least as many, except the last
LONG_BLOCK_TOKENS = 1000  # Chromium takes a minute for a line of 100,000 elements
HARDEST = 10
BINS_PER_LEVEL = 4


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the page.

    Attributes:
        number: Its position in the text, from 0.
        text: What is shown of it.
        kind: Its classes in the style sheet.
        popup: What is known of it.
        is_target: Whether the list of the hardest tokens links to it.
    """

    number: int
    text: str
    kind: str
    popup: str
    is_target: bool


def render_token_page(
    name: str,
    model: str,
    tokenizer: Tokenizer,
    config: GPTConfig,
    token_ids: Sequence[int],
    scores: TokenScores,
    copied: Sequence[tuple[int, int]] = (),
) -> str:
    """Return the page of a text.

    Args:
        name: Name of the text.
        model: Name of the model.
        tokenizer: Its tokenizer.
        config: Its architecture.
        token_ids: The token ids of the text, N of them.
        scores: The result of `score_tokens`.
        copied: Runs of tokens that also occur in the training text, as positions (begin, end) of the text, end
            excluded; they are underlined.
    """
    vocab_size = config.vocab_size
    is_copied = [False] * len(token_ids)
    for begin, end in copied:
        is_copied[begin:end] = [True] * (end - begin)
    hardest = scores.losses.argsort(kind="stable")[::-1][:HARDEST].tolist()
    template = load_template(TEMPLATE, number=format_number, percent=format_percent)
    return template.render(
        name=visible(name),
        model=visible(model),
        tokens=len(token_ids),
        totals=total(scores, token_ids, tokenizer),
        vocab_size=vocab_size,
        context_length=config.context_length,
        guess=math.log(vocab_size),
        copied=sum(is_copied),
        hardest=[_hard_row(tokenizer, token_ids, scores, i) for i in hardest],
        blocks=_blocks(_tokens(tokenizer, token_ids, scores, vocab_size, is_copied, {i + 1 for i in hardest})),
        colours=[(LIGHT[i], ink(LIGHT[i]), DARK[i], ink(DARK[i])) for i in range(WORSE + 1)],
        **_histogram(scores.losses.tolist(), vocab_size),
    )


@functools.cache
def format_number(value: float, digits: int = 0) -> str:
    """Return a number with commas between thousands."""
    return f"{value:,.{digits}f}"


def format_percent(share: float) -> str:
    """Return a probability in percent."""
    percent = 100 * share
    if percent < 0.001:
        return "< 0.001 %"
    return f"{percent:.{1 if percent >= 10 else 2 if percent >= 1 else 3}f} %"


def _tokens(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    scores: TokenScores,
    vocab_size: int,
    is_copied: Sequence[bool],
    targets: set[int],
) -> Iterable[Token]:
    name = functools.cache(functools.partial(token_name, tokenizer))
    first, *texts = token_pieces(tokenizer, token_ids)
    yield Token(0, first, "n", f"{name(token_ids[0])}\nthe first token has no prediction", False)
    columns = (scores.losses, scores.ranks, scores.top_ids, scores.top_probs)
    for i, (loss, rank, ids, probs) in enumerate(zip(*(one.tolist() for one in columns), strict=True)):
        token_id = token_ids[i + 1]
        lines = [
            name(token_id),
            f"probability {format_percent(math.exp(-loss))}, rank {rank:,}, loss {loss:.2f}",
            *(["also in the training text"] if is_copied[i + 1] else []),
            "",
        ]
        for other, prob in zip(ids, probs, strict=True):
            lines.append(f"{'→' if other == token_id else ' '}{format_percent(prob):>9}  {name(other)}")
        kind = f"l{level(loss, vocab_size)}" + (" c" if is_copied[i + 1] else "")
        yield Token(i + 1, texts[i], kind, "\n".join(lines), i + 1 in targets)


def _blocks(tokens: Iterable[Token]) -> Iterable[list[Token]]:
    """Yield the tokens in blocks that end with a line, or with a word in a line that is too long for a browser."""
    block: list[Token] = []
    for token in tokens:
        is_new_line = len(block) >= BLOCK_TOKENS and block[-1].text.endswith("\n")
        is_too_long = len(block) >= LONG_BLOCK_TOKENS and token.text.startswith(" ")
        if is_new_line or is_too_long or len(block) >= 2 * LONG_BLOCK_TOKENS:
            yield block
            block = []
        block.append(token)
    yield block


def _hard_row(tokenizer: Tokenizer, token_ids: Sequence[int], scores: TokenScores, i: int) -> dict[str, Any]:
    before = tokenizer.decode(token_ids[max(0, i + 1 - AFTER) : i + 1])[-AFTER:]
    return {
        "number": i + 1,
        "before": repr(before),
        "name": token_name(tokenizer, token_ids[i + 1]),
        "loss": scores.losses[i].item(),
        "likely": token_name(tokenizer, int(scores.top_ids[i, 0])),
        "likely_prob": scores.top_probs[i, 0].item(),
    }


def _histogram(losses: Sequence[float], vocab_size: int) -> dict[str, Any]:
    """Return the bars and ticks of the histogram: losses up to that of a uniform guess, and one level more."""
    width = math.log(vocab_size) / WORSE / BINS_PER_LEVEL
    bins = (WORSE + 1) * BINS_PER_LEVEL
    counts = Counter(min(bins - 1, int(loss / width)) for loss in losses)
    bars = []
    for i, count in sorted(counts.items()):
        end = f"to {(i + 1) * width:.2f}" if i < bins - 1 else "or more"
        title = f"loss {i * width:.2f} {end}: {count:,}"
        bars.append(
            {"bin": i, "level": i // BINS_PER_LEVEL, "height": 100 * count / max(counts.values()), "title": title}
        )
    end_loss = bins * width
    ticks = [(power * math.log(10), f"{100 / 10**power:g} %") for power in range(int(end_loss / math.log(10)) + 1)]
    return {
        "bins": bins,
        "bars": bars,
        "ticks": [{"place": 100 * loss / end_loss, "loss": loss, "prob": prob} for loss, prob in ticks],
        "mean_place": min(100.0, 100 * sum(losses) / len(losses) / end_loss),
        "guess_place": 100 * WORSE / (WORSE + 1),
    }
