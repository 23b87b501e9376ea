"""Every method that leaves its leaves to the optimiser trains under FSDP2 as in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

import corank
from tests.factorize.small import factorize
from tests.processes import in_two_processes, shard

from .small import adapt, batches, loss

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
METHODS = [m for m in corank.methods() if {"adapter", "factorization"} & set(m.laws)]
#: Leaves that several layers share, which FSDP2 takes in one group only.
SHARING = {"compacter", "vb_lora"}
#: rmm_linear sketches its batch; eva's ranks follow all processes' data; the gradient of sorsa's
#: norm is rounding where it is 0.
OWN_WAYS = {"rmm_linear", "eva", "sorsa"}


def _model(method: corank.registry.Method) -> nn.Module:
    make = factorize if "factorization" in method.laws else adapt
    return make(method)[0]


def _train(inner: nn.Module, wrap, part: slice) -> None:
    control = corank.controller(inner, total_steps=3)
    model = wrap(inner)
    optimizer = torch.optim.Adam(control.parameter_groups(3e-3))
    control.attach(optimizer)
    for batch in batches(3):
        optimizer.zero_grad()
        loss(model, batch[part]).backward()
        optimizer.step()


def _work(rank: int, folder: Path) -> None:
    found: dict[str, object] = {}
    half = len(batches(1)[0]) // 2
    for method in METHODS:
        try:
            inner = _model(method)
            _train(inner, lambda m: shard(m, m.children()), slice(rank * half, (rank + 1) * half))
            found[method.key] = get_model_state_dict(inner, options=WHOLE)
        except Exception as error:
            found[method.key] = f"{type(error).__name__}: {error}"
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the first process gathered after training, by method."""
    folder = tmp_path_factory.mktemp("sharded")
    in_two_processes(_work, folder)
    return torch.load(folder / "0.pt", weights_only=True)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.key)
def test_two_processes_with_half_of_everything_train_as_one(method, sharded):
    found = sharded[method.key]
    one = _model(method)
    if corank.controller(one).replaces:
        assert "train it under DDP" in str(found), found
        return
    if method.key in SHARING:
        assert "shared" in str(found)
        return
    assert isinstance(found, dict), found
    if method.key in OWN_WAYS:
        return
    _train(one, lambda model: model, slice(None))
    assert one.state_dict().keys() == found.keys()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(
            found[name], value, atol=1e-9, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )
