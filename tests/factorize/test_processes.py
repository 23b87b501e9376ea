"""Every factorisation under DDP: two gloo processes, half of each batch, train as one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import corank
from tests.processes import in_two_processes

from ..adapters.small import loss, small_model
from .small import TOTAL, batches, begin, factorize

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
METHODS = [m for m in corank.methods() if "factorization" in m.laws]
#: They draw sketches of the batch, which halves of it do not share.
SKETCHES = {"compact", "rmm_linear"}


#: With these, and on weights near low rank, leaves go and others come in their place.
CHANGING = {
    "cuttlefish": {"every": 1, "window": 3, "slope": 100.0},
    "dlrt": {"rank": 6, "tolerance": 0.2},
    "maestro": {"every": 3, "threshold": 0.5},
    "tucker_dlrt": {"rank": 6, "tolerance": 0.2},
}


def _model(method: corank.registry.Method) -> nn.Module:
    model = small_model()
    if method.key in CHANGING:
        for layer in (layer for layer in model if isinstance(layer, nn.Linear)):
            layer.weight.data = _lowered(layer.weight.data)
    return factorize(method, model, **CHANGING.get(method.key, {}))[0]


def _lowered(weight: torch.Tensor) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return (u[:, :3] * s[:3]) @ vh[:3] + 0.01 * weight


def _train(inner: nn.Module, model: nn.Module, part: slice) -> None:
    control, optimizer = begin(inner)
    for training in control.trainings:
        if "scale" in training.memory:  # as if its ranks had been full at the start
            training.memory["scale"] = dict.fromkeys(training.memory["scale"], 2.0)
    for step in range(TOTAL):
        optimizer.zero_grad()
        batch = batches()[step % 6]
        loss(model, batch[part]).backward()
        optimizer.step()


def _worker(rank: int, folder: Path) -> None:
    found: dict[str, object] = {}
    for method in METHODS:
        inner = _model(method)
        half = len(batches()[0]) // 2
        try:
            model = nn.parallel.DistributedDataParallel(inner, find_unused_parameters=True)
            _train(inner, model, slice(rank * half, (rank + 1) * half))
            found[method.key] = inner.state_dict()
        except Exception as error:
            found[method.key] = f"{type(error).__name__}: {error}"
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What each of two processes has after training, by method."""
    folder = tmp_path_factory.mktemp("processes")
    in_two_processes(_worker, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.key)
def test_two_processes_train_as_one(method, trained):
    here, there = (found[method.key] for found in trained)
    assert isinstance(here, dict), here
    if method.key in CHANGING:
        before = {name: value.shape for name, value in _model(method).state_dict().items()}
        assert {name: value.shape for name, value in here.items()} != before
    assert here.keys() == there.keys()
    for name, value in here.items():
        torch.testing.assert_close(value, there[name], msg=lambda m, n=name: f"{n}: {m}")
    if method.key not in SKETCHES:
        one = _model(method)
        _train(one, one, slice(None))
        assert one.state_dict().keys() == here.keys()
        for name, value in one.state_dict().items():
            torch.testing.assert_close(
                here[name], value, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize(
    ("key", "replaces"), [("sltrain", False), ("btt", False), ("maestro", True)]
)
def test_a_controller_knows_whether_leaves_may_go(key, replaces):
    inner, _ = factorize(corank.registry.find_method(key))
    assert corank.controller(inner).replaces == replaces
