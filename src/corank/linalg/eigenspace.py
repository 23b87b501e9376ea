"""Leading eigenspace of a large positive semidefinite operator by filtered subspace iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import gaussian
from .symmetric import symmetric_eigh

_DEGREE = 3
_ROUNDS = 24


class Eigenspace(NamedTuple):
    """Leading eigenvalues, descending, and orthonormal eigenvectors; `converged` is measured."""

    values: Tensor  # (r,)
    vectors: Tensor  # (p, r)
    converged: bool


def eigenspace_width(rank: int) -> int:
    """Columns that the iteration works on to find `rank` of them."""
    return rank + max(16, rank // 16)


def top_eigenspace(
    apply: Callable[[Tensor], Tensor],
    like: Tensor,
    side: int,
    rank: int,
    total: float,
    *,
    generator: torch.Generator,
) -> Eigenspace:
    """Top-`rank` eigenspace of a positive semidefinite (p, p) operator with trace `total`.

    `apply` maps (p, k) to (p, k) in the dtype and device of `like`. Each round is a Rayleigh-Ritz
    step and then a Chebyshev filter on the unwanted part of the spectrum (Zhou et al. 2006), run
    as shifted products with a QR between them, because a power of a spiked spectrum does not fit
    float32. Since `total` is known, the uncaptured energy is known too: rounds end when it still
    falls by less than 2e-4 (float32) or 1e-6 (float64) of itself.
    """
    tolerance = 2e-4 if like.dtype == torch.float32 else 1e-6
    floor = side * torch.finfo(like.dtype).eps * total
    basis = _orthonormal(apply(gaussian(side, min(side, eigenspace_width(rank)), like, generator)))
    previous = math.inf
    for _ in range(_ROUNDS):
        image = apply(basis)  # (p, width)
        small = basis.T @ image
        values, rotation = symmetric_eigh((small + small.T) / 2)
        tail = total - float(values[:rank].sum(dtype=torch.float64))
        converged = tail <= floor or previous - tail <= tolerance * tail
        if converged:
            break
        previous = tail
        for step, shift in enumerate(_shifts(max(float(values[-1]), 0.0))):
            filtered = (image if step == 0 else apply(basis)) - shift * basis
            basis = _orthonormal(filtered)
    return Eigenspace(values[:rank], basis @ rotation[:, :rank], converged)


def _shifts(edge: float) -> list[float]:
    """Roots of the Chebyshev polynomial of [0, edge], largest last."""
    angles = [math.pi * (2 * k + 1) / (2 * _DEGREE) for k in range(_DEGREE)]
    return sorted(edge / 2 * (1 + math.cos(angle)) for angle in angles)


def _orthonormal(block: Tensor) -> Tensor:
    return torch.linalg.qr(block).Q
