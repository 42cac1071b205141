"""Make the pictures of docs/ from one run.

    python docs/make_pictures.py
    python docs/make_pictures.py -- --trainer.precision 32-true
    python docs/make_pictures.py --run runs/verdict/1 --log verdict.txt

The first command trains on configs/verdict.yaml in a temporary folder, with 7 GB of disk; options after -- are those of
`fit`. The last one takes a finished run and what it printed on stdout; options after -- are then those that it had.
Chromium must be installed.

    verdict.txt                  what the run printed
    run-light.svg, run-dark.svg  the beginning and the end of it
    loss.png                     the run's loss figure
    report.png                   the beginning of the run's report
    tensorboard.png              the run in TensorBoard
"""

from __future__ import annotations

import argparse
import contextlib
import html
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 116  # the last line of a run, a command, is that long
MOST_BYTES = 300_000  # of a PNG
SCALARS = "data/plugin/scalars/tags"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")

# Settings of TensorBoard's first page, where it keeps a browser's: all of a curve, and nothing beside the curves.
PAGE = {
    "ignoreOutliers": False,
    "stepSelectorEnabled": False,
    "timeSeriesSettingsPaneOpened": False,
    "sideBarWidthInPercent": 15,
}

# Terminal colours; those of the two losses are the loss figure's, with enough contrast to be read.
THEMES = {
    "light": {"back": "#ffffff", "fore": "#1f2328", "edge": "#d1d9e0", "train": "#0757ab", "val": "#a14b00"},
    "dark": {"back": "#0d1117", "fore": "#e6edf3", "edge": "#3d444d", "train": "#6cb2ff", "val": "#ffa657"},
}
CHARACTER, LINE, MARGIN = 8.4, 19, 14  # pixels at a font size of 14
SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="Output of a run">
<style>
text {{ font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre; \
fill: {fore}; }}
.bold {{ font-weight: bold; }}
.train {{ fill: {train}; }}
.val {{ fill: {val}; }}
</style>
<rect x="0.5" y="0.5" width="{inner_width}" height="{inner_height}" rx="6" fill="{back}" stroke="{edge}"/>
{lines}
</svg>
"""
STYLED = re.compile(
    r"(?P<train>Train loss [\d.]+)|(?P<val>Val loss [\d.]+)"
    r"|(?P<bold>^\$ .*|^  python .*|^(?:Ep \d+|Untrained) \(Step \d+\):|^Training completed|^[a-z]+(?: [a-z]+)?(?=  ))"
)


def train(config: str, options: list[str], folder: Path) -> tuple[Path, str]:
    """Train in a folder that looks like the repository; return the run folder and what was printed on stdout.

    Args:
        config: The config, as the command names it from the top of the repository.
        options: Further options of `fit`.
        folder: An empty folder.
    """
    for name in ("configs", "data"):
        (folder / name).symlink_to(ROOT / name)
    run = Path("runs") / Path(config).stem / "1"
    command = [sys.executable, "-m", "gpt_lightning", "fit", "--config", config, "--run_dir", str(run), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    return folder / run, done.stdout


def shorten(log: str) -> list[str]:
    """Return the lines before the first epoch, the first two epochs, the last one, and the summary."""
    header: list[str] = []
    epochs: list[list[str]] = []
    summary: list[str] = []
    for line in log.splitlines():
        if summary or line.startswith("Training completed"):
            summary.append(line)
        elif match := re.match(r"Ep (\d+) ", line):
            if not epochs or not epochs[-1][0].startswith(match[0]):
                epochs.append([])
            epochs[-1].append(line)
        else:
            (epochs[-1] if epochs else header).append(line)
    if len(epochs) > 3:
        epochs = [*epochs[:2], ["..."], epochs[-1]]
    return [*header, *(line for epoch in epochs for line in epoch), *summary]


def draw_line(line: str, y: int) -> str:
    """Return a line as an SVG element, cut to the picture's width.

    Args:
        line: The line.
        y: Pixels from the top to its baseline.
    """
    line = "".join(character if character.isprintable() else " " for character in line)  # XML has no control characters
    line = line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "…"
    spans, end = [], 0
    for match in STYLED.finditer(line):
        spans += [html.escape(line[end : match.start()], quote=False)]
        spans += [f'<tspan class="{match.lastgroup}">{html.escape(match[0], quote=False)}</tspan>']
        end = match.end()
    content = "".join(spans) + html.escape(line[end:], quote=False)
    # The length keeps columns one below the other, whatever the font.
    length = f'textLength="{CHARACTER * len(line):.1f}" ' if line else ""
    return f'<text x="{MARGIN}" y="{y}" {length}xml:space="preserve">{content}</text>'


def draw_terminal(command: str, log: str, folder: Path) -> None:
    """Write run-light.svg and run-dark.svg: the command and its output, shortened, as text in a picture.

    Args:
        command: The command line.
        log: What it printed.
        folder: Where the pictures go.
    """
    printed = [f"$ {command}", *shorten(log)]
    width, height = round(2 * MARGIN + CHARACTER * COLUMNS), 2 * MARGIN + LINE * len(printed)
    lines = "\n".join(draw_line(line, MARGIN + LINE * (i + 1) - 5) for i, line in enumerate(printed))
    for name, colours in THEMES.items():
        sizes = {"width": width, "height": height, "inner_width": width - 1, "inner_height": height - 1}
        (folder / f"run-{name}.svg").write_text(SVG.format(**sizes, **colours, lines=lines), encoding="utf-8")


@contextlib.contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Serve runs with TensorBoard until the block ends; give its address once it has read them.

    Args:
        logdir: Folder of the runs.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://localhost:{port}"
    try:
        for _ in range(120):
            if server.poll() is not None:
                raise SystemExit(f"tensorboard ended with exit code {server.returncode}")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/{SCALARS}", timeout=10) as answer:
                if any(json.load(answer).values()):
                    break
            time.sleep(0.5)
        else:
            raise SystemExit(f"tensorboard has not read {logdir} within a minute")
        yield address
    finally:
        server.terminate()
        server.wait()


def photograph(address: str, size: tuple[int, int], picture: Path, *options: str) -> None:
    """Write a picture of a page, taken by a browser without a window.

    Args:
        address: URL of the page.
        size: Width and height in pixels.
        picture: Where the PNG goes.
        options: More options of the browser.
    """
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        raise SystemExit(f"{picture.name} needs one of these programs: {', '.join(CHROMIUM)}")
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=25000",
            "--window-size={},{}".format(*size),
            f"--screenshot={picture}",
            *options,
            address,
        ]
        subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shrink(picture)


def photograph_tensorboard(run: Path, picture: Path) -> None:
    """Write a picture of TensorBoard's first page with the run's curves.

    Args:
        run: The run folder, runs/NAME/NUMBER.
        picture: Where the PNG goes.
    """
    with tempfile.TemporaryDirectory() as temporary:
        copied = Path(temporary) / "runs" / run.parent.name / run.name  # no other run of the same folder
        copied.mkdir(parents=True)
        for events in run.glob("events.out.tfevents*"):
            shutil.copy(events, copied)
        extension = Path(temporary) / "extension"  # sets the page's settings before its own code reads them
        extension.mkdir()
        script = {"matches": ["http://localhost/*"], "js": ["settings.js"], "run_at": "document_start"}
        manifest = {"manifest_version": 3, "name": "settings", "version": "1", "content_scripts": [script]}
        (extension / "manifest.json").write_text(json.dumps(manifest))
        settings = f"localStorage.setItem('_tb_global_settings', JSON.stringify({json.dumps(PAGE)}))"
        (extension / "settings.js").write_text(settings)
        with tensorboard(Path(temporary) / "runs") as address:
            query = urllib.parse.urlencode({"darkMode": "false", "smoothing": 0})
            photograph(
                f"{address}/?{query}#timeseries",
                (1400, 1000),  # the losses, against steps and against tokens
                picture,
                "--disable-3d-apis",  # curves as SVG: those of WebGL are sometimes drawn after the picture is taken
                f"--load-extension={extension}",
                "--disable-features=DisableLoadExtensionCommandLineSwitch",
            )


def shrink(picture: Path) -> None:
    """Reduce a PNG that is too large for a repository to 256 colours."""
    if picture.stat().st_size > MOST_BYTES:
        with Image.open(picture) as image:
            reduced = image.convert("RGB").quantize(256)
        reduced.save(picture, optimize=True)


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] [-- fit's options]",
    )
    parser.add_argument("--config", default="configs/verdict.yaml", help="path from the top of the repository")
    parser.add_argument("--run", type=Path, help="finished run to take instead of training; with --log")
    parser.add_argument("--log", type=Path, help="what that run printed on stdout")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of the pictures")
    parser.add_argument(
        "fit", nargs="*", metavar="-- OPTIONS", help="options of `fit`; with --run: those that the run had"
    )
    options = parser.parse_args()
    if (options.run is None) != (options.log is None):
        parser.error("--run and --log must be given together")

    command = shlex.join(["python", "-m", "gpt_lightning", "fit", "--config", options.config, *options.fit])
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        if options.run is None:
            run, log = train(options.config, options.fit, Path(temporary))
        else:
            run, log = options.run.resolve(), options.log.read_text(encoding="utf-8")
            log = log.replace(str(run), str(Path("runs") / run.parent.name / run.name))
        (options.output / "verdict.txt").write_text(log, encoding="utf-8")
        draw_terminal(command, log, options.output)
        shutil.copy(run / "loss.png", options.output / "loss.png")
        shrink(options.output / "loss.png")
        photograph((run / "report.html").as_uri(), (1000, 1080), (options.output / "report.png").resolve())
        photograph_tensorboard(run, (options.output / "tensorboard.png").resolve())


if __name__ == "__main__":
    main()
