"""Two processes of one gloo group, for the tests of what happens between processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from corank.training import leave

Work = Callable[[int, Path], None]  # rank, and a folder that both see


def in_two_processes(work: Work, folder: Path) -> None:
    """Run `work`, a module's function, as ranks 0 and 1; an error in one is raised here."""
    mp.spawn(_member, (work, folder), nprocs=2)


def _member(rank: int, work: Work, folder: Path) -> None:
    torch.set_num_threads(1)
    # By file: a free port that was looked up may be taken before it is used.
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    work(rank, folder)
    leave()


def shard(model: nn.Module, parts: Iterable[nn.Module] = ()) -> nn.Module:
    """The model under FSDP2 over both processes, those of its parts that have leaves first."""
    mesh = init_device_mesh("cpu", (2,))
    for part in parts:
        if list(part.parameters()):
            fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)
