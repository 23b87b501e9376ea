from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from corank.calibration import cascade, collect
from corank.models import Site, find_sites
from tests.calibration.oracles import padded_batches
from tests.models.families import make
from tests.processes import in_two_processes

NEEDS = {"gram", "abs_max", "abs_mean", "fisher", "output_gram"}


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


def work(rank: int, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(everything(), folder / f"{rank}.safetensors")


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    """Of three batches, and of one, when the second rank has none at all."""
    from safetensors.torch import load_file

    in_two_processes(work, tmp_path)
    alone = everything()
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.keys() == alone.keys()
        for key, value in found.items():
            torch.testing.assert_close(value, alone[key], rtol=1e-6, atol=1e-6)
