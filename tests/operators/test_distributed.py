"""DDP and FSDP2 on two processes give what one process gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from corank.operators import Dense, LowRank, Quantised, Sum, quantise_uniform, trainable
from tests.processes import in_two_processes, shard


def model() -> nn.Module:
    torch.manual_seed(0)
    first = trainable(LowRank(torch.randn(12, 3), torch.randn(3, 6)))
    second = Sum(
        Dense(torch.randn(8, 12)),
        0.5 * trainable(LowRank(torch.randn(8, 2), torch.randn(2, 12), torch.randn(2))),
    )
    third: Quantised = quantise_uniform(torch.randn(4, 8), 4, 4)
    return nn.Sequential(first, nn.GELU(), second, nn.GELU(), third)


def data() -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


def step(net: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    y = net(x)
    y.square().mean().backward()
    grads = {}
    for name, leaf in net.named_parameters():
        if leaf.grad is not None:
            grad = leaf.grad
            whole = grad.full_tensor() if isinstance(grad, DTensor) else grad
            grads[name.removeprefix("module.")] = whole
    return y.detach(), grads


def worker(rank: int, folder: Path) -> None:
    part = data().chunk(2)[rank]
    ddp = step(DistributedDataParallel(model()), part)
    sharded = model()
    shard(sharded, sharded.children())
    assert any(isinstance(p, DTensor) for p in sharded.parameters())
    whole = model()
    for one, other in zip(sharded, whole, strict=True):
        if hasattr(one, "numel"):
            assert (one.numel(), one.bytes()) == (other.numel(), other.bytes())
    torch.save({"ddp": ddp, "fsdp": step(sharded, part)}, folder / f"out.{rank}")


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")
def test_two_processes_give_what_one_gives(tmp_path) -> None:
    in_two_processes(worker, tmp_path)
    expected, grads = step(model(), data())
    assert set(grads) == {"0.a", "0.b", "2.operators.1.operator.a", "2.operators.1.operator.b"} | {
        "2.operators.1.operator.gate"
    }
    for rank in range(2):
        found = torch.load(tmp_path / f"out.{rank}", weights_only=True)
        for way in ("ddp", "fsdp"):
            y, theirs = found[way]
            torch.testing.assert_close(y, expected.chunk(2)[rank])
            assert set(theirs) == set(grads), way
            for name, grad in grads.items():
                torch.testing.assert_close(theirs[name], grad)
