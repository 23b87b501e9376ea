"""M-FAC against the inverse of the Fisher matrix, written down."""

import pytest
import torch
from torch import nn

import corank


@pytest.mark.parametrize("damping", [1e-1, 1e-5])
def test_it_is_the_dense_inverse_times_the_gradient(damping):
    g = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.zeros(3, 5, dtype=torch.float64))
    optimizer = corank.optim.MFAC([weight], 1.0, window=4, damping=damping)
    seen = []
    for _ in range(11):
        grad = torch.randn(3, 5, generator=g, dtype=torch.float64)
        seen.append(grad.flatten())
        before = weight.detach().clone()
        weight.grad = grad.clone()
        optimizer.step()
        last = torch.stack(seen[-4:])
        fisher = damping * torch.eye(15, dtype=torch.float64) + last.T @ last / len(last)
        want = torch.linalg.solve(fisher, seen[-1]).reshape(3, 5)
        torch.testing.assert_close(before - weight.detach(), want, rtol=1e-7, atol=1e-9)


def test_a_small_damping_costs_no_digits_in_single_precision():
    g = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.zeros(4, 6))
    grad = 100 * torch.randn(4, 6, generator=g)
    weight.grad = grad.clone()
    corank.optim.MFAC([weight], 1.0, damping=1e-5).step()
    want = -grad.double() / (1e-5 + grad.double().square().sum())
    torch.testing.assert_close(weight.detach().double(), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("options", "said"), [({"window": 0}, "window must be"), ({"damping": 0.0}, "damping must be")]
)
def test_bad_options(options, said):
    with pytest.raises(ValueError, match=said):
        corank.optim.MFAC([nn.Parameter(torch.ones(2, 2))], **options)
