"""Show the tokens of a text and their losses: as a table, or coloured in a terminal."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence

from gpt_lightning.console import plural, table, visible
from gpt_lightning.data.tokenizer import Tokenizer
from gpt_lightning.evaluation.token_colours import WORSE, level, terminal_code
from gpt_lightning.evaluation.tokens import TokenScores, TokenTotals
from gpt_lightning.models.loss import perplexity

PART = "·"  # stands for a token that ends within a character; the character is shown by the token that completes it
NEWLINE = "↵\n"
HEADER = ("after", "most likely", "target", "rank", "its probability", "logarithm")
ALIGN = "<<<>>>"
AFTER = 24  # characters and tokens
RESET = "\x1b[0m"


def token_name(tokenizer: Tokenizer, token_id: int) -> str:
    """Return the text of a token as a Python literal; of bytes, if they are no complete characters."""
    content = tokenizer.token_bytes(token_id)
    try:
        return repr(content.decode())
    except UnicodeDecodeError:
        return repr(content)


def token_pieces(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    """Return what to show for each token, so that all together are the text.

    Line ends are marked, control characters are escaped, and a token that ends within a character ends with `PART`.

    Args:
        tokenizer: The model's tokenizer.
        token_ids: The token ids of a text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pieces = []
    for token_id in token_ids:
        text = visible(decoder.decode(tokenizer.token_bytes(token_id))).replace("\n", NEWLINE)
        pieces.append(text + PART if decoder.getstate()[0] else text)
    return pieces


def prediction_rows(tokenizer: Tokenizer, token_ids: Sequence[int], scores: TokenScores) -> list[list[str]]:
    """Return a row below `HEADER` for each predicted token.

    Args:
        tokenizer: The model's tokenizer.
        token_ids: (N,).
        scores: The result of `score_tokens`.
    """
    rows = []
    columns = (scores.losses.tolist(), scores.ranks.tolist(), scores.top_ids[:, 0].tolist())
    for i, (loss, rank, likely) in enumerate(zip(*columns, strict=True)):
        before, target = tokenizer.decode(token_ids[max(0, i + 1 - AFTER) : i + 1])[-AFTER:], token_ids[i + 1]
        words = [f"{one} {token_name(tokenizer, one)}" for one in (likely, target)]
        rows.append([repr(before), *words, f"{rank:,}", f"{math.exp(-loss):.4e}", f"{-loss:.4f}"])
    return rows


def prediction_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of `prediction_rows` as a table."""
    return table(ALIGN, HEADER, rows)


def mean_line(loss: float) -> str:
    """Return the last steps from the logarithms of probabilities to the perplexity, from the mean loss in nats."""
    return f"  mean of the logarithms {-loss:.4f}; loss {loss:.4f}; perplexity {perplexity(loss):,.4f}"


def totals_lines(totals: TokenTotals, vocab_size: int) -> list[str]:
    """Return all totals of a text in two lines."""
    return [
        mean_line(totals.loss),
        f"  {plural(totals.predicted, 'token')} predicted, {100 * totals.accuracy:.1f} % as the most likely one; "
        f"{totals.bits_per_byte:.4f} bits per byte; a uniform guess has loss {math.log(vocab_size):.4f}",
    ]


def coloured_text(tokenizer: Tokenizer, token_ids: Sequence[int], scores: TokenScores, vocab_size: int) -> str:
    """Return the text for a terminal of 256 colours, each token but the first on the colour of its loss.

    Args:
        tokenizer: The model's tokenizer.
        token_ids: (N,).
        scores: The result of `score_tokens`.
        vocab_size: V of the model.
    """
    first, *others = token_pieces(tokenizer, token_ids)
    shown = [first]
    for piece, loss in zip(others, scores.losses.tolist(), strict=True):
        # The colour ends before each line end, because a terminal would extend it to the margin.
        code = terminal_code(level(loss, vocab_size))
        shown.append("\n".join(f"{code}{part}{RESET}" if part else "" for part in piece.split("\n")))
    guess = math.log(vocab_size)
    scale = "".join(f"{terminal_code(i)} {i * guess / WORSE:.1f} {RESET}" for i in range(WORSE + 1))
    return f"{''.join(shown).rstrip()}\n\nloss from {scale} worse than a uniform guess"
