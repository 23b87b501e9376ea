"""SMMF against its algorithm, and its bytes against Adam's."""

import pytest
import torch
from torch import nn

import corank
from corank.optim import state_bytes
from corank.optim.factored import factored, nearly_square


@pytest.mark.parametrize(
    ("count", "sides"), [(1, (1, 1)), (7, (7, 1)), (12, (4, 3)), (36, (6, 6)), (240, (16, 15))]
)
def test_nearly_square(count, sides):
    assert nearly_square(count) == sides


def test_a_product_of_two_vectors_is_kept_and_sums_always_are():
    g = torch.Generator().manual_seed(0)
    rows, columns = torch.rand(2, 5, 1, generator=g), torch.rand(2, 1, 4, generator=g)
    a, b = factored(rows * columns)
    torch.testing.assert_close(a * b, rows * columns)
    x = torch.rand(2, 5, 4, generator=g)
    a, b = factored(x)
    torch.testing.assert_close((a * b).sum(-1), x.sum(-1))
    torch.testing.assert_close((a * b).sum(-2), x.sum(-2))
    assert all(t.isfinite().all() for t in factored(torch.zeros(3, 3)))


@pytest.mark.parametrize("decay", [-0.5, -0.8])
def test_it_is_its_algorithm(decay):
    g = torch.Generator().manual_seed(2)
    weight = nn.Parameter(torch.zeros(3, 20))
    optimizer = corank.optim.SMMF([weight], 0.5, decay=decay, growth=0.99)
    p, q = 10, 6
    m, v = torch.zeros(p, q), torch.zeros(p, q)
    for t in range(1, 7):
        grad = torch.randn(3, 20, generator=g)
        before = weight.detach().clone()
        weight.grad = grad.clone()
        optimizer.step()
        first, second = 0.9 * 0.99 ** (t - 1), 1 - t**decay
        m = first * m + (1 - first) * grad.reshape(p, q)
        v = second * v + (1 - second) * grad.reshape(p, q) ** 2
        want = (m / (v.sqrt() + 1e-8)).reshape(3, 20)
        torch.testing.assert_close((before - weight.detach()) / 0.5, want, rtol=1e-3, atol=1e-4)
        sign = torch.where(m >= 0, 1.0, -1.0)
        m = sign * torch.outer(m.abs().sum(1), m.abs().sum(0)) / m.abs().sum()
        v = torch.outer(v.sum(1), v.sum(0)) / v.sum()


def test_its_state_is_a_twenty_fourth_of_adams():
    with torch.device("meta"):
        weight = nn.Parameter(torch.empty(1024, 1024))
    held = state_bytes(corank.optim.SMMF([weight]))
    assert held == 4 * 4 * 1024 + 1024 * 1024 // 8
    assert held < 2 * 4 * 1024 * 1024 / 24


@pytest.mark.parametrize("options", [{"growth": 0.0}, {"decay": 0.5}])
def test_bad_options(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be in"):
        corank.optim.SMMF([nn.Parameter(torch.ones(2, 2))], **options)
