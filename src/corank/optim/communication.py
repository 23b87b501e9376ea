"""PowerSGD: processes exchange two factors in place of each gradient."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..registry import Paper, method


@method(
    Paper(
        "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization",
        "1905.13727",
        "torch's hook of DistributedDataParallel, with error feedback and warm starts",
        "torch averages plain gradients in the first steps",
    ),
    area="optimize",
)
def powersgd(
    model: nn.Module, rank: int = 1, start: int = 1000, feedback: bool = True, **options: Any
) -> Any:
    """Let a DistributedDataParallel model average gradients as products of `rank` columns.

    start: steps with plain gradients before. feedback: what a step leaves out joins the next one.
    options: of torch's PowerSGDState, such as min_compression_rate.
    Returns torch's state: it goes into checkpoints, and `compression_stats()` counts what was sent.
    Raises ValueError for a model that is not wrapped, or a rank below 1.
    """
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as hooks

    if not isinstance(model, DistributedDataParallel):
        raise ValueError(
            f"powersgd is about what processes exchange, and got a {type(model).__name__}: wrap "
            "the model in torch.nn.parallel.DistributedDataParallel first"
        )
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank!r}")
    state = hooks.PowerSGDState(
        process_group=None,
        matrix_approximation_rank=rank,
        start_powerSGD_iter=start,
        use_error_feedback=feedback,
        **options,
    )
    model.register_comm_hook(state, hooks.powerSGD_hook)
    return state
