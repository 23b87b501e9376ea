"""Two of every four: what is stored, how gradients pass before it is, and the kernels' path."""

import pytest
import torch

from corank.linalg import n_of_m
from corank.operators import (
    Dense,
    Product,
    SemiStructured,
    Thinned,
    is_settled,
    settle,
    thin,
)
from corank.operators import semi_structured_kernel as kernel


def matrix(out=6, into=16, seed=0):
    return torch.randn(out, into, generator=torch.Generator().manual_seed(seed))


def two_of_four(weight):
    return thin(weight, n_of_m(weight.abs(), 2, 4), 4)


def test_two_of_four_take_half_the_numbers_and_two_bits_each():
    op = two_of_four(matrix(32, 64))
    assert op.numel() == 32 * 32
    assert op.bytes() == 32 * 32 * 4 + 32 * 64 // 8  # four bits for every four numbers
    kept = op.dense() != 0
    assert torch.equal(kept, n_of_m(matrix(32, 64).abs(), 2, 4))
    assert torch.equal(op.dense()[kept], matrix(32, 64)[kept])


@pytest.mark.parametrize(("n", "m"), [(1, 2), (3, 8), (2, 5), (1, 1)])
def test_any_n_of_any_m(n, m):
    weight = matrix(4, 40)
    op = thin(weight, n_of_m(weight.abs(), n, m), m)
    assert op.values.shape == (4, 40 * n // m)
    assert torch.equal(op.dense(), weight * n_of_m(weight.abs(), n, m))


def test_gradients_reach_what_is_left_out_so_that_it_can_come_in():
    op = Thinned(torch.tensor([[3.0, 2.0, 1.0, 0.9]]), 2, 4).requires_grad_(True)
    (op.dense() * torch.tensor([0.0, 0.0, 0.0, -1.0])).sum().backward()
    assert op.latent.grad.tolist() == [[0, 0, 0, -1]]
    with torch.no_grad():
        op.latent -= 2 * op.latent.grad
    torch.testing.assert_close(op.dense(), torch.tensor([[3.0, 0, 0, 2.9]]))


def test_settling_stores_what_counts_and_keeps_the_matrix():
    op = Product(Dense(matrix(3, 6)), Thinned(matrix(), 2, 4))
    before = op.dense()
    assert not is_settled(op)
    assert settle(op) is op
    assert is_settled(op)
    assert isinstance(op.operators[1], SemiStructured)
    assert torch.equal(op.dense(), before)


def test_the_kernels_layout_is_made_once_and_anew_for_new_values(monkeypatch):
    made = []
    monkeypatch.setattr(kernel, "_is_served", lambda op, values, x: True)
    monkeypatch.setattr(
        torch.sparse, "to_sparse_semi_structured", lambda w: made.append(1) or w.clone()
    )
    op, x = two_of_four(matrix()), matrix(5, 16, seed=1)
    for _ in range(2):
        torch.testing.assert_close(op(x), x @ op.dense().mT)
    assert len(made) == 1
    with torch.no_grad():
        op.values.mul_(2)
    torch.testing.assert_close(op(x), x @ op.dense().mT)
    assert len(made) == 2
    other = thin(matrix(), n_of_m(matrix().abs(), 1, 2), 2)
    other(x)
    assert len(made) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels are CUDA's")
def test_the_kernels_agree_with_the_matrix():
    op = two_of_four(matrix(128, 256)).half().cuda()
    x = matrix(3, 256, seed=1).half().cuda()
    with torch.no_grad():
        torch.testing.assert_close(op(x), x @ op.dense().mT, rtol=1e-2, atol=1e-2)
