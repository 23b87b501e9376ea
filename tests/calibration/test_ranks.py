from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from corank.calibration import cascade, collect
from corank.models import Site, find_sites
from tests.calibration.oracles import padded_batches
from tests.models.families import make

NEEDS = {"gram", "abs_mean", "fisher", "output_gram"}


def everything() -> dict[str, Any]:
    return statistics(3) | statistics(1)


def statistics(count: int) -> dict[str, Any]:
    model, data = make("mixtral"), padded_batches(count)
    sites = find_sites(model)
    collect(model, sites, NEEDS, data)
    found = _flat(f"collect {count}", sites)
    if count > 1:
        for stage in cascade(model, find_sites(model), {"gram"}, data, granularity="input"):
            found |= _flat("cascade", stage)
    return found


def _flat(prefix: str, sites: list[Site]) -> dict[str, Any]:
    return {
        f"{prefix}:{s.name}:{k}": torch.as_tensor(v).clone()
        for s in sites
        for k, v in s.stats.items()
    }


def work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    from safetensors.torch import save_file

    save_file(everything(), Path(folder) / f"{rank}.safetensors")
    dist.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    """Of three batches, and of one, when the second rank has none at all."""
    from safetensors.torch import load_file

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, (port, str(tmp_path)), nprocs=2)
    alone = everything()
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.keys() == alone.keys()
        for key, value in found.items():
            torch.testing.assert_close(value, alone[key], rtol=1e-6, atol=1e-6)
