"""Signs: how gradients pass, and that codes stand for the same matrix."""

import pytest
import torch

from corank.operators import Diagonal, Product, Quantised, Signs, settle


def signs(slope=0.0):
    g = torch.Generator().manual_seed(0)
    latent = torch.randn(5, 11, generator=g, dtype=torch.float64)
    return Signs(latent, torch.rand(5, generator=g, dtype=torch.float64) + 0.5, slope)


@pytest.mark.parametrize("slope", [0.0, 3.0])
def test_gradients_pass_as_through_the_soft_sign(slope):
    op = signs(slope).requires_grad_(True)
    op.dense().sum().backward()
    soft = (
        torch.ones_like(op.latent)
        if not slope
        else slope * (1 - torch.tanh(slope * op.latent) ** 2)
    )
    torch.testing.assert_close(op.latent.grad, op.scale.detach()[:, None] * soft.detach())
    hard = torch.where(op.latent > 0, 1.0, -1.0).double()
    torch.testing.assert_close(op.scale.grad, hard.sum(1))


def test_settling_packs_every_sign_and_keeps_the_matrix():
    op = Product(signs(), Diagonal(torch.rand(11, dtype=torch.float64)))
    before = op.dense()
    settled = settle(op)
    assert settled is op
    assert not any(isinstance(part, Signs) for part in op.modules())
    assert torch.equal(op.dense(), before)
    (codes,) = (part for part in op.modules() if isinstance(part, Quantised))
    assert codes.codes.numel() == 5 * 2
    assert torch.equal(settle(signs()).dense(), signs().dense())
