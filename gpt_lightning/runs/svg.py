"""Charts as SVG for an HTML page: text stays text, and the colours are variables of the page's CSS."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_RUNS = 8  # colours that the colour-blind can tell apart
FONT = 12  # pixels
# Colours to draw with -> what they become in the page.
COLOURS = {
    name: f"#0000{number:02x}"
    for number, name in enumerate(
        ("ink", "muted", "grid", "train", "val", "turn", *(f"run-{i}" for i in range(MOST_RUNS))), start=1
    )
}
VARIABLES = {colour: f"var(--{name})" for name, colour in COLOURS.items()}


@dataclass(frozen=True)
class Label:
    """A label to the right of a chart.

    Attributes:
        text: Its text.
        value: Position on the y-axis that it belongs to.
        colour: A key of `COLOURS`.
        is_bold: Whether it names a curve.
    """

    text: str
    value: float
    colour: str
    is_bold: bool = False


class Chart:
    """A chart of a fixed size; `axes` are matplotlib's.

    Args:
        width: Width of the picture, in pixels.
        height: Height of the picture, in pixels.
        margins: Pixels to the left, to the right, below and above the axes.
    """

    def __init__(self, width: int, height: int, margins: tuple[int, int, int, int]) -> None:
        from matplotlib.figure import Figure

        self.width, self.height, self.margins = width, height, margins
        self.labels: list[Label] = []
        left, right, bottom, top = margins
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)  # 72 points per inch: points are pixels
        self.inner = (width - left - right, height - bottom - top)
        place = (left / width, bottom / height, self.inner[0] / width, self.inner[1] / height)
        self.axes = self.figure.add_axes(place)
        self.figure.patch.set_visible(False)
        self.style(self.axes)
        self.axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.75)
        self.axes.set_axisbelow(True)

    def style(self, axes: Axes) -> None:
        """Set the colours and sizes of axes."""
        axes.set_facecolor("none")
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.spines["bottom"].set_color(COLOURS["muted"])
        axes.tick_params(colors=COLOURS["muted"], labelsize=FONT, length=0, pad=6)
        axes.tick_params(axis="x", length=4, pad=4)

    def line(self, x: Sequence[float], y: Sequence[float], colour: str, most: int, **style: Any) -> None:
        """Draw a curve with at most a number of points."""
        thin_x, thin_y = thin(x, y, most)
        self.axes.plot(thin_x, thin_y, color=COLOURS[colour], **({"linewidth": 2} | style))

    def draw_labels(self) -> None:
        """Write the labels to the right of the axes, moved apart, each with a line to its value."""
        from matplotlib.lines import Line2D
        from matplotlib.transforms import IdentityTransform

        left, _, bottom, _ = self.margins
        low, high = self.axes.get_ylim()
        gap = FONT * 1.25
        ordered = sorted(self.labels, key=lambda label: label.value)
        wanted = [bottom + (label.value - low) / (high - low) * self.inner[1] for label in ordered]
        edge = left + self.inner[0]
        for label, y, place in zip(ordered, wanted, spread(wanted, gap, bottom, bottom + self.inner[1]), strict=True):
            leader = Line2D([edge + 3, edge + 9, edge + 13], [y, place, place], transform=IdentityTransform())
            leader.set(color=COLOURS[label.colour], linewidth=0.75)
            self.figure.add_artist(leader)
            weight = "bold" if label.is_bold else "normal"
            style: dict[str, Any] = {"color": COLOURS[label.colour], "weight": weight, "parse_math": False}
            place -= 0.35 * FONT
            self.figure.text(edge + 16, place, label.text, fontsize=FONT, transform=IdentityTransform(), **style)

    def svg(self, name: str, title: str, description: str) -> str:
        """Return the chart as an element for an HTML page.

        Args:
            name: Prefix of its ids, unique in the page.
            title: What it shows.
            description: What there is to see in it.
        """
        from matplotlib import rc_context

        self.draw_labels()
        content = io.StringIO()
        with warnings.catch_warnings(), rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the page's fonts have them
            self.figure.savefig(content, format="svg", metadata={"Date": None})
        return inline(content.getvalue(), name, title, description)


def thin(x: Sequence[float], y: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """Return at most `most` points of a curve: the first, the last, and the extremes of equal parts between them."""
    if len(x) <= most:
        return list(x), list(y)
    parts = max(1, (most - 2) // 2)
    bounds = [1 + (len(x) - 2) * i // parts for i in range(parts + 1)]
    kept = {0, len(x) - 1}
    for begin, end in pairwise(bounds):
        kept |= {min(range(begin, end), key=y.__getitem__), max(range(begin, end), key=y.__getitem__)}
    return [x[i] for i in sorted(kept)], [y[i] for i in sorted(kept)]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move sorted positions apart until neighbours have a distance, within limits as long as these have room.

    Args:
        wanted: Positions in ascending order.
        gap: Least distance.
        low: Least position.
        high: Greatest position; wins over `low`.
    """
    places: list[float] = []
    for position in wanted:
        places.append(max(position, places[-1] + gap if places else low))
    limit = high
    for i in reversed(range(len(places))):
        places[i] = min(places[i], limit)
        limit = places[i] - gap
    return places


def inline(svg: str, name: str, title: str, description: str) -> str:
    """Return an SVG file of matplotlib as an element for an HTML page.

    Args:
        svg: The file.
        name: Prefix of its ids.
        title: Its title, for screen readers.
        description: Its description, for screen readers.
    """
    import xml.etree.ElementTree as ET

    root = ET.fromstring(svg)
    parents = {child: parent for parent in root.iter() for child in parent}
    for element, parent in parents.items():
        if element.tag.rpartition("}")[2] in ("metadata", "style"):
            parent.remove(element)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        element.attrib.clear()
        element.attrib.update({key: _attribute(key, value, name) for key, value in attributes.items()})
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    for number, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(tag, {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(number, element)
    return ET.tostring(root, encoding="unicode")


def _attribute(key: str, value: str, name: str) -> str:
    """Return an attribute's value with unique ids, variables for colours, and coordinates in tenths of a pixel."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return f"#{name}-{value.removeprefix('#')}"
    if key == "d":
        return " ".join(re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", value).split())
    if key == "style":
        value = re.sub(r"font-family:[^;]*;?|url\(#", lambda part: "" if part[0][0] == "f" else f"url(#{name}-", value)
        return re.sub(r"#[0-9a-f]{6}\b", lambda colour: VARIABLES.get(colour[0], colour[0]), value)
    return value.replace("url(#", f"url(#{name}-")
