"""Two gloo processes with parameters sharded unevenly by FSDP2 step as one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

import corank
from tests.processes import in_two_processes, shard

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
KINDS = {
    "GaLore": {"rank": 3, "every": 3},
    "FRUGAL": {"density": 0.25, "every": 3},
    "GradNormLoRP": {"rank": 3, "every": 3},
}
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def _model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(7, 13), nn.LayerNorm(13), nn.Tanh(), nn.Linear(13, 9), nn.Linear(9, 5)
    return nn.Sequential(*layers).double()  # so that no rounding grows


def _optimizer(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = getattr(corank.optim, kind)(
        model, lr=0.05, weight_decay=0.1, **KINDS[kind]
    )
    return made


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 7, generator=torch.Generator().manual_seed(step)).double()
        optimizer.zero_grad()
        (model(x) - x[:, :5].sin()).square().mean().backward()
        if step == 2:
            for p in model.parameters():
                p.grad = p.grad * float("inf")
        optimizer.step()


def _worker(rank: int, folder: Path) -> None:
    for kind in KINDS:
        model = shard(_model())
        optimizer = _optimizer(kind, model)
        _train(model, optimizer, range(5))
        moments = [state.get("exp_avg_sq") for state in optimizer.state.values()]
        held = sum(m is not None and not isinstance(m, DTensor) for m in moments)
        state = get_optimizer_state_dict(model, optimizer, options=WHOLE)
        middle = get_model_state_dict(model, options=WHOLE)
        again = _model()
        if rank == 0:
            again.load_state_dict(middle)
        shared = [again.state_dict()]
        dist.broadcast_object_list(shared)
        again.load_state_dict(shared[0])
        again = shard(again)
        second = _optimizer(kind, again)
        set_optimizer_state_dict(
            again, second, shared_state(state), options=StateDictOptions(full_state_dict=True)
        )
        _train(model, optimizer, range(5, 10))
        _train(again, second, range(5, 10))
        found = get_model_state_dict(model, options=WHOLE)
        resumed = get_model_state_dict(again, options=WHOLE)
        everyone = [None, None]
        dist.all_gather_object(everyone, held)
        if rank == 0:
            torch.save((found, resumed, everyone), folder / f"{kind}.pt")


def shared_state(state: dict) -> dict:
    """What the first process gathered, on both."""
    both = [state]
    dist.broadcast_object_list(both)
    return both[0]


def test_two_processes_step_as_one_and_resume(tmp_path: Path) -> None:
    in_two_processes(_worker, tmp_path)
    for kind in KINDS:
        model = _model()
        _train(model, _optimizer(kind, model), range(10))
        found, resumed, held = torch.load(tmp_path / f"{kind}.pt", weights_only=True)
        assert sorted(held) == [1, 2]  # of three matrices
        for name, value in model.state_dict().items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6)
            assert torch.equal(found[name], resumed[name])
