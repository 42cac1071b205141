"""The memory of each device for weights, gradients and moments, by strategy and number of devices."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_lightning.console import format_bytes
from gpt_lightning.models.config import BYTES_PER_WEIGHT, GPTConfig
from gpt_lightning.training.optimizers import OptimizerConfig, optimizer_bytes


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of one device, without activations.

    Attributes:
        weights: Weights that it stores.
        gradients: Their gradients.
        moments: The state of the optimizer.
        exchanged: Copies for the exchange with other devices, at their maximum: with DDP those of all gradients, with
            FSDP2 whole weights and gradients of the layers that are being computed.
    """

    weights: int
    gradients: int
    moments: int
    exchanged: int

    @property
    def total(self) -> int:
        """All of them together."""
        return self.weights + self.gradients + self.moments + self.exchanged


def memory_per_device(model: GPTConfig, optimizer: OptimizerConfig, strategy: str, devices: int) -> DeviceMemory:
    """Return the memory of each device in bytes, in float32.

    FSDP2 gathers the embeddings and the head for the whole step, and the weights of two blocks at a time, the current
    one and the next. The gradients of one group are whole until they are divided.

    Args:
        model: The network.
        optimizer: The optimizer.
        strategy: ddp or fsdp.
        devices: Number of devices.
    """
    weights, moments = model.weight_bytes, optimizer_bytes(model, optimizer)
    if strategy == "ddp" or devices == 1:
        return DeviceMemory(weights, weights, moments, weights if devices > 1 else 0)
    D = model.emb_dim
    others = BYTES_PER_WEIGHT * D * (model.vocab_size * (1 if model.tie_weights else 2) + model.context_length + 2)
    block = (weights - others) // model.n_layers
    exchanged = others + 2 * block + max(others, block)
    own, state = -(-weights // devices), -(-moments // devices)
    return DeviceMemory(own, own, state, exchanged)


def describe_memory(memory: DeviceMemory) -> str:
    """Describe the memory of a device in words."""
    return (
        f"{format_bytes(memory.total)} each: {format_bytes(memory.weights)} each for weights and gradients, "
        f"{format_bytes(memory.moments)} for the optimizer's moments, up to {format_bytes(memory.exchanged)} for the "
        "exchange between devices; activations come on top"
    )
