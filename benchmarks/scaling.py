"""Measure the memory of each process with several strategies, beside the formula of `check --devices`.

    python benchmarks/scaling.py

GPT-2 with 355M parameters is trained on CPUs by one, two and four processes. Memory is the resident memory of each
process after three optimizer steps with one window of 64 tokens, and its maximum until then. It includes Python with
its libraries, and the maximum includes the whole network, which each process builds before it is split.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STORY = ROOT / "data" / "the-lamp-at-low-water.txt"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
MEDIUM = {"model.emb_dim": 1024, "model.n_heads": 16, "model.n_layers": 24, "model.qkv_bias": True}


def run_fit(settings: dict[str, object], processes: int, folder: Path) -> list[dict[str, float]]:
    """Run `fit` by torchrun, and return what `peers.Steady` found in each process."""
    common = {
        "data.text": STORY,
        "model.tie_weights": True,
        "model.init": "gpt2",
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.logger": False,
        "trainer.enable_progress_bar": False,
        "trainer.limit_val_batches": 1,
        "sampling.max_new_tokens": 1,
        "evaluate_batches": 1,
        "allow_classes_of": "peers",
        "trainer.callbacks+": "peers.Steady",
        "run_dir": folder / "run",
    }
    arguments = [f"--{name}={value}" for name, value in {**common, **settings}.items()]
    done = subprocess.run(
        [sys.executable, *TORCHRUN, f"--nproc_per_node={processes}", "-m", "gpt_lightning", "fit", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    if not found:
        raise SystemExit(done.stdout + done.stderr)
    return found


def measure_memory() -> None:
    """Print the memory of each process for some strategies, beside the formula of `check --devices`."""
    from gpt_lightning.models.config import GPTConfig
    from gpt_lightning.training.memory import memory_per_device
    from gpt_lightning.training.optimizers import OptimizerConfig

    model = GPTConfig(50_257, 64, 1024, 16, 24, qkv_bias=True, tie_weights=True)
    print(f"{'strategy':<9} {'processes':>9} {'rank':>4} {'resident GB':>11} {'maximum GB':>10} {'formula GB':>10}")
    for strategy, count in (("ddp", 1), ("ddp", 2), ("fsdp", 2), ("fsdp", 4)):
        with tempfile.TemporaryDirectory() as name:
            sizes = {"model.context_length": 64, "data.batch_size": 1, "trainer.max_steps": 4}
            settings = {**MEDIUM, **sizes, "trainer.strategy": strategy if count > 1 else "auto"}
            found = run_fit(settings, count, Path(name))
        formula = memory_per_device(model, OptimizerConfig(), strategy, count).total / 1e9
        for rank, one in enumerate(found):
            resident, peak = one["resident"] / 1e9, one["peak"] / 1e9
            print(f"{strategy:<9} {count:>9} {rank:>4} {resident:>11.2f} {peak:>10.2f} {formula:>10.2f}", flush=True)


if __name__ == "__main__":
    measure_memory()
