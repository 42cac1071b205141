from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compared import assert_equal_weights
from conftest import Result
from torch import Tensor

from gpt_lightning.models.config import GPTConfig
from gpt_lightning.models.gpt import GPT
from gpt_lightning.training.muon import COEFFICIENTS, CombinedOptimizer, Muon, orthogonalize
from gpt_lightning.training.optimizers import OptimizerConfig, block_matrices, make_optimizer, optimizer_bytes

Command = Callable[..., Result]
MUON = OptimizerConfig(optimizer="muon", learning_rate=0.02, weight_decay=0.1)


def tiny_gpt(**settings: object) -> GPT:
    torch.manual_seed(1)
    return GPT(GPTConfig(30, 8, 12, 2, 2, 0.0, **settings))  # type: ignore[arg-type]


def set_gradients(model: GPT, seed: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(1, 12, 12), (2, 8, 24), (3, 24, 8)])
def test_orthogonalize_keeps_singular_vectors_and_maps_singular_values(shape: tuple[int, ...]) -> None:
    """The iteration is a polynomial in the singular values, which an SVD in float64 applies directly."""
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    left, values, right = torch.linalg.svd(stack.double(), full_matrices=False)
    values = values / values.square().sum(-1, keepdim=True).sqrt()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5

    found = orthogonalize(stack)

    torch.testing.assert_close(found.double(), left @ torch.diag_embed(values) @ right, atol=1e-4, rtol=1e-4)
    assert ((values > 0.3) & (values < 1.3)).all()


def test_a_step_of_an_undivided_matrix_is_that_of_torch() -> None:
    """`torch.optim.Muon` orthogonalizes in bfloat16, which has three digits."""
    generator = torch.Generator().manual_seed(4)
    start, gradients = torch.randn(8, 16, generator=generator), torch.randn(3, 8, 16, generator=generator)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    muon = Muon([{"params": [ours], "matrices": 1}], 0.01, 0.1)
    reference = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")

    for gradient in gradients:
        for parameter, optimizer in ((ours, muon), (theirs, reference)):
            parameter.grad = gradient.clone()
            optimizer.step()

    assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()


def test_query_key_and_value_are_orthogonalized_separately() -> None:
    model = tiny_gpt()
    set_gradients(model)
    attention = model.trf_blocks[0].att  # type: ignore[union-attr]
    qkv: Tensor = attention.qkv.weight  # type: ignore[union-attr,assignment]
    before, gradient = qkv.detach().clone(), qkv.grad
    assert gradient is not None

    make_optimizer(model, MUON, 0.02).step()

    parts = torch.stack([orthogonalize(one[None])[0] for one in (1 - 0.95**2) * gradient.view(3, 12, 12)])
    expected = before * (1 - 0.02 * 0.1) - 0.02 * 0.2 * 12**0.5 * parts.view(36, 12)
    torch.testing.assert_close(qkv.detach(), expected)


def test_muon_changes_the_matrices_of_the_blocks_and_adamw_all_other_weights() -> None:
    model, other = tiny_gpt(tie_weights=True), tiny_gpt(tie_weights=True)
    matrices = block_matrices(model)
    assert sum(one.numel() for one in matrices) == model.config.num_block_weights
    assert sorted(set(matrices.values())) == [1, 3]
    adamw = make_optimizer(other, OptimizerConfig(learning_rate=0.02, weight_decay=0.1), 0.02)
    muon = make_optimizer(model, MUON, 0.02)
    for network, optimizer in ((model, muon), (other, adamw)):
        set_gradients(network)
        optimizer.step()

    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two) == (one not in matrices), name
    states = [one for state in muon.state.values() for one in state.values() if one.dim() > 0]
    assert sum(one.nbytes for one in states) == optimizer_bytes(model.config, MUON)


def test_decay_leaves_out_embeddings_and_vectors() -> None:
    model = tiny_gpt()
    optimizer = make_optimizer(model, OptimizerConfig(optimizer="muon", decay_matrices_only=True), 0.02)
    decayed = [one for group in optimizer.param_groups if group["weight_decay"] > 0 for one in group["params"]]
    assert {id(one) for one in decayed} == {id(one) for one in [*block_matrices(model), model.out_head.weight]}


@pytest.mark.parametrize("steps", [0, 2])
def test_a_loaded_state_goes_on_as_if_it_had_not_been_saved(steps: int) -> None:
    first, second = tiny_gpt(), tiny_gpt()
    one, two = make_optimizer(first, MUON, 0.02), make_optimizer(second, MUON, 0.02)
    assert isinstance(two, CombinedOptimizer)
    for step in range(steps):
        set_gradients(first, step)
        one.step()
    second.load_state_dict(first.state_dict())
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for group in two.param_groups:  # as a schedule does; the parts must see it
        group["lr"] = 0.005
    for group in one.param_groups:
        group["lr"] = 0.005

    for network, optimizer in ((first, one), (second, two)):
        set_gradients(network, 9)
        optimizer.step()

    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name)), name
    assert all(part.state is two.state for part in two.optimizers)


def test_closure_and_freed_gradients() -> None:
    model = tiny_gpt()
    optimizer = make_optimizer(model, MUON, 0.02)

    def closure() -> Tensor:
        loss = model(torch.tensor([[1, 2, 3]])).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    assert all(one.grad is None for one in model.parameters())


@pytest.mark.parametrize("sampled", ["null", "40"])
def test_a_run_in_two_parts_equals_one_without_interruption(config: Path, command: Command, sampled: str) -> None:
    arguments = ("fit", "--config", config, "--model.optimizer=muon", "--model.drop_rate=0.1")
    arguments += (f"--model.sampled_softmax={sampled}",)
    assert command(*arguments, "--run_dir=whole", "--trainer.max_steps=8").code == 0
    assert command(*arguments, "--run_dir=run", "--trainer.max_steps=3").code == 0
    assert command(*arguments, "--run_dir=run", "--resume", "--trainer.max_steps=8").code == 0

    assert_equal_weights(Path("whole"), Path("run"))


@pytest.mark.parametrize(
    ("setting", "first", "second"), [("optimizer", "muon", "adamw"), ("sampled_softmax", "40", "20")]
)
def test_a_resumed_run_keeps_its_optimizer_and_loss(
    config: Path, command: Command, setting: str, first: str, second: str
) -> None:
    arguments = ("fit", "--config", config, "--run_dir=run")
    command(*arguments, f"--model.{setting}={first}", "--trainer.max_steps=3")

    result = command(*arguments, "--resume", f"--model.{setting}={second}", "--trainer.max_steps=8")

    assert result.code == 2
    assert result.error.endswith(f"last.ckpt has model.{setting} {first}, the settings say {second}")
