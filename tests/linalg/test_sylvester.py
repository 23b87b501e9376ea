"""The matrix that two moments ask for together, beside SciPy's solver and plain least squares."""

import pytest
import torch

from corank.linalg import shared_matrix


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(n, rank, seed):
    x = normal(rank, n, seed=seed)
    return x.mT @ x / rank


FIRST, SECOND = normal(7, 5), normal(7, 5, seed=1)
RIGHT, LEFT = moment(5, 20, 2), moment(7, 30, 3)


def test_it_solves_scipys_equation():
    from scipy.linalg import solve_sylvester

    found = shared_matrix(FIRST, RIGHT, SECOND, LEFT)
    wanted = solve_sylvester(LEFT.numpy(), RIGHT.numpy(), (FIRST @ RIGHT + LEFT @ SECOND).numpy())
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_it_is_the_least_squares_solution_on_samples():
    x, z = normal(5, 9, seed=4), normal(7, 8, seed=5)
    found = shared_matrix(FIRST, x @ x.mT, SECOND, z @ z.mT)
    w = FIRST.clone().requires_grad_(True)
    loss = ((w - FIRST) @ x).square().sum() + ((w - SECOND).mT @ z).square().sum()
    hessian = torch.kron(z @ z.mT, torch.eye(5)) + torch.kron(torch.eye(7), x @ x.mT)
    (slope,) = torch.autograd.grad(loss, w)
    step = torch.linalg.solve(hessian, slope.flatten() / 2).view(7, 5)
    torch.testing.assert_close(found, FIRST - step)


def test_without_moments_or_where_no_input_tells_it_is_the_mean():
    torch.testing.assert_close(shared_matrix(FIRST, None, SECOND, None), (FIRST + SECOND) / 2)
    nothing = shared_matrix(FIRST, torch.zeros(5, 5), SECOND, torch.zeros(7, 7))
    torch.testing.assert_close(nothing, (FIRST + SECOND) / 2)


@pytest.mark.parametrize("ranks", [(2, 3), (1, 30)])
def test_moments_without_full_rank_are_ordinary(ranks):
    right, left = moment(5, ranks[0], 6), moment(7, ranks[1], 7)
    w = shared_matrix(FIRST, right, SECOND, left)
    torch.testing.assert_close(w @ right + left @ w, FIRST @ right + left @ SECOND)


def test_equal_matrices_stay():
    torch.testing.assert_close(shared_matrix(FIRST, RIGHT, FIRST, LEFT), FIRST)
