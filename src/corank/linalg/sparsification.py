"""Sparse matrices near a matrix in the spectral norm."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_matrix
from .svd import truncated_svd

#: Shares of the numbers that are the largest ones for sure; the others are drawn.
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)


def sparsify_spectrum(a: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """A matrix (m, n) with `count` places for numbers, near a (m, n) in the spectral norm.

    A part of them are the largest of a. The others are drawn among the rest with the probabilities
    that `inclusion` gives, and divided by these, so that on average all of a is there. Of a few
    such parts, all among them (magnitude pruning), the one with the least |a - s|_2 is taken: no
    singular value moves by more than that (Weyl).

    Raises ValueError for a count outside 1 to m n.
    """
    check_matrix(a, "a")
    if not 1 <= count <= a.numel():
        raise ValueError(f"count={count} is outside 1 to {a.numel()}, the numbers of a")
    flat = a.flatten()
    order = flat.abs().argsort(descending=True, stable=True)
    tried = []
    for share in SHARES:
        sure = int(share * count)
        made = torch.zeros_like(flat)
        made[order[:sure]] = flat[order[:sure]]
        rest = order[sure:]
        made[rest] = drawn(flat[rest], count - sure, generator)
        tried.append(made.view_as(a))
    return min(tried, key=lambda made: float(truncated_svd(a - made, 1).s[0]))


def drawn(values: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """`count` of the values (n,), each divided by its probability, and zeros: unbiased.

    Systematic sampling in a random order, which draws exactly as many.
    """
    chances = inclusion(values.abs(), count)
    order = torch.randperm(len(values), generator=generator).to(values.device)
    passed = chances[order].cumsum(0)
    passed = passed * (count / passed[-1].clamp_min(1e-300)) if count else passed
    start = torch.rand((), generator=generator, dtype=torch.float64).to(values.device)
    steps = (passed + start).floor().diff(prepend=start.floor()[None])
    taken = torch.zeros_like(values, dtype=torch.bool)
    taken[order] = steps > 0
    scaled = values.double() / chances.clamp_min(1e-300)
    return torch.where(taken, scaled, 0.0).to(values.dtype)


def inclusion(sizes: Tensor, count: int) -> Tensor:
    """Probabilities (n,), min(1, c size) with sum `count`: the unbiased draw that errs least.

    Among all ways to keep value / p with probability p, sum p = count, these have the least
    expected squared error, sum size^2 (1/p - 1). fp64; all that are not zero where count allows.
    """
    sizes = sizes.double()
    if count >= int((sizes > 0).sum()):
        return (sizes > 0).double()
    ordered = sizes.sort(descending=True).values
    left = ordered.flip(0).cumsum(0).flip(0)  # of those from each on
    sure = torch.arange(len(sizes), device=sizes.device)
    factor = (count - sure) / left.clamp_min(1e-300)
    first = int((factor * ordered <= 1).int().argmax())
    return (factor[first] * sizes).clamp_max(1.0)
