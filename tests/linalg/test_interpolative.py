"""The interpolative decomposition, against SciPy's."""

import pytest
import scipy.linalg.interpolative as theirs
import torch

from corank.linalg import complement, interpolation_errors, interpolative


def matrix(rows, columns, seed=0):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    sizes = torch.logspace(0, -2, columns, dtype=torch.float64)
    return a * sizes[torch.randperm(columns, generator=g)]


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (30, 30)])
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_columns_and_coefficients_are_scipys(shape, rank):
    a = matrix(*shape)
    order, coefficients = theirs.interp_decomp(a.numpy().copy(), rank, rand=False)
    columns, t = interpolative(a, rank)
    assert columns.tolist() == order[:rank].tolist()
    expected = torch.empty_like(t)
    left = complement(columns, shape[1]).tolist()
    for place, column in enumerate(order[rank:].tolist()):
        expected[:, left.index(column)] = torch.from_numpy(coefficients)[:, place]
    torch.testing.assert_close(t, expected)


@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
def test_errors_are_those_of_every_rank(shape):
    a = matrix(*shape)
    errors = interpolation_errors(a)
    assert len(errors) == min(shape) + 1
    for rank in range(1, min(shape) + 1):
        columns, t = interpolative(a, rank)
        lost = a[:, complement(columns, shape[1])] - a[:, columns] @ t
        torch.testing.assert_close(lost.square().sum(), errors[rank], atol=1e-12, rtol=1e-7)
    torch.testing.assert_close(errors[0], a.square().sum())


def test_a_deficient_matrix_is_finite_and_exact_from_its_rank_on():
    a = matrix(8, 3) @ matrix(3, 10, seed=1)
    columns, t = interpolative(a, 6)
    assert len({*columns.tolist()}) == 6
    torch.testing.assert_close(a[:, columns] @ t, a[:, complement(columns, 10)])
    assert interpolation_errors(torch.zeros(6, 6)).tolist() == [0.0] * 7
    assert interpolative(torch.zeros(6, 6), 2)[0].tolist() == [0, 1]
    with pytest.raises(ValueError, match="rank must be"):
        interpolative(a, 9)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_in_a_metric_it_is_that_of_the_metrics_root_times_the_matrix(rank):
    a, root = matrix(9, 12), matrix(15, 9, seed=2)
    expected = interpolative(root @ a, rank)
    found = interpolative(a, rank, root.mT @ root @ a)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    errors = interpolation_errors(a, root.mT @ root @ a)
    torch.testing.assert_close(errors, interpolation_errors(root @ a)[:10])


def test_nothing_as_large_as_the_square_of_its_columns_is_held():
    a = matrix(3, 60_000)  # the columns' products with each other would be 29 GB
    columns, t = interpolative(a, 3)
    torch.testing.assert_close(a[:, columns] @ t, a[:, complement(columns, 60_000)])
