"""The processes that accelerate has launched: who they are, what they tell each other, models that they hold in shards.

A model is sharded by PyTorch's fully_shard (FSDP2). Its parameters are DTensors then: each process has a part of each,
and what reads them whole is done by all processes at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MethodType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object, parse_flag_from_env
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from gpo.errors import ConfigError

Result = TypeVar("Result")


def join(*, own_update: bool) -> Accelerator:
    """The device of this process, and the other ones.

    Args:
        own_update: the gradients are added up here, and not by a trainer of transformers.

    Raises:
        ConfigError: they are to train in a way that this does not do.
    """
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        # Each process reads what it shards. That one reads and sends is a part of accelerate's own sharding.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    accelerator = Accelerator()
    shard_on_cpus(accelerator)
    kind, state = accelerator.distributed_type, accelerator.state
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ConfigError("Got FSDP of version 1. Models are sharded by version 2: add --fsdp_version 2 to the launch.")
    stage = state.deepspeed_plugin.zero_stage if kind == DistributedType.DEEPSPEED else 0
    if kind == DistributedType.MEGATRON_LM or (stage and (own_update or stage == 3)):
        raise ConfigError(
            f"Got {kind.value}{f' of stage {stage}' if stage else ''}. Expected whole models, or FSDP2 "
            "(--use_fsdp --fsdp_version 2); DeepSpeed of stages 1 and 2 for offline methods only."
        )
    return accelerator


def shard_on_cpus(accelerator: Accelerator) -> None:
    """Let accelerate shard where it was told so on CPUs, on which it passes that over."""
    if accelerator.distributed_type == DistributedType.MULTI_CPU and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()


def gather(mine: Sequence[Result]) -> list[Result]:
    """The objects of all processes, one process after the other; tensors must be on the CPU."""
    everyone: list[Result] = gather_object(list(mine))
    return everyone


def turns(accelerator: Accelerator, work: Sequence[Result]) -> Iterator[tuple[bool, Result]]:
    """Every so many of the pieces of work, and whether they are this process's own.

    Processes that hold shards must call the model equally often: who has no piece left does the first one for nothing.
    """
    for first in range(0, len(work), accelerator.num_processes):
        place = first + accelerator.process_index
        if place < len(work):
            yield True, work[place]
        elif accelerator.is_fsdp2:
            yield False, work[0]


def add_up(
    accelerator: Accelerator, parameters: Iterable[Tensor], totals: dict[str, float], times: int = 1
) -> dict[str, float]:
    """Add up the gradients of all processes in each of them, and their metrics; of `ratio_error` the largest counts.

    The gradients of shards are added up by the backward pass. Those of whole tensors are `times` too large.
    """
    for parameter in parameters:
        if not isinstance(parameter, DTensor):
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = accelerator.reduce(own / times, "sum")
    every = gather([totals])
    keys = next(each for each in every if each)  # a process without rows has none
    added = {key: sum(each.get(key, 0.0) for each in every) for key in keys}
    return added | {"ratio_error": max(each.get("ratio_error", 0.0) for each in every)}


def clip_gradients(parameters: Sequence[Tensor], most: float) -> float:
    """Scale the gradients of all parameters to a norm of at most `most`; the norm that they had."""
    sharded = [p for p in parameters if isinstance(p, DTensor)]
    kinds = [kind for kind in (sharded, [p for p in parameters if not isinstance(p, DTensor)]) if kind]
    norms = [whole(get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
    norm = torch.stack([each.cpu() for each in norms]).norm()
    for kind in kinds:
        clip_grads_with_norm_(kind, most, norm.to(kind[0].device))
    return float(norm)


def is_sharded(model: Any) -> bool:
    return isinstance(model, FSDPModule)


def shard(accelerator: Accelerator, model: Any) -> None:
    """Leave each process its part of a model, if accelerate was told so; layers are put together as they are needed.

    Embeddings and head are in one group with the model: the head is called as often as its logits are cut.
    """
    if not accelerator.is_fsdp2 or is_sharded(model):
        return
    plugin = accelerator.state.fsdp_plugin
    mesh = accelerator.torch_device_mesh
    settings: dict[str, Any] = {
        "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        "offload_policy": plugin.cpu_offload,
        "mesh": None if mesh is None else mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)],
    }
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = set(plugin.transformer_cls_names_to_wrap or base._no_split_modules or ())
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, reshard_after_forward=plugin.reshard_after_forward, **settings)
    fully_shard(model, **settings)
    model.through = MethodType(_through, model)
    register_fsdp_forward_method(model, "through")


def through(model: Any, call: Callable[[], Result]) -> Result:
    """What `call` returns, which may use any part of a model; the tensors in it can go through a backward pass."""
    if not is_sharded(model):
        return call()
    result: Result = model.through(call)
    if not torch.is_grad_enabled():
        model.reshard()  # else a backward pass does it
    return result


def _through(_: Any, call: Callable[[], Result]) -> Result:
    return call()


def whole(value: Any, *, keep: bool = True) -> Any:
    """Tensors, and those in mappings and sequences, put together where they are shards; on the CPU then.

    Shards that are one tensor are one afterwards too, so that tied weights are written once.

    Args:
        keep: False gives empty tensors in place of whole ones, to a process that only tells its part.
    """
    return _whole(value, {}, keep)


def _whole(value: Any, made: dict[int, Tensor], keep: bool) -> Any:
    if isinstance(value, DTensor):
        if id(value) not in made:
            together: Tensor = value.full_tensor()
            made[id(value)] = together.detach().cpu() if keep else torch.empty(0)
        return made[id(value)]
    if isinstance(value, Mapping):
        return {key: _whole(each, made, keep) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(each, made, keep) for each in value]
    return value


@torch.no_grad()
def put(parameter: Tensor, value: Tensor) -> None:
    """Write a whole tensor into a parameter, which may be a shard."""
    if isinstance(parameter, DTensor):
        value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    parameter.copy_(value)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put back the whole state of an optimizer, whose parameters may be shards."""
    optimizer.load_state_dict(state)
    for parameter, known in optimizer.state.items():
        if isinstance(parameter, DTensor):
            for name, value in known.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    known[name] = torch.zeros_like(parameter)
                    put(known[name], value)
