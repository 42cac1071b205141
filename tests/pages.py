"""Run folders written by hand, and a strict reader of HTML pages, for the tests of reports."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

VOID = {"meta", "link", "br", "hr", "img", "input"}
STEPS = 12
TEXT = "It was the hour of the lamp, and the keeper went down to the low water with it. "
BASELINES = {"uniform": 5.549, "unigram": 3.05, "bigram": 2.411, "trigram": 2.237, "training_tokens": 4612}


def metrics(steps: int = STEPS, every: int = 3, tokens: int = 100) -> list[dict[str, Any]]:
    """Return rows of metrics.jsonl: the training loss falls, the validation loss turns in the middle."""
    rows: list[dict[str, Any]] = []
    for step in range(steps + 1):
        place: dict[str, Any] = {"step": step, "epoch": step / 6, "tokens_seen": tokens * step}
        if step:
            speed = {"learning_rate": 0.004 / step, "gradient_norm": 1 + step % 5, "tokens_per_second": 900.0 + step}
            rows.append({**place, "train_loss": 5.5 - 4 * step / steps, **speed})
        if step % every == 0:
            val = 5.7 - 3 * min(step, steps - step) / steps
            rows.append({**place, "train_eval_loss": 5.625 - 4.5 * step / steps, "val_loss": val})
    return rows


def copied(completion: str, *places: tuple[int, int, int]) -> dict[str, Any]:
    """Return the entry `copied` of a sample: its runs as (begin, end, tokens), all of them found in `TEXT`."""
    runs = []
    for begin, end, tokens in places:
        source = TEXT.index(completion[begin:end])
        after = source + end - begin
        around = {"before": TEXT[max(0, source - 40) : source], "after": TEXT[after : after + 40]}
        runs.append({"begin": begin, "end": end, "tokens": tokens, "source": source, **around})
    counted = sum(tokens for _, _, tokens in places if tokens >= 8)
    longest = max((tokens for _, _, tokens in places), default=0)
    return {"share": counted / 40, "tokens": counted, "of": 40, "longest": longest, "runs": runs}


def write_run(folder: Path, **files: Any) -> Path:
    """Write a run folder with all files of a finished run; `files` replaces some of them, None leaves one out."""
    first, second = " and the keeper went down to", "It was the hour of the lamp"
    completion = f"{first} a \n\n\n\nhouse. {second}"
    places = ((0, len(first), 9), (len(completion) - len(second), len(completion), 10))
    content: dict[str, Any] = {
        "metrics": metrics(),
        "samples": [
            {"step": 6, "epoch": 1, "prompt": "So it", "completion": " the the the", "copied": copied(" the the the")},
            {"step": 12, "epoch": 2, "prompt": "So", "completion": completion, "copied": copied(completion, *places)},
        ],
        "baselines": BASELINES,
        "summary": {
            "minutes": 1.25,
            "best": {"step": 6, "epoch": 1.0, "train_eval_loss": 3.375, "val_loss": 4.2},
            "last": {"step": 12, "epoch": 2.0, "train_eval_loss": 1.125, "val_loss": 5.7},
            "turn": {"step": 6, "certain": True, "reason": "it rises"},
            "memorizing_steps": 6,
            "copied": 0.475,
            "expected": {"best_val_loss": {"range": [4.0, 4.5], "value": 4.2, "inside": True}},
            "advice": "Train on more text.",
            "verdict": ["It memorized its text.", "The best step is 6."],
        },
        "environment": {
            "text": "story.txt: 80 characters, 80 tokens",
            "defaults": {"model.emb_dim": 768, "model.n_heads": 12, "seed_everything": 123},
            "sessions": [{"started": "2026-11-25T10:00:00+00:00", "from_step": 0, "to_step": 12, "minutes": 1.25,
                          "device": "cpu, 2 threads", "versions": {"torch": "2.13.0"}}],
        },
        "settings": {"model": {"emb_dim": 16, "n_heads": 12}, "prompt": ["So"], "seed_everything": 7},
        **files,
    }  # fmt: skip
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("best.ckpt", "last.ckpt"):
        (folder / "checkpoints" / name).touch()
    for name, value in content.items():
        if value is None:
            continue
        if name in ("metrics", "samples"):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in value))
        elif name == "settings":
            (folder / "tiny.yaml").write_text(yaml.safe_dump(value, allow_unicode=True, sort_keys=False))
        else:
            (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


@dataclass
class Element:
    """An element with its texts and elements, in order."""

    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())

    def text_without(self, *left_out: str) -> str:
        """Return the text outside of elements with these tags."""
        parts = [
            one if isinstance(one, str) else "" if one.tag in left_out else one.text_without(*left_out)
            for one in self.children
        ]
        return "".join(parts)

    def all(self, tag: str = "", **attributes: str) -> list[Element]:
        """Return the elements inside, in document order, with a tag and with values of attributes (`class_`)."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                wanted = {name.rstrip("_"): value for name, value in attributes.items()}
                if child.tag == (tag or child.tag) and wanted.items() <= child.attributes.items():
                    found.append(child)
                found += child.all(tag, **attributes)
        return found

    def one(self, tag: str = "", **attributes: str) -> Element:
        (found,) = self.all(tag, **attributes)
        return found


class Reader(HTMLParser):
    """Builds the tree of a page; an element that is closed twice, wrongly or not at all is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"repeated attribute of {tag}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_page(html: str) -> Element:
    """Return the tree of a page, after checking that it is balanced and refers to nothing outside of itself."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    (page,) = reader.open
    elements = page.all()
    ids = [one.attributes["id"] for one in elements if "id" in one.attributes]
    assert len(set(ids)) == len(ids), "repeated id"
    assert not {"script", "link", "img", "iframe", "object", "base"} & {one.tag for one in elements}
    for one in elements:
        for name, value in one.attributes.items():
            assert not name.startswith("on"), name
            assert "://" not in value, (name, value)
            assert name not in ("src", "srcset", "data", "action"), name
            if name == "href":
                assert value.removeprefix("#") in ids, value
            if name in ("clip-path", "style") and "url(" in value:
                assert value.partition("url(#")[2].partition(")")[0] in ids, value
            if name == "aria-labelledby":
                assert set(value.split()) <= set(ids), value
    (style,) = page.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    return page
