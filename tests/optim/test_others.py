"""Optimisers of other packages, through our calls."""

import sys

import pytest
import torch
from torch import nn

import corank

from .small import model, train


def bytes_of(tensor):
    parts, _ = tensor.__tensor_flatten__() if hasattr(tensor, "__tensor_flatten__") else ([], 0)
    return sum(getattr(tensor, part).nbytes for part in parts) or tensor.nbytes


@pytest.fixture
def eager():
    """torchao's step without its compilation, which takes most of a minute."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("bits", "share"), [(8, 1 / 4 + 1 / 256), (4, 1 / 8 + 1 / 128)])
def test_adamw_in_few_bits_descends_and_its_state_is_small(bits, share, eager):
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 512), nn.LayerNorm(512), nn.ReLU(), nn.Linear(512, 8))
    optimizer = corank.optim.adamw_8bit(net, lr=0.01, bits=bits, weight_decay=0.1)
    assert [g["project"] for g in optimizer.param_groups] == [True, False]
    first = train(net, optimizer, range(1))
    last = train(net, optimizer, range(1, 40))
    assert all(p.isfinite().all() for p in last)
    assert not torch.equal(first[0], last[0])
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(9))
    assert nn.functional.mse_loss(net(x), x[:, :8].sin()) < 0.35
    for weight in (net[0].weight, net[3].weight):
        state = optimizer.state[weight]
        held = sum(bytes_of(state[name]) for name in ("exp_avg", "exp_avg_sq"))
        tables = 4 * 2 * 2**bits  # each moment has the values of its codes
        assert held - tables == pytest.approx(2 * 4 * weight.numel() * share, rel=0.01)


def test_shampoo_is_the_gradient_between_roots():
    pytest.importorskip("pytorch_optimizer")
    weight = nn.Parameter(torch.zeros(6, 10))
    g = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    optimizer = corank.optim.shampoo(
        [weight],
        lr=1.0,
        every=1,
        betas=(0.0, 0.9),
        nesterov=False,
        shape_interpretation=False,
        start_preconditioning_step=1,
    )
    for _ in range(4):
        before = weight.detach().clone()
        weight.grad = g.clone()
        optimizer.step()
    step = before - weight.detach()
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    want = u @ vh  # (G G^T)^(-1/4) G (G^T G)^(-1/4)
    torch.testing.assert_close(step / step.norm(), want / want.norm(), atol=0.02, rtol=0)
    assert step.norm().item() == pytest.approx(g.norm().item(), rel=1e-3)


def test_shampoo_descends_on_a_model():
    pytest.importorskip("pytorch_optimizer")
    net = model()
    optimizer = corank.optim.shampoo(net, lr=0.05, every=2, start_preconditioning_step=3)
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(9))
    before = nn.functional.mse_loss(net(x), x[:, :8].sin()).item()
    train(net, optimizer, range(30))
    assert nn.functional.mse_loss(net(x), x[:, :8].sin()).item() < 0.7 * before


@pytest.mark.parametrize(
    ("name", "package"), [("adamw_8bit", "torchao.optim"), ("shampoo", "pytorch_optimizer")]
)
def test_a_missing_package_is_named_with_its_remedy(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'corank\[optim\]'"):
        getattr(corank.optim, name)([nn.Parameter(torch.ones(2, 2))])


def test_bits_that_there_are_not():
    with pytest.raises(ValueError, match="bits must be 4 or 8"):
        corank.optim.adamw_8bit([nn.Parameter(torch.ones(2, 2))], bits=2)
