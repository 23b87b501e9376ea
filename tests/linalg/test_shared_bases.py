"""Shared bases: recovery of what has the structure, groups of singular vectors as the start."""

import pytest
import torch
from torch.nn import functional as F

from corank.linalg import shared_bases


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(fit, wanted, function=F.silu):
    made = fit.left @ fit.mixed(function)
    return float((made - wanted).norm() / wanted.norm())


def test_the_fit_is_the_formula_with_weights_of_a_mixture():
    wanted = 3 * rand(5, 6, 8)
    fit = shared_bases(wanted, 2, 4, torch.tanh, 5)
    assert [tuple(leaf.shape) for leaf in fit] == [(5, 6, 4), (5, 2), (2, 4, 8)]
    assert not any(leaf.requires_grad for leaf in fit)
    assert (fit.weights > 0).all()
    torch.testing.assert_close(fit.weights.sum(1), torch.ones(5).double())
    by_hand = torch.stack([
        a @ torch.tanh(sum(w * b for w, b in zip(row, fit.bases, strict=True)))
        for a, row in zip(fit.left, fit.weights, strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(fit.left @ fit.mixed(torch.tanh), by_hand)


def test_it_beats_the_singular_vectors_of_each_group():
    """What the start would give if its bases went through no function, and each to its own."""
    shared = rand(2, 8, 12)
    wanted = torch.stack([shared[e // 4] + rand(8, 12, seed=e + 1) / 2 for e in range(8)])
    lost = sum(torch.linalg.svdvals(w.flatten(0, 1))[6:].square().sum() for w in wanted.split(4))
    assert error(shared_bases(wanted, 2, 6, F.silu), wanted) < float(lost.sqrt() / wanted.norm())


def test_more_steps_are_not_worse_and_scale_does_not_matter():
    wanted = rand(4, 6, 8)
    errors = [error(shared_bases(wanted, 2, 4, F.silu, steps), wanted) for steps in (1, 20, 200)]
    assert errors[0] > errors[1] > errors[2]
    small = shared_bases(1e-4 * wanted, 2, 4, F.silu, 20)
    assert error(small, 1e-4 * wanted) == pytest.approx(errors[1])
    torch.testing.assert_close(small.bases, shared_bases(wanted, 2, 4, F.silu, 20).bases)


def test_groups_need_not_be_even_and_zero_is_zero():
    assert shared_bases(rand(5, 4, 6), 3, 2, F.silu, 3).bases.shape == (3, 2, 6)
    fit = shared_bases(torch.zeros(2, 3, 4), 1, 2, F.silu, 3)
    assert not (fit.left @ fit.mixed(F.silu)).any()


@pytest.mark.parametrize(("options", "message"), [
    ((0, 2), "bases 1 to count"), ((6, 2), "bases 1 to count"), ((2, 0), "outside 1 to 4"),
    ((2, 5), "outside 1 to 4"),
])  # fmt: skip
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        shared_bases(rand(5, 4, 6), *options, F.silu, 3)
    with pytest.raises(ValueError, match="infinite"):
        shared_bases(rand(5, 4, 6) / 0, 2, 2, F.silu, 3)
