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
_ROUNDS = 16
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 2e-6}


class Eigenspace(NamedTuple):
    """Leading eigenvalues, descending, and orthonormal eigenvectors; `converged` is measured."""

    values: Tensor  # (r,)
    vectors: Tensor  # (p, r)
    converged: bool


def eigenspace_width(rank: int) -> int:
    """Columns that the iteration works on to find `rank` of them."""
    return rank + max(16, 3 * rank // 16)


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

    `apply` maps (p, k) to (p, k) in the dtype and device of `like`. Each round is a Chebyshev
    filter on the unwanted part of the spectrum (Zhou et al. 2006) and a Rayleigh-Ritz step. The
    filter runs as shifted products, each made independent again, because a power of a spiked
    spectrum does not fit float32. Rounds end when the energy still to be gained is estimated below
    1e-3 (float32) or 2e-6 (float64) of the energy left out, which is known exactly from `total`;
    a rank-r loss is then within about half that share of the best. `converged` is False if 16
    rounds did not get there.
    """
    eps = torch.finfo(like.dtype).eps
    width = min(side, eigenspace_width(rank))
    basis = torch.linalg.qr(apply(gaussian(side, width, like, generator))).Q  # (p, width)
    image = apply(basis)
    edge = float(torch.linalg.eigvalsh(_symmetric(basis.T @ image))[0])
    previous = math.inf
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(_filter(apply, basis, image, max(edge, 0.0))).Q
        image = apply(basis)
        values, rotation = symmetric_eigh(_symmetric(basis.T @ image))
        vectors = basis @ rotation[:, :rank]
        gain = _gain(image @ rotation[:, :rank] - vectors * values[:rank], values)
        tail = max(0.0, total - float(values[:rank].sum(dtype=torch.float64)))
        converged = gain <= max(_TOLERANCE[like.dtype] * tail, 16 * eps * total)
        settled = gain > 0.8 * previous and gain <= 256 * eps * total  # rounding, not progress
        if converged or settled:
            return Eigenspace(values[:rank], vectors, True)
        previous, edge = gain, float(values[-1])
    return Eigenspace(values[:rank], vectors, False)


def _filter(apply: Callable[[Tensor], Tensor], basis: Tensor, image: Tensor, edge: float) -> Tensor:
    """Chebyshev polynomial of [0, edge] of the operator, times basis, up to a change of columns.

    One factor per root; `image` is the product with `basis`, which the first of them needs.
    """
    block = basis
    for index in range(_DEGREE):
        root = edge / 2 * (1 - math.cos(math.pi * (2 * index + 1) / (2 * _DEGREE)))
        if index:
            block = _independent(block)
            image = apply(block)
        block = image - root * block
    return block


def _symmetric(small: Tensor) -> Tensor:
    return (small + small.T) / 2


def _gain(residual: Tensor, values: Tensor) -> float:
    """Energy that converged Ritz vectors would add: second-order perturbation of each value.

    residual: (p, r), one column for each of the leading `values` (width,). The rest of the
    spectrum is taken to start at the smallest Ritz value.
    """
    rank = residual.shape[1]
    gap = (values[:rank] - values[-1]).clamp_min(torch.finfo(values.dtype).tiny)
    share = residual.square().sum(0) / gap
    return float(torch.minimum(share, values[:rank].clamp_min(0)).sum(dtype=torch.float64))


def _independent(block: Tensor) -> Tensor:
    """Well-conditioned columns (p, k) of the same span: the unit lower factor of a pivoted LU.

    Half the price of a QR, and as good between two products (Halko et al. 2011, section 4.5).
    """
    packed, pivots, _ = torch.linalg.lu_factor_ex(block)  # zero pivots leave unit columns
    order = list(range(block.shape[0]))
    for row, pivot in enumerate(pivots.tolist()):
        order[row], order[pivot - 1] = order[pivot - 1], order[row]
    lower = packed.tril(-1)
    lower.diagonal().fill_(1)
    spread = torch.empty_like(lower)
    spread[torch.tensor(order, device=block.device)] = lower
    return spread
