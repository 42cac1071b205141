"""Choice of device and precision on various machines, whose devices are mocked."""

from __future__ import annotations

import pytest
import torch

from gpt_lightning.errors import InputError
from gpt_lightning.training import hardware
from gpt_lightning.training.hardware import bf16_speedup, check_device, choose_precision, peak_flops


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("mps", [False, True])
def test_devices_are_checked_against_the_machine(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if cuda else 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    def accepted(*settings: object) -> bool:
        try:
            check_device(*settings)
        except InputError:
            return False
        return True

    assert accepted("auto", "auto", "32-true")
    assert accepted("cpu", 1, "bf16-mixed")
    assert accepted("cuda", 2, "16-mixed") == cuda
    assert accepted("mps", 1, "32-true") == mps
    assert accepted("gpu", "auto", "32-true") == (cuda or mps)
    assert accepted("auto", "auto", "16-mixed") == (cuda or mps)
    assert not accepted("cpu", 1, "16-mixed")
    assert not accepted("auto", 10_000, "32-true")
    assert not accepted("auto", "0", "32-true")
    assert not accepted("abacus", 1, "32-true")


@pytest.mark.parametrize(
    ("accelerator", "cuda", "mps", "has_bf16", "speedup", "chosen"),
    [
        ("auto", True, False, True, 0.1, ("bf16-mixed", "the CUDA device has bf16")),
        ("gpu", True, False, False, 9.0, ("32-true", "the CUDA device has no bf16")),
        ("cpu", True, True, True, 0.1, ("32-true", "bf16 is not faster here")),
        ("auto", False, False, False, 4.25, ("bf16-mixed", "matrix products are 4.2 times as fast in bf16 here")),
        ("auto", False, False, False, 1.2, ("32-true", "bf16 is not faster here")),
        (
            "mps",
            False,
            True,
            False,
            0.1,
            ("32-true", "bf16 does not work on this MPS device"),
        ),  # there is no MPS device
        ("tpu", False, False, False, 9.0, ("32-true", "bf16 is not tried on tpu")),
    ],
)
def test_precision_auto_chooses_by_hardware(
    monkeypatch: pytest.MonkeyPatch,
    accelerator: str,
    cuda: bool,
    mps: bool,
    has_bf16: bool,
    speedup: float,
    chosen: tuple[str, str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 and not including_emulation
    )
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(hardware, "bf16_speedup", lambda: speedup)

    assert choose_precision(accelerator) == chosen


def test_several_processes_do_not_measure_bf16() -> None:
    assert choose_precision("cpu", probe=False) == ("32-true", "bf16 is not tried with several processes")


def test_bf16_speedup_is_plausible() -> None:
    assert 0.001 < bf16_speedup() < 100


@pytest.mark.parametrize(
    ("name", "precision", "rate"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16-mixed", 312e12),
        ("NVIDIA A100 80GB PCIe", "bf16-true", 312e12),
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989.4e12),
        ("NVIDIA L4", "16-mixed", 121e12),
        ("Tesla T4", "16-mixed", 65e12),
        ("Tesla T4", "bf16-mixed", None),  # no bf16 instructions
        ("NVIDIA A100-SXM4-80GB", "32-true", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16-mixed", None),
        ("NVIDIA A40-24Q", "bf16-mixed", None),
        ("NVIDIA RTX A1000", "bf16-mixed", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16-mixed", None),
    ],
)
def test_peak_flops_are_known_for_exact_device_names_only(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: str, rate: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: name != "Tesla T4")

    assert peak_flops(torch.device("cuda", 0), precision) == rate
    assert peak_flops(torch.device("cpu"), precision) is None


@pytest.mark.parametrize(("device", "precision"), [("cuda", "high"), ("cpu", "highest"), ("mps", "highest")])
def test_tf32_is_allowed_on_cuda_devices_only(device: str, precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        hardware.allow_tf32(torch.device(device))

        assert (before, torch.get_float32_matmul_precision()) == ("highest", precision)
    finally:
        torch.set_float32_matmul_precision(before)
