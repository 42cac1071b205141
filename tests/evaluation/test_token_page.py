"""The page of a text: what it says, that a text cannot become markup, and how a browser shows it."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from generated import small_gpt

from gpt_lightning.data.tokenizer import Tokenizer, load_tokenizer
from gpt_lightning.evaluation.token_page import BLOCK_TOKENS, LONG_BLOCK_TOKENS, format_percent, render_token_page
from gpt_lightning.evaluation.token_text import token_pieces
from gpt_lightning.evaluation.tokens import TokenScores, score_tokens, total
from gpt_lightning.models.config import GPTConfig

HOSTILE = (
    "<script>document.title='owned'</script> \"quotes\" 'single' & &amp; {{ 7*7 }} {% raw %} <!-- ]]>\n"
    '" onfocus="document.title=1" x="\x1b[31mred\x1b[0m \x07 \u202eevil\u202c \x00\n'
    "مرحبا, שלום! 👩\u200d👧 🇩🇪 日本 zwölf \ufffd\ttab </span></div></main></body></html>\n"
)
VOID = {"meta", "link", "rect"}


class Page(HTMLParser):
    """The parsed page.

    Attributes:
        open: Names of the elements that are open.
        tags: Names of all elements.
        tokens: Attributes and text of each token.
        text: Text outside of the style sheet.
    """

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.tokens: list[dict[str, str]] = []
        self.text = ""
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID or tag == "rect":
            self.open.append(tag)
        attributes = {name: value or "" for name, value in attrs}
        if attributes.get("class", "").startswith("t "):
            assert attributes.keys() <= {"class", "id", "tabindex", "data-t"}
            self.tokens.append(attributes | {"text": ""})

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] == "span" and "main" in self.open:
            self.tokens[-1]["text"] += data


def render(
    text: str, tokenizer: Tokenizer, copied: list[tuple[int, int]] | None = None
) -> tuple[Page, list[int], TokenScores]:
    """Return the page of a text, its token ids, and their scores by an untrained model."""
    ids = tokenizer.encode(text)
    model = small_gpt()
    scores = score_tokens(model, [one % 257 for one in ids])
    return Page(render_token_page("a <b>", "m &", tokenizer, model.config, ids, scores, copied or [])), ids, scores


def test_each_token_has_its_loss_and_the_alternatives() -> None:
    tokenizer = load_tokenizer("bytes")

    page, ids, scores = render("Every effort\nmoves you.", tokenizer)

    assert page.open == []
    assert [one["text"] for one in page.tokens] == token_pieces(tokenizer, ids)
    assert all(one["tabindex"] == "0" for one in page.tokens)
    assert page.tokens[0]["class"] == "t n"
    assert page.tokens[0]["data-t"] == "'E'\nthe first token has no prediction"
    for i, one in enumerate(page.tokens[1:]):
        lines = one["data-t"].split("\n")
        loss, rank = scores.losses[i].item(), scores.ranks[i]
        assert lines[0] == repr(chr(ids[i + 1]))
        assert lines[1] == f"probability {format_percent(math.exp(-loss))}, rank {rank}, loss {loss:.2f}"
        assert lines[2] == ""
        assert len(lines) == 8
        shown = [float(re.findall(r"[\d.]+(?= %)", line)[0]) for line in lines[3:]]
        assert shown == pytest.approx(100 * scores.top_probs[i], abs=0.006)
        assert [line.startswith("→") for line in lines[3:]] == [top == ids[i + 1] for top in scores.top_ids[i]]
        assert one["class"] == f"t l{min(10, int(10 * loss / math.log(257)))}"


def test_totals_and_the_hardest_tokens() -> None:
    tokenizer = load_tokenizer("bytes")

    page, ids, scores = render("Every effort moves you.", tokenizer)

    totals = total(scores, ids, tokenizer)
    for words in (f"Tokens{len(ids)}", f"Loss{totals.loss:.4f}", f"Perplexity{totals.perplexity:.2f}"):
        assert words in page.text
    assert f"Bits per byte{totals.bits_per_byte:.3f}" in page.text
    hardest = {f"t{i + 1}" for i in np.argsort(scores.losses)[-10:]}
    assert {one["id"] for one in page.tokens if "id" in one} == hardest
    assert "Loss of each token: a <b>" in page.text
    bars = re.findall(r"loss [\d.]+ (?:to [\d.]+|or more): (\d+)", page.text)
    assert sum(map(int, bars)) == 2 * len(scores.losses)  # in the text alternative, and at each bar


def test_copied_runs_are_marked() -> None:
    page, _, _ = render("Every effort moves you.", load_tokenizer("bytes"), copied=[(0, 3), (10, 12)])

    marked = [i for i, one in enumerate(page.tokens) if " c" in one["class"]]
    assert marked == [1, 2, 10, 11]  # the first token has no loss and no colour
    assert all(("also in the training text" in one["data-t"]) == (i in marked) for i, one in enumerate(page.tokens))
    assert "Copied21.7 %" in page.text


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_a_hostile_text_stays_text(name: str) -> None:
    tokenizer = load_tokenizer(name)

    page, ids, _ = render(HOSTILE, tokenizer)

    assert page.open == []
    assert not page.tags & {"script", "img", "iframe"}
    assert "".join(one["text"] for one in page.tokens) == "".join(token_pieces(tokenizer, ids))
    shown = "".join(one["text"] for one in page.tokens).replace("·", "")
    assert shown.startswith("<script>document.title='owned'</script> \"quotes\" 'single' & &amp; {{ 7*7 }} {% raw %}")
    assert r"\x1b[31mred\x1b[0m \x07 \u202eevil\u202c \x00" in shown
    assert "مرحبا, שלום! 👩\u200d👧 🇩🇪 日本 zwölf \ufffd\ttab </span></div></main></body></html>" in shown
    everything = page.text + "".join(one["data-t"] for one in page.tokens)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", everything)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("a\n" * BLOCK_TOKENS, [BLOCK_TOKENS, BLOCK_TOKENS]),
        ("x" * 150 + "\n" + "y" * 100 + "\nz", [252, 1]),
        ("word " * 300, [LONG_BLOCK_TOKENS + 4, 496]),
        ("x" * (2 * LONG_BLOCK_TOKENS + 1), [2 * LONG_BLOCK_TOKENS, 1]),
    ],
)
def test_the_text_is_cut_into_blocks(text: str, sizes: list[int]) -> None:
    ids = load_tokenizer("bytes").encode(text)
    none = np.zeros(len(ids) - 1, int)
    scores = TokenScores(none.astype(np.float32), none + 1, none[:, None], none[:, None].astype(np.float32))

    content = render_token_page("", "", load_tokenizer("bytes"), GPTConfig(257, 8, 8, 2, 1), ids, scores)

    assert [block.count("<span") for block in content.split('<div class="b">')[1:]] == sizes


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (1, "100.0 %"),
        (0.1234, "12.3 %"),
        (0.01234, "1.23 %"),
        (1.234e-3, "0.123 %"),
        (9e-6, "< 0.001 %"),
        (0, "< 0.001 %"),
    ],
)
def test_percent(share: float, shown: str) -> None:
    assert format_percent(share) == shown


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page(scheme: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer("bytes")
    ids = tokenizer.encode(HOSTILE)
    model = small_gpt()
    path = tmp_path / "page.html"
    content = render_token_page("hostile", "untrained", tokenizer, model.config, ids, score_tokens(model, ids))
    path.write_text(content, encoding="utf-8")
    popup = "getComputedStyle(document.activeElement, '::after').content"

    with Browser(tmp_path / "profile") as browser:
        for width in (1400, 400):
            browser.open(path, scheme=scheme, width=width)
            assert browser.value("document.title") == "Loss of each token: hostile"
            assert browser.value("document.scripts.length") == 0
            shown = browser.value("document.querySelector('main').textContent")
            assert "<script>document.title='owned'</script>" in shown
            assert "</span></div></main></body></html>↵" in shown
            assert browser.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
            background = browser.value("getComputedStyle(document.body).backgroundColor")
            assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(19, 18, 23)"}[scheme]

            assert browser.value(popup) == "none"
            browser.value("document.querySelector('a').focus()")
            browser.press("Enter")  # a link of the hardest tokens leads to the token and opens its popup
            assert browser.value("location.hash === '#' + document.activeElement.id")
            before = browser.value("document.activeElement.dataset.t")
            browser.press("Tab")
            after = browser.value("document.activeElement.dataset.t")
            assert "rank" in after
            assert after != before
            assert "rank" in browser.value(popup)

            hovered = "document.querySelectorAll('.t')[2]"
            browser.value(f"{hovered}.scrollIntoView({{block: 'center'}})")
            box = browser.value(f"{hovered}.getBoundingClientRect().toJSON()")
            browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=box["x"] + 2, y=box["y"] + 5)
            assert "rank" in browser.value(f"getComputedStyle({hovered}, '::after').content")
        assert browser.problems == []


@pytest.mark.slow
def test_a_browser_opens_a_page_of_100000_tokens(tmp_path: Path) -> None:
    """In lines and without any: the latter would take a minute in one block."""
    tokenizer = load_tokenizer("bytes")
    for text in ("Every effort moves you, he said.\n" * 3031, "Every effort moves you, he said. " * 3031):
        ids = tokenizer.encode(text)[:100_000]
        rows = len(ids) - 1
        losses = np.resize(np.linspace(0, 7, 97, dtype=np.float32), rows)
        top_ids, top_probs = np.resize(np.arange(97, 102), (rows, 5)), np.full((rows, 5), 0.1, np.float32)
        scores = TokenScores(losses, np.ones(rows, int), top_ids, top_probs)
        path = tmp_path / "page.html"
        content = render_token_page("long", "", tokenizer, GPTConfig(257), ids, scores)
        path.write_text(content, encoding="utf-8")

        with Browser(tmp_path / "profile") as browser:
            browser.open(path)
            assert browser.value("document.querySelectorAll('.t').length") == 100_000
            browser.value("document.querySelectorAll('.t')[99999].focus()")
            assert "rank 1" in browser.value("getComputedStyle(document.activeElement, '::after').content")
            assert browser.problems == []
