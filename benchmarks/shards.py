"""Compare training from shards in an S3 server on this machine with training from the local cache.

    python benchmarks/shards.py [--steps 300] [--seeds 1 2 3]

The corpus is sorted by topic: the sources of Python's standard library, then the same number of bytes of English prose
generated from the texts of this repository, then numbers. It is trained on in three ways, with the same validation
text, network and number of tokens per step: from the token cache, whose windows are shuffled globally; from shards,
whose documents were shuffled by `prepare`; and from shards that are read in the order of the topics, to show that the
comparison would notice. The S3 server is moto's, a process on loopback.

Printed are validation losses, and the share of the training time in which a step waits for its data. Both from shards
begin with an empty cache, so the wait includes the downloads.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # for the S3 server of the tests

from object_server import serve  # noqa: E402
from speedrun import write_texts  # noqa: E402

DOCUMENT = 4_000  # characters
SHARD_TOKENS = 100_000
SETTINGS = {
    "model.context_length": 128,
    "model.emb_dim": 128,
    "model.n_heads": 4,
    "model.n_layers": 2,
    "model.drop_rate": 0.0,
    "model.init": "gpt2",
    "model.tie_weights": True,
    "model.sampled_softmax": 2048,
    "model.learning_rate": 2e-3,
    "trainer.precision": "32-true",
    "trainer.logger": False,
    "trainer.enable_progress_bar": False,
    "trainer.max_epochs": -1,
    "data.batch_size": 8,
    "evaluate_batches": 1,
}


def write_corpus(folder: Path) -> None:
    """Write documents sorted by topic, and every twentieth of them, in random order, as a validation text."""
    write_texts(folder)
    generator = random.Random(1)
    sources = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]
    story = (ROOT / "data" / "the-lamp-at-low-water.txt").read_text(encoding="utf-8").split()
    words = [generator.choice(story) for _ in range(400_000)]
    numbers = [str(generator.randrange(1000)) for _ in range(600_000)]
    topics = ["\n".join(sources)[:2_500_000], " ".join(words), " ".join(numbers)]
    documents = [topic[i : i + DOCUMENT] for topic in topics for i in range(0, len(topic), DOCUMENT)]
    validation = documents[::20]
    generator.shuffle(validation)
    for name, rows in (("train", [one for i, one in enumerate(documents) if i % 20]), ("val", validation)):
        lines = [json.dumps({"text": one}) + "\n" for one in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def environment_of(more: dict[str, str]) -> dict[str, str]:
    """Return the environment of a process that imports this project and its benchmarks."""
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}", **more}


def run_command(arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Run a command of gpt_lightning in a folder."""
    done = subprocess.run(
        [sys.executable, "-m", "gpt_lightning", *arguments],
        cwd=folder,
        env=environment_of(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stdout}{done.stderr}")


def train(text: str, name: str, seed: int, steps: int, folder: Path, environment: dict[str, str]) -> list[float]:
    """Train once, and return the last validation loss, the share of the time spent waiting for data, and tokens/s."""
    run = f"{name}-{seed}"
    settings = {
        **SETTINGS,
        "data.text": text,
        "data.val_text": "val.jsonl",
        "data.cache_dir": f"cache-{run}",
        "seed_everything": seed,
        "trainer.max_steps": steps,
        "evaluate_every": steps,
        "trainer.limit_val_batches": 40,
        "run_dir": run,
    }
    callback = ["--allow_classes_of=peers", "--trainer.callbacks+=peers.Waits"]
    run_command(["fit", *(f"--{key}={value}" for key, value in settings.items()), *callback], folder, environment)
    rows = [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
    wait = json.loads((folder / "waits.json").read_text())
    return [rows[-1]["val_loss"], wait["share"], wait["tokens_per_second"]]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder)
        with serve(folder, "corpus") as server:
            prepare = ["prepare", "--text=train.jsonl", f"--shard_tokens={SHARD_TOKENS}"]
            run_command([*prepare, "--output=s3://corpus/shuffled"], folder, server.environment)
            patch = "import numpy; numpy.random.default_rng = lambda _: type('', (), {'permutation': numpy.arange})"
            sorted_arguments = [*prepare, "--output=s3://corpus/sorted"]
            code = f"{patch}; from gpt_lightning.cli.main import main; main({sorted_arguments!r})"
            subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment_of(server.environment), check=True)
            sources = {
                "cache": "train.jsonl",
                "shards": "s3://corpus/shuffled",
                "sorted": "s3://corpus/sorted",
            }
            found: dict[str, list[list[float]]] = {one: [] for one in sources}
            for seed in options.seeds:
                for one, text in sources.items():
                    found[one].append(train(text, one, seed, options.steps, folder, server.environment))
    print(f"{'from':<8} {'val_loss':>8} {'+-':>6} {'waiting':>8} {'tokens/s':>9}")
    for one, rows in found.items():
        losses, waits, rates = zip(*rows, strict=True)
        spread = stdev(losses) if len(losses) > 1 else 0.0
        print(f"{one:<8} {mean(losses):>8.4f} {spread:>6.4f} {100 * mean(waits):>6.2f} % {mean(rates):>9.0f}")


if __name__ == "__main__":
    main()
