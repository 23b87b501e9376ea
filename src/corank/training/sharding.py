"""Weights, gradients and state spread over processes by FSDP2, through accelerate."""

from __future__ import annotations

from typing import Any

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


def gathered(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """A whole model of class `kind` on the CPU from a sharded transformers model.

    Every process has to call it; the weights are there in the first.
    """
    from torch.distributed import get_rank
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    dtype = next(model.parameters()).dtype
    state = get_model_state_dict(model, options=options)
    if get_rank() != 0:
        return model
    sharded: Any = model
    whole: Any = kind(sharded.config)
    whole.to(dtype).load_state_dict(state)
    whole.tie_weights()
    return whole.eval()
