"""Several processes: their launchers, what they agree on, and FSDP2, which splits the weights among them.

torchrun and SLURM start all processes of a run at once, possibly on machines that do not share a file system. `connect`
connects them before anything is read, so that rank 0 alone decides whether to resume, and one process after another
prepares the text. Lightning starts the processes of a single machine itself, after rank 0 has done all this.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import lightning
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor, distributed
from torch.optim import Optimizer

from gpt_lightning import __version__
from gpt_lightning.checkpoints.io import read_checkpoint
from gpt_lightning.checkpoints.loading import build_network
from gpt_lightning.checkpoints.metadata import WEIGHTS_PREFIX
from gpt_lightning.console import say, warn
from gpt_lightning.errors import InputError, MachineError
from gpt_lightning.models.gpt import GPT

Result = TypeVar("Result")


def launched_externally() -> bool:
    """Return whether torchrun or SLURM's srun starts the processes of this run."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return True
    return os.environ.get("SLURM_NTASKS", "1") != "1" and SLURMEnvironment.detect()


def launched_sizes() -> tuple[int, int]:
    """Return the processes per machine and the number of machines that torchrun or SLURM has started."""
    if TorchElasticEnvironment.detect():
        per_node, total = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return per_node, total // per_node
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    return int(os.environ["SLURM_NTASKS"]) // nodes, nodes


def connect(minutes: float, *, uses_cuda: bool) -> None:
    """Connect the processes that torchrun or SLURM has started; do nothing in any other process.

    Args:
        minutes: How long a process waits for the others before it ends with an error.
        uses_cuda: Whether the run computes on CUDA devices.

    Raises:
        MachineError: The other processes cannot be reached.
    """
    if not launched_externally() or distributed.is_initialized():
        return
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shares_store and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and os.environ.get("RANK") == "0":
        # https://github.com/pytorch/pytorch/issues/135712
        warn("processes that torchrun restarts may hang; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun")
    try:
        environment = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else SLURMEnvironment()
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if uses_cuda else "gloo",
            timeout=timedelta(minutes=minutes),
            rank=environment.global_rank(),
            world_size=environment.world_size(),
        )
    except (RuntimeError, ValueError) as error:
        raise MachineError(f"cannot connect to the other processes of the run ({_reason(error)})") from error
    atexit.register(distributed.destroy_process_group)


def require_same(values: dict[str, Any]) -> None:
    """Raise an error on all ranks unless they have the same values, and the same versions of the libraries.

    Args:
        values: Values by the names that the message uses.

    Raises:
        InputError: On rank 0, with the first difference.
        SystemExit: On the other ranks.
    """
    if not distributed.is_initialized():
        return
    own = {"gpt_lightning": __version__, "torch": torch.__version__, "lightning": lightning.__version__, **values}
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, {name: str(value) for name, value in own.items()})
    for rank, other in enumerate(found):
        for name, first in found[0].items():
            if other[name] != first:
                if distributed.get_rank() > 0:
                    raise SystemExit(1)
                raise InputError(f"rank {rank} has {name} {other[name]}, rank 0 has {first}")


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """End the block on all ranks if it fails on one of them. All ranks must enter it.

    Raises:
        Exception: Whatever the block raises on this rank.
        SystemExit: The block failed on another rank only, which prints why.
    """
    try:
        yield
    except Exception:
        _any_failed(True)
        raise
    if _any_failed(False):
        raise SystemExit(1)


def _any_failed(failed: bool) -> bool:
    """Return whether any rank has failed; all ranks must call it."""
    if not distributed.is_initialized():
        return failed
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, failed)
    return any(found)


def from_first(function: Callable[[], Result]) -> Result:
    """Call a function on rank 0 only, and return its result on all ranks.

    Raises:
        Exception: On rank 0, whatever the function raises.
        SystemExit: On the other ranks, if the function failed on rank 0, which prints why.
    """
    if not distributed.is_initialized():
        return function()
    answer: list[Any] = [None]
    with failing_together():
        if distributed.get_rank() == 0:
            answer = [function()]
    distributed.broadcast_object_list(answer)
    result: Result = answer[0]
    return result


def in_turns(prepare: Callable[[], None]) -> None:
    """Prepare files that others can use: first rank 0, then the first process of each machine, then all others.

    Args:
        prepare: Prepares the files, or finds that they are there.

    Raises:
        Exception: On a rank where it failed, whatever the function raises.
        SystemExit: On the other ranks.
    """
    if not distributed.is_initialized():
        prepare()
        return
    rank = distributed.get_rank()
    local_rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    if rank == 1:
        say("The other processes wait for rank 0 to prepare the text")
    for turn in range(3):
        with failing_together():
            if turn == (0 if rank == 0 else 1 if local_rank == 0 else 2):
                prepare()


def read_on_all_ranks(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint from the disk, or from rank 0 unless all ranks see the same file."""
    if distributed.is_initialized():
        found: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(found, _identity(path))
        if None in found or len(set(found)) > 1:
            return from_first(lambda: read_checkpoint(path, mmap=False))
    return read_checkpoint(path, mmap=False)


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return the size and the time of a file, which differ from those of an older copy; None without the file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def lost_process(error: Exception) -> MachineError:
    """Return the error of a process that has lost another one."""
    return MachineError(
        f"lost the connection to another process, which may have failed ({_reason(error)}); --resume continues the run"
    )


def _reason(error: Exception) -> str:
    """Return the first line of an error, without the place in gloo's source code and its advice."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return re.sub(r"^\[\S+\] ", "", line).partition(". This is typically")[0]


def is_lost_process(error: Exception) -> bool:
    """Return whether an error says that another process has ended, or does not answer."""
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and distributed.is_initialized() and "gloo" in str(error)
    )


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2 (`fully_shard`): each process stores an equal part of all weights, gradients and moments.

    Before a block is computed, its weights are gathered from all processes; after its backward pass, each process gets
    its part of the averaged gradients. Checkpoints are the same single file as with other strategies: rank 0 gathers
    one tensor after another, and the others keep none.
    """

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(save_distributed_checkpoint=False, timeout=timeout)

    def setup(self, trainer: Trainer) -> None:
        """Split the network, which the LightningModule has built with all weights, then build the optimizer."""
        assert self.model is not None
        split_weights(self.model.model, self.root_device)  # type: ignore[arg-type]
        super().setup(trainer)

    def _weights(self) -> dict[str, Tensor]:
        """Return this process's parts of the weights by all their names; those of a tied head have two."""
        assert self.model is not None
        self.model.model.reshard()  # type: ignore[operator, union-attr]  # an evaluation leaves the head whole
        return dict(self.model.named_parameters(remove_duplicate=False))

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write the checkpoint on rank 0, by the CheckpointIO."""
        ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)  # type: ignore[arg-type]

    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint on rank 0, and give each process its part of the weights and moments."""
        weights: dict[str, Tensor] = {}
        states: list[dict[str, Any]] = []

        def read() -> tuple[dict[str, Any], list[Any]]:
            content = read_checkpoint(checkpoint_path, mmap=False)
            weights.update(content.pop("state_dict"))
            states.extend(content.pop("optimizer_states"))
            return content, [_without_matrices(state) for state in states]

        content, skeletons = from_first(read)
        with torch.no_grad():
            for name, parameter in self._weights().items():
                parameter.copy_(split_like(parameter, weights[name] if self.is_global_zero else None))
        for number, (optimizer, skeleton) in enumerate(zip(self.optimizers, skeletons, strict=True)):
            parameters = [one for group in optimizer.param_groups for one in group["params"]]
            for index, values in skeleton["state"].items():
                for key in [key for key, value in values.items() if value is None]:
                    whole = states[number]["state"][index][key] if self.is_global_zero else None
                    values[key] = split_like(parameters[index], whole)
            optimizer.load_state_dict(skeleton)
        return content

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return all weights on rank 0, an empty dict on other ranks; all ranks must call it."""
        return gathered(self._weights())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's whole state on rank 0, an empty dict on other ranks; all ranks must call it."""
        return gathered(optimizer.state_dict())


def split_weights(network: GPT, device: torch.device) -> None:
    """Split the weights of a network among the processes: those of each block together, and the others together."""
    from torch.distributed.device_mesh import init_device_mesh  # takes long to import, as the next line
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    if isinstance(network, FSDPModule):
        return
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for block in network.trf_blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)


def gathered(state: dict[str, Any]) -> dict[str, Any]:
    """Return nested dicts with whole tensors on the CPU of rank 0, an empty dict on other ranks.

    All ranks must call it. One tensor after another is gathered, and freed on the other ranks. A tensor that occurs
    twice, as the weight of a tied head does, is gathered once.
    """
    result: dict[str, Any] = _gather(state, {})
    return result if distributed.get_rank() == 0 else {}


def _gather(value: Any, done: dict[int, Tensor | None]) -> Any:
    """Gather the tensors of a value; `done` has those that were gathered, by the identity of the split tensor.

    Not a nested function: one that calls itself is a reference cycle, and would keep the tensors until the cycle is
    collected.
    """
    if isinstance(value, dict):
        return {key: _gather(one, done) for key, one in value.items()}
    if not isinstance(value, Tensor):
        return value
    if id(value) not in done:
        tensor = whole_tensor(value.detach())
        done[id(value)] = tensor.cpu() if distributed.get_rank() == 0 else None
    return done[id(value)]


def split_like(like: Tensor, whole: Tensor | None) -> Tensor:
    """Split rank 0's tensor as a weight is split; all ranks must call it.

    Args:
        like: The weight.
        whole: A tensor of the whole weight's shape on rank 0; None on other ranks.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    source = torch.empty(like.shape, dtype=like.dtype) if whole is None else whole.to(like.dtype)
    return distribute_tensor(source.to(like.device), like.device_mesh, like.placements)


def own_part(value: Tensor) -> Tensor:
    """Return this process's part of a tensor that is split among the processes, and any other tensor itself."""
    return value.to_local() if is_split(value) else value  # type: ignore[attr-defined]


def whole_tensor(value: Tensor) -> Tensor:
    """Gather a tensor that is split among the processes, and return any other tensor itself. All ranks must call it."""
    return value.full_tensor() if is_split(value) else value  # type: ignore[attr-defined]


def is_split(value: Tensor) -> bool:
    """Return whether a tensor is split among the processes."""
    return hasattr(value, "device_mesh")  # a DTensor, whose module takes long to import


def whole_network(trainer: Trainer, network: GPT) -> GPT | None:
    """Return a network with all weights on rank 0, None on other ranks. All ranks must call it."""
    if not isinstance(trainer.strategy, FullyShardedStrategy):
        return network if trainer.is_global_zero else None
    state = {
        name.removeprefix(WEIGHTS_PREFIX): one for name, one in trainer.strategy.lightning_module_state_dict().items()
    }
    return build_network(network.config, state) if trainer.is_global_zero else None


def _without_matrices(value: Any) -> Any:
    """Copy nested dicts and lists, with None instead of every tensor that has dimensions."""
    if isinstance(value, dict):
        return {key: _without_matrices(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_matrices(one) for one in value]
    return None if isinstance(value, Tensor) and value.dim() > 0 else value
