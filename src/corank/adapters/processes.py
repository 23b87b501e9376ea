"""Leaves that come after DDP has wrapped a model: their gradients are averaged here."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn


def in_parallel() -> bool:
    """Whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def average(leaf: nn.Parameter) -> None:
    """Average the leaf's gradient over the processes in every backward pass, as DDP would.

    Accumulated gradients stay right: what was averaged before is equal everywhere.
    """

    def hook(accumulated: Tensor) -> None:
        assert accumulated.grad is not None
        dist.all_reduce(accumulated.grad)
        accumulated.grad /= dist.get_world_size()

    leaf.register_post_accumulate_grad_hook(hook)
