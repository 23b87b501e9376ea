"""DDP and FSDP2 over two gloo processes give what one process gives."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from corank.layers import Embedding, Linear
from corank.operators import Dense, LowRank, Sum
from tests.processes import in_two_processes, shard


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _model() -> nn.Sequential:
    """A look-up, a trained LowRank, and a frozen Dense with trained factors beside it."""
    trained = LowRank(_random(8, 4, seed=2), _random(4, 8, seed=3)).requires_grad_(True)
    beside = LowRank(_random(8, 2, seed=4), _random(2, 8, seed=5)).requires_grad_(True)
    return nn.Sequential(
        Embedding(LowRank(_random(9, 4, seed=0), _random(4, 8, seed=1)).requires_grad_(True)),
        Linear(trained, _random(8, seed=6)),
        Linear(Sum(Dense(_random(8, 8, seed=7)), beside)),
    )


IDS = torch.tensor([[0, 3, 8], [3, 3, 1], [2, 2, 5], [8, 0, 7]])


def _train(model: nn.Module, ids: Tensor) -> list[float]:
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = model(ids).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def _worker(rank: int, folder: Path) -> None:
    for kind in ("ddp", "fsdp2"):
        model = _model()
        wrapped = (
            nn.parallel.DistributedDataParallel(model)
            if kind == "ddp"
            else shard(model, model.children())
        )
        losses = torch.tensor(_train(wrapped, IDS[2 * rank : 2 * rank + 2]))
        dist.all_reduce(losses)
        torch.save(losses / 2, folder / f"{kind}{rank}.pt")


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    in_two_processes(_worker, tmp_path)
    expected = torch.tensor(_train(_model(), IDS))
    for kind in ("ddp", "fsdp2"):
        found = torch.load(tmp_path / f"{kind}0.pt", weights_only=True)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
