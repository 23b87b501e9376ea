"""Unit triangles and pivoted columns against their definitions and SciPy."""

import pytest
import scipy.linalg
import torch

from corank.linalg import ldu, pivoted_columns


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 6), (9, 5), (5, 9), (1, 4)])
def test_ldu_is_exact_with_unit_triangles(shape):
    a = rand(*shape)
    lower, d, upper = ldu(a)
    torch.testing.assert_close(lower * d @ upper, a)
    torch.testing.assert_close(upper.diagonal(), torch.ones(min(shape), dtype=torch.float64))
    assert float(lower.abs().max()) == 1
    torch.testing.assert_close(upper, upper.triu())


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_ldu_of_a_deficient_matrix_is_finite_and_exact(rank):
    a = rand(7, rank) @ rand(rank, 6, seed=1)
    lower, d, upper = ldu(a)
    torch.testing.assert_close(lower * d @ upper, a)
    assert bool(torch.isfinite(upper).all())


def test_ldu_does_not_divide_by_a_pivot_of_rounding():
    a = rand(5, 5)
    a[:, 0] *= 1e-30
    lower, d, upper = ldu(a)
    torch.testing.assert_close(lower * d @ upper, a)
    assert float(upper.abs().max()) < 1e3


@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
def test_columns_are_those_of_pivoted_qr(shape):
    a = rand(*shape, seed=3)
    expected = scipy.linalg.qr(a.numpy(), pivoting=True, mode="r")[1]
    assert pivoted_columns(a, 7).tolist() == expected[:7].tolist()


def test_columns_are_distinct_beyond_the_rank():
    a = rand(8, 2) @ rand(2, 8, seed=1)
    assert len(set(pivoted_columns(a, 8).tolist())) == 8


def test_a_count_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="rank must be"):
        pivoted_columns(rand(4, 3), 4)
