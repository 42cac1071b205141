"""Kill and damage real runs, resume them, and compare them with uninterrupted runs.

    python benchmarks/chaos.py kills    [--runs 60]     SIGKILL at random moments, up to four per run
    python benchmarks/chaos.py steps                    SIGKILL at every batch, and at pairs of batches at epoch ends
    python benchmarks/chaos.py signals  [--runs 80]     SIGTERM and SIGINT at random moments
    python benchmarks/chaos.py damage                   2,000 flipped bits and 200 truncations of a checkpoint
    python benchmarks/chaos.py disk                     a full disk and other errors while saving (needs root)
    python benchmarks/chaos.py all

Every start runs `main(["fit", ...])` in a process forked from one that has already imported everything, so that
starting takes a fraction of a second. The runs use dropout, accumulation over 2 batches, gradient clipping, warm-up
and cosine decay, evaluations inside epochs and samples. Every seventh run has two processes, started as by torchrun,
another seventh trains with Muon and sampled softmax, and another one from shards in an S3 server on this machine, with
an empty cache at each start.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forking a process with threads is not safe

import argparse
import contextlib
import ctypes
import mmap
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import torch
import yaml
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from gpt_lightning.checkpoints.compare import compare_runs, first_difference
from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.cli.main import main
from gpt_lightning.errors import InputError
from gpt_lightning.training.callbacks.checkpointing import AtomicCheckpointIO, Checkpointing
from gpt_lightning.training.callbacks.metrics import Summary
from gpt_lightning.training.callbacks.progress import Progress
from gpt_lightning.training.callbacks.samples import Samples
from gpt_lightning.training.module import GPTModule

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # for the S3 server of the tests

from object_server import environment_for, run_s3  # noqa: E402

STEPS, STEPS_PER_EPOCH = 12, 4
SETTINGS: dict[str, Any] = {
    "seed_everything": 123,
    "data": {"text": str(ROOT / "data" / "the-lamp-at-low-water.txt"), "tokenizer": "bytes", "batch_size": 36},
    "model": {
        "context_length": 64,
        "emb_dim": 16,
        "n_heads": 2,
        "n_layers": 1,
        "drop_rate": 0.1,
        "learning_rate": 0.01,
        "warmup_steps": 2,
        "min_learning_rate": 0.001,
    },
    "prompt": ["Every effort"],
    "sampling": {"max_new_tokens": 8, "temperature": 1.0},
    "evaluate_every": 3,
    "evaluate_batches": 2,
    "trainer": {
        "accelerator": "cpu",
        "precision": "32-true",  # auto measures speed, so two runs under load may choose differently
        "max_epochs": 3,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 0.5,
        "enable_progress_bar": False,
    },
}
SHARDS = "s3://chaos/shards"
VARIANTS = {
    "fp32": ["--save_every=2"],
    "gloo": ["--save_every=2", "--data.batch_size=18", "--trainer.devices=2", "--trainer.strategy=ddp"],
    "bf16": ["--save_every=1", "--trainer.precision=bf16-mixed"],
    "workers": ["--save_every=3", "--data.num_workers=2"],
    "minutes": ["--save_minutes=0.002"],
    "shards": ["--save_every=2", f"--data.text={SHARDS}", "--data.cache_dir=cache"],
    "muon": ["--save_every=2", "--model.optimizer=muon", "--model.sampled_softmax=40"],
}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "chaos",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
}
PHASES = ("start-up", "step", "save", "evaluation", "sampling", "epoch end", "after the last step")
PHASE = mmap.mmap(-1, 1)  # index in PHASES; memory shared with forked processes


@contextlib.contextmanager
def phase(name: str) -> Any:
    """Set the current phase inside the `with` block, and restore the previous one after it."""
    before = PHASE[0]
    PHASE[0] = PHASES.index(name)
    try:
        yield
    finally:
        PHASE[0] = before


def mark(owner: type, method: str, name: str) -> None:
    """Wrap a method to set the phase while it runs."""
    original = getattr(owner, method)

    def marked(*arguments: Any, **named: Any) -> Any:
        with phase(name):
            return original(*arguments, **named)

    setattr(owner, method, marked)


def set_phase_after(owner: type, method: str, name: str) -> None:
    """Wrap a method to set the phase when it returns."""
    original = getattr(owner, method)

    def marked(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        PHASE[0] = PHASES.index(name)
        return result

    setattr(owner, method, marked)


def instrument() -> None:
    """Make the program record its phase, in this process and those forked from it."""
    set_phase_after(Progress, "on_train_batch_start", "step")
    mark(AtomicCheckpointIO, "save_checkpoint", "save")
    mark(GPTModule, "validation_step", "evaluation")
    mark(GPTModule, "on_validation_epoch_end", "evaluation")
    mark(Samples, "_complete", "sampling")
    mark(Samples, "_record", "sampling")
    mark(Checkpointing, "on_train_epoch_end", "epoch end")
    mark(Summary, "on_train_end", "after the last step")


def start(arguments: list[str], before: Callable[[], object] = lambda: None) -> int:
    """Run the program in a forked process with its own process group, and return its pid.

    Args:
        arguments: Arguments of the program.
        before: Function that the process calls first.
    """
    PHASE[0] = 0
    child = os.fork()
    if child:
        return child
    os.setsid()
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    second = fork_second() if "--trainer.devices=2" in arguments else None
    code = 70
    try:
        before()
        shutil.rmtree("cache", ignore_errors=True)
        main(arguments)
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        if second and (finish(second) == 0) != (code == 0):  # both ranks must end alike
            code = 70
        os._exit(code)


def fork_second() -> int:
    """Fork a second rank, with the environment of torchrun; return its pid in this process and 0 in the second."""
    global PHASE
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {**TORCHRUN, "MASTER_PORT": str(free.getsockname()[1])}
    second = os.fork()
    rank = "0" if second else "1"
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
    if not second:
        PHASE = mmap.mmap(-1, 1)  # private: only rank 0 records the phase of the run
    return second


def ended(child: int) -> int | None:
    """Return the exit code of a process, negative for a signal, or None while it runs."""
    number, status = os.waitpid(child, os.WNOHANG)
    return None if number == 0 else os.waitstatus_to_exitcode(status)


def finish(child: int) -> int:
    """Wait for a process and return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_group(child: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, number)


def fit(run: str, variant: str) -> list[str]:
    """Return the arguments of `fit` for a variant."""
    return ["fit", "--config", "chaos.yaml", "--run_dir", run, "--resume", *VARIANTS[variant]]


def scalars(run: Path) -> list[tuple[int, str, float]]:
    """Return the values (step, tag, value) that TensorBoard shows for a run, without speeds."""
    shown = set()
    for path in run.glob("events.out.tfevents.*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.HasField("tensor") and value.tensor.float_val and "tokens_per_second" not in value.tag:
                    shown.add((event.step, value.tag, round(value.tensor.float_val[0], 12)))
    return sorted(shown)


def difference(run: Path, reference: Path) -> str | None:
    """Return the first difference between two runs, in files or in TensorBoard, or None."""
    found = compare_runs(reference, run)
    if found is None and scalars(run) != scalars(reference):
        found = "TensorBoard"
    return found


def make_references(variants: Sequence[str]) -> dict[str, float]:
    """Run each variant once without interruption, and return the seconds that each took."""
    seconds = {}
    for variant in variants:
        begin = time.monotonic()
        code = finish(start(fit(f"reference-{variant}", variant)))
        if code != 0:
            raise SystemExit(f"the reference run of {variant} ended with {code}: see {Path('output.txt').absolute()}")
        seconds[variant] = time.monotonic() - begin
    return seconds


def wait_for_moment(child: int, draw: random.Random, seconds: float) -> str | None:
    """Wait for a random moment, of any or of a random phase; return its phase, or None if the run has ended."""
    wanted = draw.choice((None, None, "start-up", "save", "evaluation", "sampling", "epoch end"))
    deadline = time.monotonic() + draw.uniform(0, seconds * (0.2 if wanted == "start-up" else 0.6))
    times = draw.randint(1, 2) if wanted in ("save", "evaluation") else 1
    inside = False
    while (code := os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is None:
        now = PHASES[PHASE[0]]
        if wanted in (None, "start-up"):
            if time.monotonic() >= deadline:
                return now
        else:
            if now == wanted and not inside:
                times -= 1
            inside = now == wanted
            if inside and times <= 0:
                time.sleep(draw.uniform(0, 0.004))
                return PHASES[PHASE[0]]
        time.sleep(0.0002)
    del code
    return None


def kills(runs: int, seed: int) -> bool:
    """Send SIGKILL at random moments, up to four per run."""
    seconds = make_references(list(VARIANTS)[:runs])
    draw = random.Random(seed)
    hit: Counter[str] = Counter()
    different = []
    for number in range(runs):
        variant = list(VARIANTS)[number % len(VARIANTS)]
        run = f"run-{number}"
        for _ in range(draw.randint(3, 4)):
            child = start(fit(run, variant))
            moment = wait_for_moment(child, draw, seconds[variant])
            kill_group(child)
            code = finish(child)
            if moment is not None and code == -signal.SIGKILL:
                hit[moment] += 1
            elif code not in (0, -signal.SIGKILL):
                different.append(f"{run} ended with {code}")
        code = finish(start(fit(run, variant)))
        found = f"ended with {code}" if code else difference(Path(run), Path(f"reference-{variant}"))
        if found:
            different.append(f"{run} ({variant}): {found}")
        else:
            shutil.rmtree(run)
        show(f"kills: {number + 1} of {runs} runs, {hit.total()} kills, {len(different)} different")
    print(f"\nSIGKILL: {hit.total()} in {runs} runs, {runs - len(different)} runs identical")
    print("  hit " + ", ".join(f"{name} {hit[name]}" for name in PHASES if hit[name]))
    return report(different)


def killing_at(batch: int) -> Callable[[], None]:
    """Return a function that makes the process kill itself at the start of a batch, counted over the whole run."""

    def before() -> None:
        begin = Progress.on_train_batch_start

        def fatal(self: Progress, trainer: Any, module: Any, data: Any, batch_idx: int) -> None:
            begin(self, trainer, module, data, batch_idx)
            if trainer.current_epoch * trainer.num_training_batches + batch_idx == batch:
                os.kill(os.getpid(), signal.SIGKILL)

        Progress.on_train_batch_start = fatal  # type: ignore[method-assign]

    return before


def steps() -> bool:
    """Send SIGKILL at every batch once, and at all pairs of batches around the ends of epochs."""
    make_references(["fp32"])
    batches_per_epoch = 2 * STEPS_PER_EPOCH
    batches = 2 * STEPS
    around = [end + offset for end in (batches_per_epoch, 2 * batches_per_epoch) for offset in (-2, -1, 0, 1)] + [
        batches - 2,
        batches - 1,
    ]
    chains = [[one] for one in range(batches)]
    chains += [[one, other] for one in around for other in around if one <= other]
    different = []
    for number, chain in enumerate(chains):
        run = f"run-{number}"
        for batch in chain:
            finish(start(fit(run, "fp32"), killing_at(batch)))
        code = finish(start(fit(run, "fp32")))
        found = f"ended with {code}" if code else difference(Path(run), Path("reference-fp32"))
        if found:
            different.append(f"killed at batches {chain}: {found}")
        else:
            shutil.rmtree(run)
        show(f"steps: {number + 1} of {len(chains)} chains, {len(different)} different")
    print(
        f"\nevery batch of {batches} killed once, {len(chains) - batches} pairs around epoch ends: "
        f"{len(chains) - len(different)} of {len(chains)} runs identical"
    )
    return report(different)


def signals(runs: int, seed: int) -> bool:
    """Send SIGTERM to one half of the runs and SIGINT to the other, at a random moment after start-up.

    The signal is sent to all processes of the run, as from a terminal, or only to the first one, alternating with
    each round of the variants.
    """
    seconds = make_references(list(VARIANTS)[: (runs + 1) // 2])
    draw = random.Random(seed)
    different: list[str] = []
    codes: Counter[str] = Counter()
    for number in range(runs):
        variant = list(VARIANTS)[number // 2 % len(VARIANTS)]
        send = (kill_group, os.kill)[number // (2 * len(VARIANTS)) % 2]
        sent = (signal.SIGTERM, signal.SIGINT)[number % 2]
        run = f"run-{number}"
        child = start(fit(run, variant))
        while PHASE[0] == 0 and ended_soon(child) is None:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, seconds[variant] / 2))
        send(child, sent)
        code = finish(child)
        codes[f"{sent.name} {code}"] += 1
        if code not in (0, 128 + sent):
            different.append(f"{run}: {sent.name} ended it with {code}")
        elif code and not saved_its_last_step(Path(run)):
            different.append(f"{run}: {sent.name} lost a step")
        code = finish(start(fit(run, variant)))
        found = f"ended with {code}" if code else difference(Path(run), Path(f"reference-{variant}"))
        if found:
            different.append(f"{run} ({variant}): {found}")
        else:
            shutil.rmtree(run)
        show(f"signals: {number + 1} of {runs} runs, {len(different)} different")
    print(f"\nsignals: {runs} runs, exit codes {dict(codes)}, {runs - len(different)} identical after resuming")
    return report(different)


def ended_soon(child: int) -> object:
    """Return a result if a process has ended, else None, without reaping it."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def saved_its_last_step(run: Path) -> bool:
    """Return whether last.ckpt has the step of the last row of metrics.jsonl."""
    step = read_checkpoint(run / "checkpoints/last.ckpt")["global_step"]
    return f'"step": {step},' in (run / "metrics.jsonl").read_text().splitlines()[-1]


def damage(seed: int) -> bool:
    """Flip bits of a checkpoint and truncate it; each result must be refused or load with equal content.

    Half of the flips are in headers, padding and the directory of the ZIP archive, which no CRC32 covers.
    """
    make_references(["fp32"])
    path = Path("reference-fp32/checkpoints/last.ckpt")
    content, draw = path.read_bytes(), random.Random(seed)
    reference = torch.load(path, weights_only=True)
    outside = sorted(set(range(len(content))).difference(*record_bytes(path)))
    flips = [(8 * draw.randrange(len(content)) + draw.randrange(8)) for _ in range(1000)]
    flips += [8 * place + draw.randrange(8) for place in draw.sample(outside, 1000)]
    cuts = [draw.randrange(len(content)) for _ in range(200)]
    overlooked, outcomes = [], Counter[str]()
    for kind, place in [*(("bit", one) for one in flips), *(("length", one) for one in cuts)]:
        damaged = bytearray(content if kind == "bit" else content[:place])
        if kind == "bit":
            damaged[place // 8] ^= 1 << place % 8
        Path("damaged.ckpt").write_bytes(damaged)
        for mapped in (True, False):
            try:
                found = first_difference(reference, read_checkpoint("damaged.ckpt", mmap=mapped), "checkpoint")
            except InputError:
                outcomes["refused"] += 1
                continue
            outcomes["equal"] += 1
            if found or kind == "length":
                overlooked.append(f"{kind} {place} of {len(content)} bytes, mmap={mapped}: {found or 'loaded'}")
    print(
        f"\n2,000 flipped bits and 200 truncations, read with and without mmap: {outcomes['refused']:,} refused, "
        f"{outcomes['equal']:,} loaded, {len(overlooked)} of them with other content"
    )
    return report(overlooked)


def record_bytes(path: Path) -> list[range]:
    """Return the byte ranges of the records' data in a checkpoint file."""
    content, places = path.read_bytes(), []
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            header = content[record.header_offset : record.header_offset + 30]
            name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
            start = record.header_offset + len(header) + name + extra
            places.append(range(start, start + record.file_size))
    return places


def disk() -> bool:
    """Make saving fail; the run must exit with one line and code 1, and resume from the intact last checkpoint."""
    make_references(["fp32"])
    wrong = []
    cases = {
        "no space (tmpfs)": full_tmpfs,
        "file too large (RLIMIT_FSIZE)": too_large,
        "input/output error": failing_write,
        "read-only file system": read_only,
    }
    for name, case in cases.items():
        run = f"disk-{name.split()[0]}"
        finish(start([*fit(run, "fp32"), "--trainer.max_steps=4"]))
        before = read_checkpoint(f"{run}/checkpoints/last.ckpt")["global_step"]
        Path("output.txt").unlink()
        code = case(run)
        lines = [line for line in Path("output.txt").read_text().splitlines() if "gpt_lightning: error: " in line]
        after = read_checkpoint(f"{run}/checkpoints/last.ckpt")["global_step"]
        resumed = finish(start(fit(run, "fp32")))
        print(f"  {name}: exit {code}, step {after} intact, resumed: exit {resumed}")
        for line in lines:
            print(f"    {line}")
        if (code, len(lines), resumed) != (1, 1, 0) or after < before:
            wrong.append(name)
    print(f"\ndisk: {len(cases) - len(wrong)} of {len(cases)} passed")
    return report(wrong)


def full_tmpfs(run: str) -> int:
    """Run on a tmpfs that another file fills, and return the exit code."""
    libc = ctypes.CDLL(None, use_errno=True)
    shutil.move(run, f"{run}.moved")
    os.mkdir(run)
    if libc.mount(b"tmpfs", run.encode(), b"tmpfs", 0, b"size=4m") != 0:
        raise SystemExit("mounting a tmpfs needs root")
    shutil.copytree(f"{run}.moved", run, dirs_exist_ok=True)
    child = start(fit(run, "fp32"), lambda: set_phase_after(Progress, "on_train_batch_start", "step"))
    while PHASE[0] == 0 and ended_soon(child) is None:
        time.sleep(0.001)
    with contextlib.suppress(OSError), open(f"{run}/filler", "wb") as file:
        while file.write(bytes(4096)):
            file.flush()
    code = finish(child)
    os.unlink(f"{run}/filler")
    shutil.rmtree(f"{run}.moved")
    shutil.copytree(run, f"{run}.moved")
    libc.umount2(run.encode(), 2)
    os.rmdir(run)
    shutil.move(f"{run}.moved", run)
    return code


def too_large(run: str) -> int:
    """Run with a file size limit below the size of a checkpoint, and return the exit code."""

    def before() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    return finish(start(fit(run, "fp32"), before))


def failing_write(run: str) -> int:
    """Run with input/output errors while writing checkpoints, and return the exit code."""
    return finish(start(fit(run, "fp32"), lambda: fail_in_save(5)))


def read_only(run: str) -> int:
    """Run on a file system that becomes read-only, and return the exit code."""
    return finish(start(fit(run, "fp32"), lambda: fail_in_save(30)))


def fail_in_save(number: int) -> None:
    """Make every write to a checkpoint file fail with this errno."""
    from gpt_lightning.checkpoints import io

    class Failing(FileIO):
        def write(self, data: object) -> int:
            raise OSError(number, os.strerror(number))

    io.open = Failing  # type: ignore[attr-defined]  # in place of the built-in function


def show(line: str) -> None:
    """Show a progress line in a terminal."""
    if sys.stderr.isatty():
        print(f"\r{line}", end="", file=sys.stderr, flush=True)


def report(problems: list[str]) -> bool:
    """Print problems and return whether there are none."""
    for problem in problems:
        print(f"  FAILED: {problem}")
    return not problems


def run_all() -> None:
    """Parse the arguments and run the chosen tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "steps", "signals", "damage", "disk", "all"))
    parser.add_argument("--runs", type=int, help="number of runs for kills and signals")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random moments")
    options = parser.parse_args()
    import gpt_lightning.cli.lightning_cli  # noqa: F401  once, before the processes are forked

    instrument()
    parts: dict[str, Callable[[], bool]] = {
        "kills": lambda: kills(options.runs or 60, options.seed),
        "steps": steps,
        "signals": lambda: signals(options.runs or 80, options.seed),
        "damage": lambda: damage(options.seed),
        "disk": disk,
    }
    good = True
    for name, part in parts.items():
        if options.what in (name, "all"):
            folder = tempfile.mkdtemp(prefix=f"chaos-{name}-")
            os.chdir(folder)
            Path("chaos.yaml").write_text(yaml.safe_dump(SETTINGS))
            begin = time.monotonic()
            with run_s3(Path(folder), "chaos") as url:
                os.environ |= environment_for(url)
                finish(start(["prepare", "--text", SETTINGS["data"]["text"], "--output", SHARDS, "--tokenizer=bytes"]))
                fine = part()
            print(f"  {time.monotonic() - begin:.0f} s", flush=True)
            if fine:
                os.chdir("/")
                shutil.rmtree(folder)
            good &= fine
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    run_all()
