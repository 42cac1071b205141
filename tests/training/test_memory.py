"""The memory of a device, against sums over the shapes of the weights."""

from __future__ import annotations

import math

import pytest
from conftest import ROOT

from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import parameter_shapes
from gpt_lightning.training.memory import memory_per_device
from gpt_lightning.training.optimizers import OptimizerConfig

SIZES = {"124M": (768, 12, 12), "355M": (1024, 16, 24), "774M": (1280, 20, 36), "1558M": (1600, 25, 48)}


def gpt2(name: str, *, tied: bool = True) -> GPTConfig:
    width, heads, layers = SIZES[name]
    return GPTConfig(50_257, 1024, width, heads, layers, qkv_bias=True, tie_weights=tied)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("devices", [2, 4, 64])
def test_fsdp_divides_all_but_the_groups_that_are_gathered(tied: bool, devices: int) -> None:
    shapes = {name: 4 * math.prod(shape) for name, shape in parameter_shapes(gpt2("124M", tied=tied)).items()}
    if tied:
        del shapes["out_head.weight"]
    block = sum(size for name, size in shapes.items() if name.startswith("trf_blocks.0."))
    others = sum(size for name, size in shapes.items() if not name.startswith("trf_blocks."))
    whole = sum(shapes.values())

    memory = memory_per_device(gpt2("124M", tied=tied), OptimizerConfig(), "fsdp", devices)

    assert (memory.weights, memory.gradients) == (math.ceil(whole / devices),) * 2
    assert memory.moments == math.ceil(2 * whole / devices)
    assert memory.exchanged == 2 * others + 2 * block
    assert memory.total == memory.weights + memory.gradients + memory.moments + memory.exchanged


def test_ddp_keeps_everything_and_a_copy_of_the_gradients() -> None:
    alone, two = (memory_per_device(gpt2("355M"), OptimizerConfig(), "ddp", count) for count in (1, 2))

    assert alone.total == 16 * gpt2("355M").num_parameters
    assert two.total == 20 * gpt2("355M").num_parameters


def test_the_table_of_the_docs() -> None:
    lines = (ROOT / "docs" / "scaling.md").read_text().splitlines()
    rows = {
        line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines if line.startswith("| 1") or "M |" in line
    }
    plans = [("ddp", 1), ("ddp", 2), ("fsdp", 2), ("fsdp", 4), ("fsdp", 8), ("fsdp", 64)]

    for name in SIZES:
        found = [memory_per_device(gpt2(name), OptimizerConfig(), *plan).total / 1e9 for plan in plans]
        assert [float(one) for one in rows[name]] == [round(one, 1) for one in found]
