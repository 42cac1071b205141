"""Measure the time from random weights to a validation loss, on Python sources that every machine has.

    python benchmarks/speedrun.py --figure speedrun.png           # the book's, nanoGPT's and our recipe
    python benchmarks/speedrun.py --minutes 4 --seeds 1 2 3 --recipes nanogpt ours "with muon" "without muon"

The text is the standard library of the Python that runs this: about 11 MB, 5 million of GPT-2's tokens, shuffled
windows of which are trained on. About every twentieth module or package of it, by a checksum of its name, is the
validation text. The networks have 4 layers of width 256 and 256 tokens of context, in float32; the book's has its own
initial weights, a head of its own and no biases of query, key and value.

First, trainings of `--probe` steps with each recipe take turns, and give its seconds per optimizer step with all
cores; evaluation, sampling and saving are left out. Then each training runs with as many steps as fit into its minutes.
Validation losses do not depend on the speed, so `--jobs` trainings may run at the same time and share the cores. The
result of a training is its curve: validation losses by seconds, steps times seconds per step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Tests repeat themselves, site-packages differ from machine to machine, pydoc_data holds English text.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data"}
COMMON = {
    "model.context_length": 256,
    "model.emb_dim": 256,
    "model.n_heads": 4,
    "model.n_layers": 4,
    "model.drop_rate": 0.0,
    "trainer.precision": "32-true",
    "trainer.logger": False,
    "trainer.enable_progress_bar": False,
    "trainer.max_epochs": -1,
    "evaluate_batches": 1,
}
NANOGPT = {
    "model.qkv_bias": True,
    "model.tie_weights": True,
    "model.init": "gpt2",
    "model.beta2": 0.95,
    "model.decay_matrices_only": True,
    "trainer.gradient_clip_val": 1.0,
    "data.batch_size": 2,
    "model.learning_rate": 6e-4,
    "model.min_learning_rate": 6e-5,
}
MUON = {"model.optimizer": "muon", "model.learning_rate": 4e-3, "model.min_learning_rate": 0.0}
BATCH = {"data.batch_size": 4}
SAMPLED = {"model.sampled_softmax": 8192}
OURS = NANOGPT | MUON | BATCH | SAMPLED


@dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    Attributes:
        settings: Settings of `fit`, besides those that all recipes have.
        warmup: Share of the steps in which the learning rate rises.
        share: Minutes of a training, as a share of `--minutes`.
    """

    settings: dict[str, Any]
    warmup: float = 0.05
    share: float = 1.0


THIRD = 1 / 3
RECIPES = {
    "book": Recipe({"data.batch_size": 2}, warmup=0.0),
    "nanogpt": Recipe(NANOGPT),
    "ours": Recipe(OURS, share=THIRD),
    # For the time of ours: nanoGPT's recipe, with one ingredient each, and ours without one.
    "nanogpt, a third": Recipe(NANOGPT, share=THIRD),
    "with muon": Recipe(NANOGPT | MUON, share=THIRD),
    "with batch": Recipe(NANOGPT | BATCH, share=THIRD),
    "with sampled softmax": Recipe(NANOGPT | SAMPLED, share=THIRD),
    "without muon": Recipe(NANOGPT | BATCH | SAMPLED, share=THIRD),
    "without batch": Recipe(NANOGPT | MUON | SAMPLED, share=THIRD),
    "without sampled softmax": Recipe(NANOGPT | MUON | BATCH, share=THIRD),
}


def write_texts(folder: Path) -> dict[str, int]:
    """Write train.jsonl and val.jsonl, a document per source file, and return the number of documents of each."""
    library = Path(sysconfig.get_paths()["stdlib"])
    documents: dict[str, list[str]] = {"train": [], "val": []}
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if not LEFT_OUT & set(parts):
            split = "val" if zlib.crc32(parts[0].encode()) % 20 == 0 else "train"
            documents[split].append(json.dumps({"text": path.read_text("utf-8", "replace")}))
    for split, lines in documents.items():
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return {split: len(lines) for split, lines in documents.items()}


def train(recipe: Recipe, steps: int, seed: int, texts: Path, threads: int, points: int) -> list[dict[str, float]]:
    """Train for a number of steps, and return the rows of metrics.jsonl."""
    every = max(1, steps // points)
    settings = {
        **COMMON,
        "data.text": texts / "train.jsonl",
        "data.val_text": texts / "val.jsonl",
        "data.cache_dir": texts,
        "seed_everything": seed,
        "model.warmup_steps": round(recipe.warmup * steps),
        "trainer.max_steps": steps,
        "evaluate_every": every,
        "save_every": steps,
        **recipe.settings,
    }
    settings["trainer.limit_val_batches"] = 80 // settings["data.batch_size"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gpt_lightning", "fit", f"--run_dir={folder}/run"]
        command += [f"--{name}={value}" for name, value in settings.items()]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        return [json.loads(line) for line in Path(f"{folder}/run/metrics.jsonl").read_text().splitlines()]


def seconds_per_step(names: list[str], steps: int, rounds: int, texts: Path) -> dict[str, float]:
    """Return the median seconds of an optimizer step of each recipe with all cores, from trainings in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:  # recipes with equal settings share their measurements
        seconds[name] = next(seconds[one] for one in names if RECIPES[one].settings == RECIPES[name].settings)
    for _ in range(rounds):
        for name in names:
            rows = train(RECIPES[name], steps, 1, texts, os.cpu_count() or 1, points=1)
            tokens = RECIPES[name].settings["data.batch_size"] * COMMON["model.context_length"]
            speeds = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
            seconds[name] += [tokens / speed for speed in speeds[3:]]  # the first steps are slower
    return {name: median(values) for name, values in seconds.items()}


def time_to(loss: float, curve: list[list[float]]) -> float | None:
    """Return the seconds at which a curve of (seconds, loss) reaches a loss, between points linearly; None if never."""
    before = None
    for seconds, found in curve:
        if found <= loss:
            if before is None:
                return seconds
            return before[0] + (seconds - before[0]) * (before[1] - loss) / (before[1] - found)
        before = (seconds, found)
    return None


def print_table(results: list[dict[str, Any]]) -> None:
    """Print the time of each recipe to the loss at which nanoGPT's ends, and its own last loss: means over seeds."""
    target = mean(one["curve"][-1][1] for one in results if one["recipe"] == "nanogpt")
    print(f"target: {target:.3f} nats per token, the last validation loss of nanogpt")
    for name in dict.fromkeys(one["recipe"] for one in results):
        runs = [one for one in results if one["recipe"] == name]
        losses = [one["curve"][-1][1] for one in runs]
        times = [time_to(target, one["curve"]) for one in runs]
        reached = [one for one in times if one is not None]
        spread = f" +- {stdev(losses):.3f}" if len(losses) > 1 else ""
        shown = (
            f"{mean(reached):6.0f} s" if len(reached) == len(times) else f"{len(reached)} of {len(times)} runs reach it"
        )
        print(
            f"{name:<26}{runs[0]['seconds_per_step']:7.3f} s a step {runs[0]['steps']:6} steps "
            f"{runs[0]['curve'][-1][0]:6.0f} s  loss {mean(losses):.3f}{spread}  target {shown}"
        )


def draw(results: list[dict[str, Any]], path: str) -> None:
    """Draw the curves of the recipes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="tight")
    axes = figure.add_subplot()
    for number, name in enumerate(dict.fromkeys(one["recipe"] for one in results)):
        for place, one in enumerate(run for run in results if run["recipe"] == name):
            seconds, losses = zip(*one["curve"], strict=True)
            minutes = [second / 60 for second in seconds]
            axes.plot(minutes, losses, color=f"C{number}", linewidth=1.2, label=name if place == 0 else None)
    target = mean(one["curve"][-1][1] for one in results if one["recipe"] == "nanogpt")
    axes.axhline(target, color="0.45", linewidth=0.8, linestyle=":")
    axes.set_ylim(None, target + 1)
    axes.set_xlabel("Minutes of optimizer steps")
    axes.set_ylabel("Validation loss (nats per token)")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="*", default=["book", "nanogpt", "ours"], choices=RECIPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--minutes", type=float, default=15, help="of the recipes book and nanogpt")
    parser.add_argument("--probe", type=int, default=12, help="steps of the trainings that measure the speed")
    parser.add_argument("--rounds", type=int, default=3, help="of these")
    parser.add_argument("--points", type=int, default=12, help="evaluations of a training")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    parser.add_argument(
        "--results", help="a file to add results to, a JSON object per training; also those in it count"
    )
    parser.add_argument("--figure", help="a PNG, SVG or PDF file for the curves")
    options = parser.parse_args()
    if "nanogpt" not in options.recipes:
        parser.error("--recipes must include nanogpt, which sets the target")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder)
        print(write_texts(texts), flush=True)
        speeds = seconds_per_step(options.recipes, options.probe, options.rounds, texts)
        print({name: round(seconds, 4) for name, seconds in speeds.items()}, flush=True)

        def run(task: tuple[str, int]) -> dict[str, Any]:
            name, seed = task
            steps = int(options.minutes * 60 * RECIPES[name].share / speeds[name])
            rows = train(
                RECIPES[name], steps, seed, texts, max(1, (os.cpu_count() or 1) // options.jobs), options.points
            )
            curve = [[row["step"] * speeds[name], row["val_loss"]] for row in rows if "val_loss" in row]
            return {"recipe": name, "seed": seed, "steps": steps, "seconds_per_step": speeds[name], "curve": curve}

        tasks = [(name, seed) for seed in options.seeds for name in options.recipes]
        with ThreadPoolExecutor(options.jobs) as pool:
            for result in pool.map(run, tasks):
                results.append(result)
                if options.results:
                    with open(options.results, "a") as file:
                        file.write(json.dumps(result) + "\n")
                print(result["recipe"], result["seed"], result["curve"][-1], flush=True)
    print_table(results)
    if options.figure:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
