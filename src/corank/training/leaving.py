"""The end of a run over several processes."""

from __future__ import annotations

import gc

import torch.distributed as dist


def leave() -> None:
    """Leave the group of processes, once all are here; alone there is nothing to leave.

    Gloo's threads belong to the group, which wrapped models keep alive in their cycles. Threads
    that outlive Python abort the process, so what wraps a model has to be out of use before this.
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        gc.collect()
        dist.destroy_process_group()
