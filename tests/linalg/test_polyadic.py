"""Sums of outer products: recovery, the SVD as a special case, TensorLy's error as an oracle."""

import pytest
import tensorly
import torch
from tensorly.decomposition import parafac

from corank.linalg import polyadic


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def summed(factors):
    letters = "abcd"[: len(factors)]
    return torch.einsum(",".join(f"{c}r" for c in letters) + "->" + letters, *factors)


def error(a, rank, **options):
    return float((summed(polyadic(a, rank, **options)) - a).norm() / a.norm())


def kernel():
    """A kernel whose channels are of falling weight, as a trained one's."""
    scales = [torch.logspace(0, -1.5, n, dtype=torch.float64) for n in (16, 12)]
    mixed = torch.einsum("xa,yb,abhw->xyhw", *(rand(len(s), len(s)) * s for s in scales),
                         rand(16, 12, 3, 3, seed=1))  # fmt: skip
    return mixed / mixed.norm()


@pytest.mark.parametrize("shape", [(8, 6, 5), (10, 7, 3, 3)])
def test_what_has_the_structure_is_found_again(shape):
    a = summed([rand(n, 3, seed=n) for n in shape])
    assert error(a, 3) < 1e-3


@pytest.mark.parametrize("rank", [1, 4])
def test_two_modes_are_the_svd(rank):
    a = rand(9, 12)
    best = torch.linalg.svdvals(a)[rank:].norm() / a.norm()
    assert error(a, rank, steps=1000, tolerance=1e-12) == pytest.approx(float(best), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Trying to compute SVD")
@pytest.mark.parametrize("rank", [4, 10, 30])
def test_it_is_as_near_as_tensorlys(rank):
    a = kernel()
    theirs = parafac(a.numpy(), rank, init="svd", n_iter_max=100, random_state=0)
    reached = float((torch.from_numpy(tensorly.cp_to_tensor(theirs)) - a).norm())
    assert error(a, rank) < 1.03 * reached


def test_more_steps_starts_and_terms_are_not_worse():
    a = kernel()
    for options in ([{"steps": n, "starts": 1} for n in (1, 2, 5, 50)],
                    [{"starts": n} for n in (1, 2, 4)]):  # fmt: skip
        errors = [error(a, 8, **each) for each in options]
        assert errors == sorted(errors, reverse=True)
    assert error(a, 4) > error(a, 16) > error(a, 108)


def test_each_factor_is_the_least_squares_one_for_the_others():
    a = summed([rand(n, 3, seed=n) for n in (6, 5, 4)]) + 0.1 * rand(6, 5, 4)
    factors = polyadic(a, 3, steps=300, starts=1, tolerance=0)
    rest = a - summed(factors)
    for mode in range(3):
        f = [factors[m] for m in range(3) if m != mode]
        slope = torch.einsum("nij,ir,jr->nr", rest.movedim(mode, 0), *f)
        assert slope.norm() < 1e-5 * a.norm()


def test_terms_are_evened_out_zero_is_zero_and_half_precision_is_widened():
    factors = polyadic(rand(6, 5, 4), 3)
    lengths = torch.stack([f.norm(dim=0) for f in factors])
    torch.testing.assert_close(lengths, lengths[:1].expand(3, 3))
    assert all(f.isfinite().all() for f in polyadic(torch.zeros(4, 3, 2), 2))
    assert polyadic(rand(4, 3, 2).half(), 2)[0].dtype == torch.float32


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="two modes or more"):
        polyadic(rand(4), 1)
    with pytest.raises(ValueError, match="rank be at least 1"):
        polyadic(rand(4, 3), 0)
    with pytest.raises(ValueError, match="NaN"):
        polyadic(rand(4, 3) * torch.nan, 1)
