"""Tensor trains: TensorLy as an oracle, error bounds, and trains with their middle in common."""

import pytest
import tensorly
import torch
from tensorly import decomposition

from corank.linalg import bond_sizes, common_center, tensor_train


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chained(cores):
    joined = cores[0][0]
    for core in cores[1:]:
        joined = torch.einsum("...x,xny->...ny", joined, core)
    return joined[..., 0]


def each(cores):
    """The tensors that a common train stands for."""
    count = max(len(core) for core in cores)
    return torch.stack([chained([core.expand(count, -1, -1, -1)[i] for core in cores])
                        for i in range(count)])  # fmt: skip


def error(a, rank, **options):
    return float((each(common_center(a, rank, **options)) - a).norm() / a.norm())


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_it_is_tensorlys(rank):
    a = rand(4, 5, 3, 6)
    theirs = decomposition.tensor_train(a.numpy(), bond_sizes(a.shape, rank))
    ours = tensor_train(a, rank)
    assert [tuple(core.shape) for core in ours] == [core.shape for core in theirs]
    wanted = torch.from_numpy(tensorly.tt_to_tensor(theirs))
    torch.testing.assert_close(chained(ours), wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 2, 5, 100])
def test_the_error_is_within_the_bound_by_the_unfoldings(rank):
    a = rand(4, 5, 3, 6)
    tails = [torch.linalg.svdvals(a.flatten(k).flatten(0, k - 1))[rank:].square().sum()
             for k in (1, 2, 3)]  # fmt: skip
    lost = (chained(tensor_train(a, rank)) - a).norm()
    assert float(max(tails)) ** 0.5 - 1e-9 <= float(lost) <= float(sum(tails)) ** 0.5 + 1e-9


def test_full_bonds_lose_nothing_and_half_precision_is_widened():
    a = rand(4, 5, 3)
    torch.testing.assert_close(chained(tensor_train(a, 100)), a)
    torch.testing.assert_close(each(common_center(a[None], 100))[0], a)
    assert tensor_train(a.half(), 2)[0].dtype == torch.float32


def test_what_has_its_middle_in_common_is_found_again():
    middle = rand(3, 6, 4)
    a = torch.stack([chained([rand(1, 4, 3, seed=i), middle, rand(4, 5, 1, seed=9 + i)])
                     for i in range(4)])  # fmt: skip
    cores = common_center(a, 4, steps=1)
    assert [len(core) for core in cores] == [4, 1, 4]
    assert error(a, 4, steps=100) < 1e-3


def test_no_step_errs_more_and_alone_it_is_at_least_as_near_as_the_plain_train():
    a = rand(3, 4, 4, 6, 4, 4)
    errors = [error(a, 4, steps=n) for n in range(1, 12)]
    assert errors == sorted(errors, reverse=True)
    plain = (chained(tensor_train(a[0], 4)) - a[0]).norm() / a[0].norm()
    assert error(a[:1], 4) < float(plain)


def test_the_outer_cores_are_the_least_squares_ones_for_the_others():
    a = rand(2, 4, 6, 5)
    first, middle, last = common_center(a, 3, steps=400)
    rest = a - each([first, middle, last])
    assert torch.einsum("lanb,lxay,ynz->lxzb", rest, first, middle[0]).norm() < 1e-3
    assert torch.einsum("lanb,ynz,lzbx->lay", rest, middle[0], last).norm() < 1e-3
    assert torch.einsum("lanb,lxay,lzbx->ynz", rest, first, last).norm() < 1e-3


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e6])
def test_layers_of_all_sizes_are_fitted(scale):
    a = torch.cat([scale * rand(1, 4, 6, 4), rand(1, 4, 6, 4)])
    cores = common_center(a, 100)
    assert all(core.isfinite().all() for core in cores)
    lost = (each(cores) - a).flatten(1).norm(dim=1)
    assert (lost <= a.flatten(1).norm(dim=1) + 1e-12).all()


def test_zero_is_zero_and_bad_input_is_refused():
    assert not each(common_center(torch.zeros(2, 3, 4, 3), 2)).any()
    with pytest.raises(ValueError, match="odd number of modes, got 2"):
        common_center(rand(2, 3, 4), 2)
    for call in (tensor_train, common_center):
        with pytest.raises(ValueError, match="at least 1"):
            call(rand(2, 3, 4, 3), 0)
        with pytest.raises(ValueError, match="NaN"):
            call(rand(2, 3, 4, 3) / 0, 2)
