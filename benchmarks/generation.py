"""Measure tokens per second of this project's `generate`, transformers' `generate` and the book's loop.

    python benchmarks/generation.py [--json] [--rounds 5] [--tokens 200]

GPT-2 small with an untied head and random weights completes prompts of 4 tokens greedily. The contenders run in
separate processes and take turns. In every round, another process measures the machine's current memory bandwidth.
Ratios are medians over the rounds.

The first token of a long prompt is compared with the matrix products that it takes: those of all blocks with all tokens
of the prompt, and those of the head with the last token, one after another without anything between them.

For a single prompt in bfloat16, the products of a token with the packed matrices are measured in the same way.

For a single prompt, the speed limit is to read every matrix once per token (except the token embedding, of which only
one row is read), at the measured bandwidth. Beyond the context length, arithmetic is the limit: positions are learned,
so a whole window is processed again for each new token. The last table shows the time per token before and beyond the
context length.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch
from peers import VOCABULARY, BookGPT, Shape, our_gpt, transformers_gpt
from torch import nn
from workers import Worker

from gpt_lightning.inference.generate import generate
from gpt_lightning.inference.packed_linear import pack
from gpt_lightning.inference.sampling import SamplingConfig

PROMPT = [6109, 3626, 6100, 345] * 64
GPT2 = Shape(context_length=1024, drop_rate=0.0)
SHORT = Shape(context_length=256, drop_rate=0.0)
PIECE = 50  # tokens per turn in the measurement beyond the context length
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Contender:
    """A configuration to measure.

    Attributes:
        name: ours, transformers or book.
        precision: Type of the weights, fp32 or bf16.
        prompts: Number of prompts per batch.
        shape: Sizes of the model.
        prompt_tokens: Length of each prompt.
    """

    name: str
    precision: str = "fp32"
    prompts: int = 1
    shape: Shape = GPT2
    prompt_tokens: int = 4


Listener = Callable[[], None]


def loop(contender: Contender) -> Callable[[int, Listener | None], None]:
    """Return a function (tokens, listener) that generates tokens and calls the listener, if any, after each."""
    torch.manual_seed(123)
    dtype = DTYPES[contender.precision]
    prompts = [PROMPT[: contender.prompt_tokens]] * contender.prompts
    if contender.name == "ours":
        model = our_gpt(contender.shape).to(dtype).eval()
        pack(model, contender.prompts)  # as `predict` does

        def run(tokens: int, listener: Listener | None) -> None:
            for _ in generate(model, prompts, SamplingConfig(max_new_tokens=tokens)):
                if listener is not None:
                    listener()

        return run
    ids = torch.tensor(prompts)
    if contender.name == "transformers":
        peer = transformers_gpt(contender.shape).to(dtype).eval()

        def run_peer(tokens: int, _: Listener | None) -> None:
            with torch.inference_mode():
                peer.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    do_sample=False,
                    pad_token_id=50_256,
                )

        return run_peer
    book = BookGPT(contender.shape).to(dtype).eval()

    def run_book(tokens: int, listener: Listener | None) -> None:
        text = ids
        for _ in range(tokens):
            with torch.no_grad():
                logits = book(text[:, -contender.shape.context_length :])[:, -1, :]
            text = torch.cat((text, logits.argmax(-1, keepdim=True)), dim=1)
            if listener is not None:
                listener()

    return run_book


def work(contender: Contender, connection: Connection) -> None:
    """Generate the number of tokens in each message, and answer with the seconds it took."""
    run = loop(contender)
    run(3, None)
    connection.send(None)
    while True:
        tokens = connection.recv()
        start = time.perf_counter()
        run(tokens, None)
        connection.send(time.perf_counter() - start)


def work_in_pieces(contender: Contender, connection: Connection) -> None:
    """Generate the next `PIECE` tokens of one long completion per message, and answer with the seconds it took."""
    run = loop(contender)
    made, start = 0, 0.0

    def listener() -> None:
        nonlocal made, start
        made += 1
        if made % PIECE == 0:
            connection.send(time.perf_counter() - start)
            connection.recv()
            start = time.perf_counter()

    connection.send(None)
    connection.recv()
    start = time.perf_counter()
    run(10**9, listener)


def work_machine(_: Any, connection: Connection) -> None:
    """Answer each message with the machine's read bandwidth in bytes/s: the best of three ways to read 800 MB."""
    numbers = torch.ones(200_000_000)
    matrix, vector, row = numbers.view(20_000, 10_000), torch.ones(10_000), torch.ones(20_000)
    ways = (numbers.sum, lambda: torch.mv(matrix, vector), lambda: torch.mv(matrix.T, row))
    connection.send(None)
    while True:
        connection.recv()
        rates = []
        for way in ways:
            start = time.perf_counter()
            way()
            rates.append(4 * numbers.numel() / (time.perf_counter() - start))
        connection.send(max(rates))


def work_products(contender: Contender, connection: Connection) -> None:
    """Answer each message with the seconds of the matrix products that the first token of a prompt takes."""
    D, dtype, rows = contender.shape.emb_dim, DTYPES[contender.precision], contender.prompt_tokens
    sizes = [(D, 3 * D), (D, D), (D, 4 * D), (4 * D, D)] * contender.shape.n_layers
    weights = [torch.randn(inputs, outputs, dtype=dtype) for inputs, outputs in sizes]
    features = {inputs: torch.randn(rows, inputs, dtype=dtype) for inputs, _ in sizes}
    head, last = torch.randn(VOCABULARY, D, dtype=dtype), torch.randn(D, dtype=dtype)
    connection.send(None)
    while True:
        connection.recv()
        start = time.perf_counter()
        for weight in weights:
            features[weight.shape[0]] @ weight
        head @ last
        connection.send(time.perf_counter() - start)


def work_packed_products(contender: Contender, connection: Connection) -> None:
    """Answer each message with the seconds of the products with all packed matrices that one new token takes."""
    D, dtype = contender.shape.emb_dim, DTYPES[contender.precision]
    sizes = [*[(D, 3 * D), (D, D), (D, 4 * D), (4 * D, D)] * contender.shape.n_layers, (D, VOCABULARY)]
    layers = nn.Sequential(*(nn.Linear(*size, bias=False) for size in sizes)).to(dtype)
    features = [torch.randn(1, inputs, dtype=dtype) for inputs, _ in sizes]
    pack(layers, 1)
    connection.send(None)
    while True:
        connection.recv()
        start = time.perf_counter()
        with torch.inference_mode():
            for layer, one in zip(layers, features, strict=True):
                layer(one)
        connection.send(time.perf_counter() - start)


def packed_products(precision: str, rounds: int) -> float:
    """Measure the products with packed matrices of one new token, and print them beside the limit.

    Returns:
        The speed of the products alone as a share of the memory limit.
    """
    contender = Contender("ours", precision)
    products, machine = Worker(work_packed_products, contender), Worker(work_machine, None)
    seconds, rates = [], []
    for _ in range(rounds):
        seconds.append(median(products() for _ in range(20)))
        rates.append(machine())
    products.stop()
    machine.stop()
    least = matrix_bytes(contender.shape, precision) / median(rates)
    share = least / median(seconds)
    print(f"\nproducts of a token with packed matrices, {precision}: {1000 * median(seconds):.1f} ms")
    print(f"  read at {median(rates) / 1e9:.1f} GB/s: {1000 * least:.1f} ms, {100 * share:.0f} % of it", flush=True)
    return share


def first_token(precision: str, tokens: int, rounds: int) -> float:
    """Measure the time to the first token of a long prompt, and print it beside that of its matrix products.

    Returns:
        The time relative to that of the products.
    """
    contenders = [Contender(name, precision, prompt_tokens=tokens) for name in ("ours", "transformers")]
    workers = [Worker(work, one) for one in contenders]
    floor = Worker(work_products, contenders[0])
    seconds: list[list[float]] = [[], [], []]
    for _ in range(rounds):
        for took, measure in zip(seconds, [lambda: workers[0](1), lambda: workers[1](1), floor], strict=True):
            took.append(measure())
    ratio = median(one / least for one, least in zip(seconds[0], seconds[2], strict=True))
    ours, peer, products = (1000 * median(took) for took in seconds)
    print(f"\nfirst token of a prompt of {tokens} tokens, {precision}: ours {ours:.0f} ms, transformers {peer:.0f} ms")
    print(f"  its matrix products {products:.0f} ms; ours / products: {ratio:.2f}", flush=True)
    for worker in (*workers, floor):
        worker.stop()
    return ratio


def matrix_bytes(shape: Shape, precision: str) -> int:
    """Return the bytes of all matrices that are read for each new token."""
    return shape.weights_multiplied * DTYPES[precision].itemsize


def compare(first: Contender, second: Contender, rounds: int, tokens: int) -> tuple[float, float]:
    """Measure two contenders that take turns, and print a row for each.

    Returns:
        The time of the second contender relative to the first, and the first's speed as a share of the memory limit.
    """
    workers = Worker(work, first), Worker(work, second)
    machine = Worker(work_machine, None)
    seconds: list[list[float]] = [[], []]
    latencies: list[list[float]] = [[], []]
    rates = []
    for i in range(rounds):
        for j in (0, 1) if i % 2 == 0 else (1, 0):
            latencies[j].append(workers[j](1))
            seconds[j].append(workers[j](tokens))
        rates.append(machine())
    rate = median(rates)
    shares = []
    for one, worker, took, first_token in zip((first, second), workers, seconds, latencies, strict=True):
        limit = rate / matrix_bytes(one.shape, one.precision)  # steps per second
        shares.append(tokens / median(took) / limit)
        print(
            f"{one.name:<13} {one.precision:<5} {one.prompts:>7} {one.prompts * tokens / median(took):>9.1f} "
            f"{1000 * median(first_token):>9.1f} {100 * shares[-1]:>8.0f} % {worker.peak_bytes() / 1e9:>6.2f}",
            flush=True,
        )
        worker.stop()
    machine.stop()
    ratio = median(other / own for own, other in zip(*seconds, strict=True))
    print(f"  {second.name} / {first.name}: {ratio:.2f}   (machine reads {rate / 1e9:.1f} GB/s)", flush=True)
    return ratio, shares[0]


def past_context(tokens: int) -> float:
    """Measure our loop and the book's beyond a context length of 256, and print the time per token by position.

    Returns:
        The total time of the book's loop relative to ours.
    """
    workers = [Worker(work_in_pieces, Contender(name, shape=SHORT)) for name in ("ours", "book")]
    seconds: list[list[float]] = [[], []]
    for i in range(tokens // PIECE):
        for j in (0, 1) if i % 2 == 0 else (1, 0):
            seconds[j].append(workers[j]())
    print(f"\none prompt, context {SHORT.context_length}: milliseconds per new token")
    print(f"{'tokens':<12} {'ours':>7} {'book':>7}")
    for i, (ours, book) in enumerate(zip(*seconds, strict=True)):
        print(f"{i * PIECE + 1:>5}-{(i + 1) * PIECE:<6} {1000 * ours / PIECE:>7.1f} {1000 * book / PIECE:>7.1f}")
    for worker in workers:
        worker.stop()
    ratio = sum(seconds[1]) / sum(seconds[0])
    print(f"  book / ours, {tokens} tokens: {ratio:.2f}", flush=True)
    return ratio


def run() -> None:
    """Parse the arguments and run the measurements."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender per comparison")
    parser.add_argument("--tokens", type=int, default=200, help="new tokens per turn")
    parser.add_argument("--long_prompt", type=int, default=200, help="tokens of a long prompt; 0: skip")
    parser.add_argument("--past_context", type=int, default=1000, help="new tokens at context length 256; 0: skip")
    parser.add_argument("--json", action="store_true", help="print all ratios as a JSON object at the end")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {time.strftime('%F')}")
    print(f"{'contender':<13} {'type':<5} {'prompts':>7} {'tokens/s':>9} {'first ms':>9} {'of limit':>10} {'GB':>6}")
    found: dict[str, float] = {}
    for precision, prompts in (("fp32", 1), ("bf16", 1), ("fp32", 8)):
        ours, peer = (Contender(name, precision, prompts) for name in ("ours", "transformers"))
        ratio, share = compare(ours, peer, options.rounds, options.tokens)
        found[f"{precision}_{prompts}_vs_transformers"] = ratio
        if prompts == 1:
            found[f"{precision}_1_share_of_bandwidth"] = share
    found["bf16_1_products_share_of_bandwidth"] = packed_products("bf16", options.rounds)
    if options.long_prompt:
        found["first_token_vs_products"] = first_token("fp32", options.long_prompt, 3 * options.rounds)
    if options.past_context:
        found["past_context_vs_book"] = past_context(options.past_context)
    if options.json:
        print(json.dumps({name: round(value, 4) for name, value in found.items()}))


if __name__ == "__main__":
    run()
