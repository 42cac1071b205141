"""The norms of weight differences, compared with norms of the joined weights, and with laws that they follow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpt_lightning.checkpoints import description
from gpt_lightning.checkpoints.description import different_architecture, plain, weight_differences
from gpt_lightning.checkpoints.loading import LoadedCheckpoint
from gpt_lightning.errors import InputError
from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT

CONFIG = GPTConfig(vocab_size=23, context_length=8, emb_dim=12, n_heads=2, n_layers=2, qkv_bias=True)
PREFIXES = {
    "token embedding": "tok_emb.",
    "position embedding": "pos_emb.",
    "block 0": "trf_blocks.0.",
    "block 1": "trf_blocks.1.",
    "final norm": "final_norm.",
    "head": "out_head.",
    "all weights": "",
}


def network(seed: int, config: GPTConfig = CONFIG) -> LoadedCheckpoint:
    torch.manual_seed(seed)
    return LoadedCheckpoint(f"{seed}.ckpt", config, "bytes", GPT(config).state_dict(), {})


def changed(checkpoint: LoadedCheckpoint, change: Callable[[str, Tensor], Tensor]) -> LoadedCheckpoint:
    return replace(checkpoint, state={key: change(key, one) for key, one in checkpoint.state.items()})


def joined(checkpoint: LoadedCheckpoint, prefix: str) -> Tensor:
    return torch.cat([one.flatten().double() for key, one in checkpoint.state.items() if key.startswith(prefix)])


@pytest.mark.parametrize("chunk", [1, 50, 2**22])
def test_norms_are_those_of_the_joined_weights(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(description, "CHUNK", chunk)
    one, other = network(1), network(2)

    found = weight_differences(one, other)

    assert list(found) == list(PREFIXES)
    for room, prefix in PREFIXES.items():
        left, right = joined(one, prefix), joined(other, prefix)
        norm, difference = left.norm().item(), (right - left).norm().item()
        expected = {"norm": norm, "difference": difference, "relative": difference / norm}
        assert found[room] == pytest.approx(expected, rel=1e-12)


@given(factor=st.floats(-4, 4))
def test_scaled_weights_differ_by_the_same_share_everywhere(factor: float) -> None:
    one = changed(network(1), lambda _, tensor: tensor.double())
    other = changed(one, lambda _, tensor: factor * tensor)

    relative = [room["relative"] for room in weight_differences(one, other).values()]

    assert relative == pytest.approx([abs(factor - 1)] * len(PREFIXES), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("room", [room for room in PREFIXES if room != "all weights"])
def test_a_change_of_one_part_is_found_there_only(room: str) -> None:
    one = network(1)
    other = changed(one, lambda key, tensor: tensor + 0.5 * key.startswith(PREFIXES[room]))

    found = weight_differences(one, other)

    assert {name for name, values in found.items() if values["difference"]} == {room, "all weights"}
    expected = 0.5 * math.sqrt(len(joined(one, PREFIXES[room])))
    assert found[room]["difference"] == pytest.approx(expected, rel=1e-6)
    assert found["all weights"]["difference"] == pytest.approx(expected, rel=1e-6)


def test_a_tied_head_is_counted_once() -> None:
    tied = replace(CONFIG, tie_weights=True)
    one, other = network(1, tied), network(2, tied)

    found = weight_differences(one, other)

    assert list(found) == [room for room in PREFIXES if room != "head"]
    for key in ("norm", "difference"):
        parts = [values[key] or 0 for room, values in found.items() if room != "all weights"]
        assert found["all weights"][key] == pytest.approx(math.hypot(*parts), rel=1e-12)


def test_relative_to_a_norm_of_0() -> None:
    zeros = changed(network(1), lambda _, tensor: torch.zeros_like(tensor))

    assert weight_differences(zeros, zeros)["head"] == {"norm": 0.0, "difference": 0.0, "relative": 0.0}
    found = weight_differences(zeros, network(1))["head"]
    assert found["relative"] is None
    assert found["difference"] == pytest.approx(joined(network(1), "out_head.").norm().item())


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("n_heads", 3, ["model.n_heads"]),
        ("n_layers", 1, ["model.n_layers"]),
        ("tie_weights", True, ["model.tie_weights"]),
        ("context_length", 9, ["model.context_length"]),
        ("drop_rate", 0.5, []),
        ("init", "gpt2", []),
    ],
)
def test_settings_that_change_the_architecture(setting: str, value: object, expected: list[str]) -> None:
    other = replace(network(1), config=replace(CONFIG, **{setting: value}))  # type: ignore[arg-type]

    assert different_architecture(network(1), other) == expected


def test_plain_data() -> None:
    data = {"a": [1, None, True, "b", (2.5,)], "c": {"d": math.inf}}

    assert plain(data, "a.ckpt") == {"a": [1, None, True, "b", [2.5]], "c": {"d": None}}


circle: list[object] = []
circle.append(circle)


@pytest.mark.parametrize("value", [torch.ones(1), circle, 2**63, {1: 2}, [{"a": b"bytes"}]], ids=str)
def test_other_data_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="a.ckpt: its metadata must be plain data"):
        plain({"a": value}, "a.ckpt")
