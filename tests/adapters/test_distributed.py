"""Adapters over two gloo processes, under DDP and FSDP2, train as in one, and are saved whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

import corank
from corank.adapters import Controller
from tests.processes import in_two_processes, shard
from tests.verbs.models import tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
METHODS = ("lora", "dora", "pissa", "vera", "kasa")
KINDS = ("ddp", "fsdp2")
IDS = torch.arange(4 * 12).view(4, 12) % 60


def _model(method: str) -> nn.Module:
    model = tiny_llama()
    corank.adapt(model, method, rank=4)
    return model


def _train(model: nn.Module, control: Controller, ids: torch.Tensor) -> list[float]:
    optimizer = torch.optim.SGD(control.parameter_groups(0.3))
    control.attach(optimizer)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _worker(rank: int, folder: Path) -> None:
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    for method in METHODS:
        for kind in KINDS:
            inner = _model(method)
            control = corank.controller(inner, total_steps=4)  # before its leaves are sharded
            model = (
                nn.parallel.DistributedDataParallel(inner)
                if kind == "ddp"
                else shard(inner, inner.model.layers)
            )
            losses = torch.tensor(_train(model, control, IDS[2 * rank : 2 * rank + 2]))
            dist.all_reduce(losses)
            state = get_model_state_dict(inner, options=whole)
            if rank == 0:
                torch.save((losses / 2, state), folder / f"{method}-{kind}.pt")


def test_two_processes_train_as_one_and_save_whole(tmp_path: Path) -> None:
    in_two_processes(_worker, tmp_path)
    for method in METHODS:
        one = _model(method)
        expected = torch.tensor(_train(one, corank.controller(one, total_steps=4), IDS))
        assert expected[-1] < expected[0]
        for kind in KINDS:
            losses, state = torch.load(tmp_path / f"{method}-{kind}.pt", weights_only=True)
            torch.testing.assert_close(losses, expected, atol=1e-4, rtol=1e-4)
            again = _model(method)
            again.load_state_dict(state)
            for name, value in one.state_dict().items():
                torch.testing.assert_close(again.state_dict()[name], value, atol=1e-4, rtol=1e-3)
