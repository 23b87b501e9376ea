"""Tensors as sums of outer products (canonical polyadic decomposition, CP)."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from .checks import check_finite, own_generator, working_dtype


def polyadic(
    a: Tensor,
    rank: int,
    steps: int = 100,
    starts: int = 2,
    tolerance: float = 1e-6,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Factors (n_k, rank) of each mode, whose outer products sum to nearly a (n_0, n_1, ...).

    By alternating least squares, which never errs more from step to step, until the relative
    squared error falls by less than `tolerance` or after `steps` rounds. The first start is
    the leading singular vectors of each unfolding, filled up at random; the others are random; the
    best is kept. Columns of a term are of one length. Half precisions are computed in float32.

    Raises ValueError for a rank or a number of modes out of range, or entries that are not finite.
    """
    check_finite(a, "a")
    if a.ndim < 2 or rank < 1:
        raise ValueError(
            f"a must have two modes or more and rank be at least 1: {tuple(a.shape)}, {rank}"
        )
    a = a.to(working_dtype(a))
    generator = own_generator(generator, a.device)
    best, least = [a.new_zeros(n, rank) for n in a.shape], torch.inf
    for start in range(starts):
        factors, error = _alternate(a, _start(a, rank, start == 0, generator), steps, tolerance)
        if error < least:
            best, least = factors, error
    return best


def _start(a: Tensor, rank: int, singular: bool, generator: torch.Generator) -> list[Tensor]:
    found = []
    for mode, size in enumerate(a.shape):
        drawn = torch.randn(size, rank, generator=generator, dtype=torch.float64).to(a)
        if singular:
            rows = a.movedim(mode, 0).flatten(1)
            vectors = torch.linalg.eigh((rows @ rows.mT).double()).eigenvectors.flip(1)
            kept = min(rank, size)
            drawn[:, :kept] = vectors[:, :kept].to(a)
        found.append(drawn)
    return found


def _alternate(
    a: Tensor, factors: list[Tensor], steps: int, tolerance: float
) -> tuple[list[Tensor], float]:
    whole = float(a.double().square().sum())
    grams = [(f.mT @ f).double() for f in factors]
    floor, least = torch.finfo(a.dtype).eps, torch.inf
    for _ in range(steps):
        for mode in range(a.ndim):
            others = reduce(torch.mul, [g for m, g in enumerate(grams) if m != mode])
            met = _contract(a, factors, mode).double()  # (n, r)
            shift = floor * others.diagonal().mean().clamp_min(1e-300)
            shifted = others + shift * torch.eye(len(others)).to(others)
            factor = torch.linalg.solve(shifted, met.mT).mT
            factors[mode], grams[mode] = factor.to(a), factor.mT @ factor
        error = whole + float((grams[mode] * others).sum() - 2 * (factor * met).sum())
        _even_out(factors, grams)
        if least - error <= tolerance * whole:
            break
        least = error
    return factors, error


def _contract(a: Tensor, factors: list[Tensor], mode: int) -> Tensor:
    """Sum over all modes but one of a times the columns of their factors, (n, r)."""
    others = [f for m, f in enumerate(factors) if m != mode]
    z = a.movedim(mode, 0).movedim(1, -1) @ others[0]
    for factor in others[1:]:
        z = torch.einsum("ni...r,ir->n...r", z, factor)
    return z


def _even_out(factors: list[Tensor], grams: list[Tensor]) -> None:
    """Give the columns of each term one length, which changes none of their products."""
    sizes = torch.stack([g.diagonal().clamp_min(1e-300).sqrt() for g in grams])
    scales = sizes.log().mean(0).exp() / sizes
    for mode, scale in enumerate(scales):
        factors[mode] = factors[mode] * scale.to(factors[mode])
        grams[mode] = grams[mode] * torch.outer(scale, scale)
