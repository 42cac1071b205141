"""The hardware: available devices, the fastest precision on them, and their peak rates."""

from __future__ import annotations

import ctypes
import os
import re
import time
from importlib.util import find_spec
from typing import Any

import torch

from gpt_lightning.errors import InputError
from gpt_lightning.validation import require, require_integer

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
PRECISIONS = (
    "32-true",
    "16-mixed",
    "bf16-mixed",
    "16-true",
    "bf16-true",
    "64-true",
    "transformer-engine",
    "transformer-engine-float16",
)
PRECISION_ALIASES = ("64", "32", "16", "bf16", 64, 32, 16)  # Lightning's short names
FASTER = 1.5  # least speedup of bf16 matrix products at which a CPU trains in bf16
# FLOP/s of dense matrix products in 16 bits with 32-bit accumulation, from the manufacturer's data sheets; half of
# the rate where a sheet gives it for sparse matrices.
PEAK_FLOPS = {
    r"NVIDIA H100 80GB HBM3|NVIDIA H200|NVIDIA GH200 \d+GB": 989.4e12,
    r"NVIDIA H100 PCIe": 756.5e12,
    r"NVIDIA L40S": 362e12,
    r"NVIDIA A100-(SXM4|PCIE)-\d+GB|NVIDIA A100 80GB PCIe": 312e12,
    r"NVIDIA GeForce RTX 4090": 165.2e12,
    r"NVIDIA A40": 149.7e12,
    r"NVIDIA A10": 125e12,
    r"Tesla V100-SXM2-\d+GB": 125e12,
    r"NVIDIA L4": 121e12,
    r"NVIDIA GeForce RTX 3090": 71e12,
    r"Tesla T4": 65e12,
}


def device_type(accelerator: Any) -> str:
    """Return the device type that `trainer.accelerator` selects on this machine: cuda, mps, cpu or another name."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu" if accelerator == "auto" else str(accelerator)


def check_device(accelerator: Any, devices: Any, precision: Any) -> None:
    """Raise `InputError` if this machine lacks the device, or the device does not support the precision.

    Args:
        accelerator: `trainer.accelerator`.
        devices: `trainer.devices`.
        precision: `trainer.precision`.
    """
    device = device_type(accelerator)
    if isinstance(accelerator, str):
        require(accelerator in ACCELERATORS, "trainer.accelerator", f"be one of {', '.join(ACCELERATORS)}", accelerator)
        if accelerator == "cuda" and not torch.cuda.is_available():
            raise InputError("trainer.accelerator is cuda, but this machine has no CUDA device")
        if accelerator == "mps" and not torch.backends.mps.is_available():
            raise InputError("trainer.accelerator is mps, but this machine has no MPS device")
        if accelerator == "gpu" and device == "gpu":
            raise InputError("trainer.accelerator is gpu, but this machine has neither a CUDA nor an MPS device")
        if accelerator == "tpu" and find_spec("torch_xla") is None:
            raise InputError("trainer.accelerator is tpu, but torch_xla is not installed")
    count = torch.cuda.device_count() if device == "cuda" else 1 if device == "mps" else (os.cpu_count() or 1)
    if isinstance(devices, str) and re.fullmatch(r"-?\d+", devices):
        devices = int(devices)
    if isinstance(devices, int) and devices != -1:
        require_integer("trainer.devices", devices, 1)
        if devices > count:
            raise InputError(f"trainer.devices ({devices}) must be at most {count}, the number on this machine")
    if precision in ("16-mixed", "16", 16, "16-true") and device == "cpu":
        raise InputError(f"trainer.precision {precision} does not run on cpu; use bf16-mixed or 32-true")


def choose_device(accelerator: str, precision: str | int | None = None) -> str:
    """Return the device that a command without Lightning computes on: cuda, mps or cpu.

    Args:
        accelerator: `trainer.accelerator`.
        precision: `trainer.precision`; None if the command computes in float32.

    Raises:
        InputError: This machine has no such device, or the device does not support the precision.
    """
    check_device(accelerator, 1, precision)
    device = device_type(accelerator)
    require(device != "tpu", "trainer.accelerator", "be auto, cpu, gpu, cuda or mps for this command", device)
    return device


def check_precision(precision: object) -> None:
    """Raise `InputError` unless `trainer.precision` is auto or one of Lightning's precisions."""
    known = ("auto", *PRECISIONS, *PRECISION_ALIASES)
    require(precision in known, "trainer.precision", f"be one of auto, {', '.join(PRECISIONS)}", precision)


def choose_precision(accelerator: Any, *, probe: bool = True) -> tuple[str, str]:
    """Choose the precision for `trainer.precision: auto`: bf16-mixed if it is faster on this hardware, else 32-true.

    Args:
        accelerator: `trainer.accelerator`.
        probe: Whether to time matrix products on a CPU; False for several processes, which could differ in the result.

    Returns:
        The precision and the reason for it.
    """
    device = device_type(accelerator)
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "the CUDA device has bf16"
        return "32-true", "the CUDA device has no bf16"
    if device == "mps":
        try:
            with torch.autocast("mps", dtype=torch.bfloat16):
                (torch.ones(8, 8, device="mps") @ torch.ones(8, 8, device="mps")).sum().item()
        except (RuntimeError, TypeError):
            return "32-true", "bf16 does not work on this MPS device"
        return "bf16-mixed", "the MPS device has bf16"
    if device == "cpu" and not probe:
        return "32-true", "bf16 is not tried with several processes"
    if device == "cpu":
        speedup = bf16_speedup()
        if speedup >= FASTER:
            return "bf16-mixed", f"matrix products are {speedup:.1f} times as fast in bf16 here"
        return "32-true", "bf16 is not faster here"
    return "32-true", f"bf16 is not tried on {device}"


def allow_tf32(device: torch.device) -> None:
    """Allow TF32 in float32 matrix products on a CUDA device; do nothing for other devices.

    TF32 rounds the factors to 10 bits of mantissa and is several times faster.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def keep_freed_memory() -> None:
    """Make glibc reuse freed memory instead of returning it to the system; do nothing with another C library.

    By default, glibc unmaps the memory of a large tensor when it is freed. Each optimizer step would then map hundreds
    of megabytes again, which the system zeroes page by page.
    """
    _set_malloc(M_MMAP_THRESHOLD, 1 << 30)
    _set_malloc(M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Make glibc return the memory of a large tensor as soon as it is freed; do nothing with another C library.

    With FSDP2, whole layers come and go between the parts that a process keeps. Memory that is kept for them would be
    full of holes, and larger than that of a process that stores everything.
    """
    _set_malloc(M_MMAP_THRESHOLD, 1 << 20)


def _set_malloc(parameter: int, value: int) -> None:
    """Set a parameter of glibc's memory allocator; do nothing with another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)


def bf16_speedup() -> float:
    """Measure the speedup of a small matrix product in bf16 over float32 on this CPU.

    CPUs with AMX or AVX512-bf16 have instructions for bf16; others emulate it, up to a hundred times slower.

    Returns:
        Seconds in float32 divided by seconds in bf16.
    """
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        one, other = torch.ones(128, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
        laps = []
        for _ in range(5):
            start = time.perf_counter()
            one @ other
            laps.append(time.perf_counter() - start)
            if sum(laps) > 0.1:  # long enough for a reliable time
                break
        seconds.append(min(laps))
    return seconds[0] / seconds[1]


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the peak FLOP/s of a device in a 16-bit precision, or None if it is unknown."""
    if device.type != "cuda" or not precision.startswith(("16", "bf16")):
        return None
    if precision.startswith("bf16") and not torch.cuda.is_bf16_supported(including_emulation=False):
        return None
    name = torch.cuda.get_device_name(device)  # a partition of a device has a longer name
    return next((rate for pattern, rate in PEAK_FLOPS.items() if re.fullmatch(pattern, name)), None)
