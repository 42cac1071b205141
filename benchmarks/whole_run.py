"""Measure the wall-clock time of `fit --config configs/verdict.yaml` and of an equivalent script from the book.

    python benchmarks/whole_run.py [--rounds 1] [settings of fit, such as --trainer.precision 32-true]

Both train ten epochs of 9 optimizer steps on The Verdict, with the same evaluations (every 5 steps, on 5 training
batches and the validation split) and samples (50 tokens after each epoch). They run in separate processes, in turn,
and are timed from the start of Python to its exit. The book's script, reimplemented from chapter 5, saves nothing,
whereas `fit` also saves checkpoints, draws figures and logs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from peers import LEARNING_RATE, WEIGHT_DECAY, BookGPT, Shape
from torch import Tensor
from torch.nn import functional as F

from gpt_lightning.data.sources import DATA_ENV
from gpt_lightning.data.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
EPOCHS, EVALUATE_EVERY, EVALUATED_BATCHES, NEW_TOKENS = 10, 5, 5, 50
BOOK = "--book"


def find_verdict() -> Path:
    """Return the path of The Verdict, in data/ or in the folder GPT_LIGHTNING_DATA."""
    for folder in (ROOT / "data", Path(os.environ.get(DATA_ENV) or ".")):
        if (folder / "the-verdict.txt").is_file():
            return folder / "the-verdict.txt"
    raise SystemExit(f"the-verdict.txt is neither in data/ nor in the folder that {DATA_ENV} names")


def windows(ids: list[int], length: int) -> list[tuple[Tensor, Tensor]]:
    """Return consecutive windows as inputs and targets, (T,) each."""
    tokens = torch.tensor(ids)
    starts = range(0, len(ids) - length, length)
    return [(tokens[i : i + length], tokens[i + 1 : i + length + 1]) for i in starts]


def book_script() -> None:
    """Train as chapter 5's `train_model_simple` does, with its evaluations and samples."""
    torch.manual_seed(123)
    shape = Shape()
    tokenizer = load_tokenizer("gpt2")
    text = find_verdict().read_text(encoding="utf-8")
    cut = int(0.9 * len(text))
    parts = [windows(tokenizer.encode(part), shape.context_length) for part in (text[:cut], text[cut:])]
    train, val = (
        torch.utils.data.DataLoader(part, batch_size=2, shuffle=number == 0, drop_last=number == 0)  # type: ignore[arg-type]
        for number, part in enumerate(parts)
    )
    model = BookGPT(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    def mean_loss(loader: torch.utils.data.DataLoader) -> float:  # type: ignore[type-arg]
        losses = [loss_of(*batch).item() for batch, _ in zip(loader, range(EVALUATED_BATCHES), strict=False)]
        return sum(losses) / len(losses)

    step = 0
    for epoch in range(EPOCHS):
        model.train()
        for inputs, targets in train:
            optimizer.zero_grad()
            loss_of(inputs, targets).backward()
            optimizer.step()
            step += 1
            if step % EVALUATE_EVERY == 0:
                model.eval()
                with torch.no_grad():
                    print(f"Ep {epoch + 1} (Step {step:06d}): {mean_loss(train):.3f} {mean_loss(val):.3f}", flush=True)
                model.train()
        model.eval()
        ids = torch.tensor([tokenizer.encode("Every effort moves you")])
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                logits = model(ids[:, -shape.context_length :])[:, -1]
            ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), dim=1)
        print(tokenizer.decode(ids[0].tolist()).replace("\n", " "), flush=True)


def run() -> None:
    """Run both in turn and print their times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="number of runs of each")
    options, settings = parser.parse_known_args()
    environment = {**os.environ, DATA_ENV: str(find_verdict().parent), "PYTHONPATH": str(ROOT)}
    seconds: dict[str, list[float]] = {"fit": [], "book": []}
    for i in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            config = str(ROOT / "configs" / "verdict.yaml")
            commands = {
                "fit": ["-m", "gpt_lightning", "fit", "--config", config, "--run_dir", f"{folder}/run", *settings],
                "book": [__file__, BOOK],
            }
            for name in ("fit", "book") if i % 2 == 0 else ("book", "fit"):
                start = time.perf_counter()
                subprocess.run([sys.executable, *commands[name]], cwd=ROOT, env=environment, check=True)
                seconds[name].append(time.perf_counter() - start)
    for name, took in seconds.items():
        print(f"{name:<5} {median(took):7.1f} s")
    print(f"book / fit: {median(b / f for f, b in zip(seconds['fit'], seconds['book'], strict=True)):.2f}")


if __name__ == "__main__":
    if sys.argv[1:] == [BOOK]:
        book_script()
    else:
        run()
