"""PowerSGD over two gloo processes: what is sent, and what becomes of what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import corank
from tests.processes import in_two_processes

RANK, STEPS = 2, 80


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 16))


def _batch(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(rank)
    return torch.randn(40, 24, generator=g), torch.randn(40, 16, generator=g)


def _gradients(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    nn.functional.mse_loss(model(x), y).backward()
    return [p.grad.clone() for p in model.parameters()]


def _work(rank: int, folder: Path) -> None:
    x, y = _batch(rank)
    sent = []
    reduce = dist.all_reduce

    def counted(tensor, *args, **kwargs):
        sent.append(tensor.nbytes)
        return reduce(tensor, *args, **kwargs)

    dist.all_reduce = counted
    means, counts = {}, {}
    for feedback in (True, False):
        model = DistributedDataParallel(_net())
        state = corank.optim.powersgd(model, RANK, start=2, feedback=feedback)
        _gradients(model, x, y)
        _gradients(model, x, y)
        total = None
        for _ in range(STEPS):
            sent.clear()
            grads = _gradients(model, x, y)
            total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
        means[feedback] = [g / STEPS for g in total]
        counts[feedback] = sum(sent)
    stats = state.compression_stats()
    if rank == 0:
        torch.save({"means": means, "counts": counts, "stats": stats}, folder / "found.pt")


@pytest.mark.filterwarnings("ignore")
def test_factors_are_sent_and_what_is_left_out_follows(tmp_path):
    in_two_processes(_work, tmp_path)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    net = _net()
    exact = [
        (a + b) / 2
        for a, b in zip(_gradients(net, *_batch(0)), _gradients(net, *_batch(1)), strict=True)
    ]
    sides = [sum(p.shape) for p in net.parameters() if p.ndim == 2]
    biases = sum(p.numel() for p in net.parameters() if p.ndim == 1)
    assert found["counts"][True] == 4 * (RANK * sum(sides) + biases)
    assert found["counts"][True] < 0.25 * sum(4 * p.numel() for p in net.parameters())
    assert found["stats"][0] > 4

    def error(means):
        return max(
            ((m - g).norm() / g.norm()).item()
            for m, g in zip(means, exact, strict=True)
            if g.ndim == 2
        )

    assert error(found["means"][True]) < 0.1 < 0.3 < error(found["means"][False])


def test_a_model_that_is_not_wrapped():
    with pytest.raises(ValueError, match="DistributedDataParallel first"):
        corank.optim.powersgd(_net())
