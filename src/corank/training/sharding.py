"""Weights, gradients and state spread over processes by FSDP2, through accelerate."""

from __future__ import annotations

from torch import nn


def allow_sharding_on_cpus() -> None:
    """Let accelerate shard between CPUs.

    It does so between accelerators only, and leaves the model whole, without a word, on CPUs; its
    code runs over gloo just as well. To be called between making TrainingArguments and a Trainer.
    """
    from accelerate.state import PartialState  # type: ignore[import-untyped]
    from accelerate.utils import DistributedType  # type: ignore[import-untyped]

    if PartialState().distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def gather(model: nn.Module) -> None:
    """Put whole tensors on the CPU in the place of a model's shards, in the first process.

    Every process has to call it. The model is for saving then, and trains no more.
    """
    from torch.distributed import get_rank
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    first, wrapped = get_rank() == 0, [m for m in model.modules() if isinstance(m, FSDPModule)]
    for part in wrapped:
        part.reshard()
    whole: dict[int, nn.Parameter] = {}  # a leaf in two places stays one
    for module in model.modules():
        for name, leaf in list(module._parameters.items()):
            if not isinstance(leaf, DTensor):
                continue
            if id(leaf) not in whole:
                gathered = leaf.detach().full_tensor()
                kept = gathered.cpu() if first else gathered.new_empty(0)
                whole[id(leaf)] = nn.Parameter(kept, requires_grad=leaf.requires_grad)
            if first:
                module._parameters[name] = whole[id(leaf)]
    for part in wrapped:
        part.__class__ = type(part).__bases__[1]  # fully_shard puts a class before it
