"""Measure seconds per optimizer step of `fit`, a bare loop, transformers' GPT-2 and the book's loop.

    python benchmarks/training.py [--json] [--pairs 15]     GPT-2 small with the sizes of configs/verdict.yaml
    python benchmarks/training.py --sweep                   `fit` with other context lengths, batches, accumulation
    python benchmarks/training.py --without_products        bf16-mixed steps without their matrix products

Two contenders at a time run in separate processes and take turns, one optimizer step each. After every pair of steps,
a third process measures the machine's current rate of matrix products and memory bandwidth. Ratios are medians over
the pairs. The floor of a step, its lower bound, is the time of its matrix products at the measured rate, plus the time
of the optimizer's memory traffic (weight, gradient and two moments read, weight and moments written, 4 bytes each) at
the measured bandwidth.

bf16 is measured only if the machine's matrix products are faster in bf16 than in float32. Otherwise its results are
null, and only the rest of a step can be measured, with --without_products.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch
from peers import Gate, Shape, WithoutProducts, training_step
from workers import Worker

ROOT = Path(__file__).resolve().parent.parent
STORY = ROOT / "data" / "the-lamp-at-low-water.txt"
OPTIMIZER_BYTES = 28  # per parameter
VERDICT = Shape()


@dataclass(frozen=True)
class Contender:
    """A configuration to measure.

    Attributes:
        name: fit, bare, transformers, book or machine.
        precision: 32-true or bf16-mixed.
        shape: Sizes of the model and its batches.
        products: Whether bfloat16 matrix products are computed.
    """

    name: str
    precision: str = "32-true"
    shape: Shape = VERDICT
    products: bool = True


def work(contender: Contender, connection: Connection) -> None:
    """Run one optimizer step, or one measurement of the machine, per message; runs in a worker process."""
    if contender.name == "fit":
        fit(contender, connection)
    elif contender.name == "machine":
        measure = machine_probe(torch.bfloat16 if contender.precision == "bf16-mixed" else torch.float32)
        connection.send(None)
        while True:
            connection.recv()
            connection.send(measure())
    else:
        step = training_step(contender.name, contender.shape, contender.precision)
        connection.send(None)
        torch.set_flush_denormal(not contender.products)  # uninitialized memory may contain denormals, which are slow
        with contextlib.nullcontext() if contender.products else WithoutProducts():
            while True:
                connection.recv()
                start = time.perf_counter()
                step()
                connection.send(time.perf_counter() - start)


def fit(contender: Contender, connection: Connection) -> None:
    """Run the command `fit`, with all its output and logs, on a text that is long enough for any measurement."""
    from gpt_lightning.cli.main import main

    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  open until the end
    Gate.connection = connection
    shape = contender.shape
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("long.txt").write_text(STORY.read_text(encoding="utf-8") * (2 + shape.tokens // 50), encoding="utf-8")
        sizes = ("context_length", "emb_dim", "n_heads", "n_layers", "drop_rate")
        main(
            [
                "fit",
                "--data.text=long.txt",
                f"--data.batch_size={shape.batch_size}",
                *(f"--model.{name}={getattr(shape, name)}" for name in sizes),
                f"--trainer.accumulate_grad_batches={shape.accumulate}",
                f"--trainer.precision={contender.precision}",
                "--trainer.limit_val_batches=1",
                "--evaluate_batches=1",
                "--evaluate_every=1000000",
                "--save_every=1000000",
                "--allow_classes_of=peers",
                "--trainer.callbacks+=peers.Gate",
            ]
        )


def machine_probe(dtype: torch.dtype) -> Callable[[], tuple[float, float]]:
    """Return a function that measures the machine's FLOP/s in matrix products and its memory bandwidth in bytes/s.

    The rate is the best of three products: of the feed-forward network, of the output head, and of square matrices.
    """
    sizes = ((512, 768, 3072), (512, 768, 50_257), (2048, 2048, 2048))
    factors = [(torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype)) for m, k, n in sizes]
    outputs = [torch.empty(m, n, dtype=dtype) for m, _, n in sizes]
    arrays = [torch.zeros(50_000_000) for _ in range(3)]

    def measure() -> tuple[float, float]:
        rates = []
        for (left, right), out, (m, k, n) in zip(factors, outputs, sizes, strict=True):
            repeats = max(1, 20_000_000_000 // (2 * m * k * n))
            start = time.perf_counter()
            for _ in range(repeats):
                torch.mm(left, right.T, out=out)
            rates.append(repeats * 2 * m * k * n / (time.perf_counter() - start))
        start = time.perf_counter()
        torch.add(arrays[0], arrays[1], out=arrays[2])
        return max(rates), 3 * 4 * arrays[0].numel() / (time.perf_counter() - start)

    measure()
    return measure


@dataclass
class Times:
    """The measurements of two contenders that took turns.

    Attributes:
        seconds: Seconds per optimizer step, for each contender.
        peaks: Peak memory in bytes, for each contender.
        rate: The machine's FLOP/s in matrix products, median.
        bandwidth: The machine's memory bandwidth in bytes/s, median.
    """

    seconds: tuple[list[float], list[float]]
    peaks: tuple[int, int]
    rate: float
    bandwidth: float

    @property
    def ratio(self) -> float:
        """Time of the second contender relative to the first, median over the pairs."""
        return median(second / first for first, second in zip(*self.seconds, strict=True))

    def floor(self, shape: Shape) -> float:
        """Return the lower bound of the seconds per optimizer step."""
        return shape.flops / self.rate + OPTIMIZER_BYTES * shape.parameters / self.bandwidth


def compare(first: Contender, second: Contender, pairs: int) -> Times:
    """Measure two contenders that take turns, one optimizer step each, after two steps each of warm-up."""
    workers = Worker(work, first), Worker(work, second), Worker(work, Contender("machine", first.precision))
    one, two, machine = workers
    seconds: tuple[list[float], list[float]] = ([], [])
    measured = []
    for i in range(2 + pairs):
        order = (0, 1) if i % 2 == 0 else (1, 0)
        took = {j: (one, two)[j]() for j in order}
        if i >= 2:
            for j in order:
                seconds[j].append(took[j])
            measured.append(machine())
    times = Times(
        seconds, (one.peak_bytes(), two.peak_bytes()), median(r for r, _ in measured), median(b for _, b in measured)
    )
    for worker in workers:
        worker.stop()
    return times


def show(first: Contender, second: Contender, times: Times) -> None:
    """Print a row for each contender, and their ratio."""
    floor = times.floor(first.shape)
    for contender, seconds, peak in zip((first, second), times.seconds, times.peaks, strict=True):
        comparable = contender.precision == first.precision
        share = f"{100 * floor / median(seconds):5.0f} %" if comparable else "-"
        print(
            f"{contender.name:<13} {contender.precision:<10} {median(seconds):8.3f} {min(seconds):8.3f} {share:>9} "
            f"{peak / 1e9:7.2f}",
            flush=True,
        )
    print(
        f"  {second.name} / {first.name}: {times.ratio:.3f}   (machine: {times.rate / 1e9:,.0f} GFLOP/s, "
        f"{times.bandwidth / 1e9:.1f} GB/s; floor {floor:.3f} s)",
        flush=True,
    )


def run_pairs(pairs: int) -> dict[str, float | None]:
    """Run and print all comparisons, and return their ratios by name; those that were not measured are None."""
    print(f"{'contender':<13} {'precision':<10} {'median s':>8} {'least s':>8} {'of floor':>9} {'GB':>7}")
    found: dict[str, float | None] = {}
    shares = []
    fit32 = Contender("fit")
    for name, key in (("transformers", "fp32_vs_transformers"), ("book", "fp32_vs_book"), ("bare", "")):
        other = Contender(name)
        count = max(15, pairs) if name == "bare" else pairs
        times = compare(fit32, other, count)
        show(fit32, other, times)
        shares.append(times.floor(fit32.shape) / median(times.seconds[0]))
        if key:
            found[key] = times.ratio
        else:
            found["trainer_overhead"] = 1 / times.ratio - 1
    found["fp32_share_of_floor"] = median(shares)
    fast = bf16_is_faster()
    found |= dict.fromkeys(("bf16_vs_transformers", "bf16_vs_book_fp32", "bf16_share_of_floor"), None)
    if not fast:
        print("bf16: not measured, because its matrix products are slower than float32 on this machine", flush=True)
        return found
    fit16 = Contender("fit", "bf16-mixed")
    shares = []
    for other, key in (
        (Contender("transformers", "bf16-mixed"), "bf16_vs_transformers"),
        (Contender("book"), "bf16_vs_book_fp32"),
    ):
        times = compare(fit16, other, pairs)
        show(fit16, other, times)
        found[key] = times.ratio
        shares.append(times.floor(fit16.shape) / median(times.seconds[0]))
    found["bf16_share_of_floor"] = median(shares)
    return found


def bf16_is_faster() -> bool:
    """Return whether the machine's matrix products are faster in bf16 than in float32."""
    rates = []
    for precision in ("32-true", "bf16-mixed"):
        worker = Worker(work, Contender("machine", precision))
        rates.append(median(worker()[0] for _ in range(3)))
        worker.stop()
    return rates[1] > rates[0]


def sweep(steps: int) -> None:
    """Measure `fit` with several context lengths, batch sizes and accumulation."""
    base = Shape()
    shapes = [
        *(replace(base, context_length=length) for length in (128, 256, 512, 1024)),
        *(replace(base, batch_size=size) for size in (1, 4, 8)),
        *(replace(base, accumulate=count) for count in (2, 4)),
    ]
    print(f"{'context':>7} {'batch':>5} {'accumulate':>10} {'s per step':>10} {'tokens/s':>8} {'GB':>6}")
    for shape in shapes:
        worker = Worker(work, Contender("fit", shape=shape))
        worker()
        seconds = median(worker() for _ in range(steps))
        print(
            f"{shape.context_length:>7} {shape.batch_size:>5} {shape.accumulate:>10} {seconds:>10.2f} "
            f"{shape.tokens / seconds:>8.0f} {worker.peak_bytes() / 1e9:>6.2f}",
            flush=True,
        )
        worker.stop()


def rest_of_steps(pairs: int) -> None:
    """Measure bf16-mixed steps of bare loops without their matrix products."""
    names = ("bare", "transformers", "book")
    workers = {name: Worker(work, Contender(name, "bf16-mixed", products=False)) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for i in range(2 + pairs):
        for name, worker in workers.items():
            took = worker()
            if i >= 2:
                seconds[name].append(took)
    print(f"{'contender':<13} {'median s':>8} {'least s':>8} {'times ours':>10}")
    for name, worker in workers.items():
        ratio = median(one / own for one, own in zip(seconds[name], seconds["bare"], strict=True))
        print(f"{name:<13} {median(seconds[name]):8.3f} {min(seconds[name]):8.3f} {ratio:10.2f}")
        worker.stop()


def run() -> None:
    """Parse the arguments and run the measurements."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15, help="pairs of steps per comparison")
    parser.add_argument("--json", action="store_true", help="print all ratios as a JSON object at the end")
    parser.add_argument("--sweep", action="store_true", help="measure fit with other sizes of context and batch")
    parser.add_argument("--without_products", action="store_true", help="measure bf16-mixed without matrix products")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {time.strftime('%F')}")
    if options.sweep:
        sweep(5)
        return
    if options.without_products:
        rest_of_steps(options.pairs)
        return
    found = run_pairs(options.pairs)
    if options.json:
        print(json.dumps({name: None if value is None else round(value, 4) for name, value in found.items()}))


if __name__ == "__main__":
    run()
