"""Leading eigenspace of a large positive semidefinite operator by shifted subspace iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .nystrom import nystrom
from .orthonormal import independent

_SHIFT = 3.0
_STEPS = 48
_PACE = 2.4  # natural logarithm of what a product takes off the gain, as a rule
_LONGEST_WAIT = 4
_NEAREST = 16
_STRIDE = 16
_LANES = 16
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 2e-6}


class Eigenspace(NamedTuple):
    """Leading eigenvalues, descending, and orthonormal eigenvectors; `converged` is measured."""

    values: Tensor  # (r,)
    vectors: Tensor  # (p, r)
    converged: bool


def eigenspace_width(rank: int) -> int:
    """Columns that the iteration works on to find `rank` of them, as many as suit a product."""
    return -(-(rank + max(16, rank // 4)) // _LANES) * _LANES


def top_eigenspace(
    apply: Callable[[Tensor], Tensor], start: Tensor, rank: int, total: float
) -> Eigenspace:
    """Top-`rank` eigenspace of a positive semidefinite (p, p) operator with trace `total`.

    `apply` maps (p, k) to (p, k); `start` (p, width >= rank) is its product with a random sketch.
    A step is one product, whose columns are then made independent with a root of a Chebyshev filter
    taken out (Zhou et al. 2006). `nystrom` extracts the eigenpairs, the first time after two
    products. Steps end when the energy still to be gained is estimated below 1e-3 (float32) or 2e-6
    (float64) of the energy left out, which is known from `total`; a rank-r loss is then within
    about half that share of the best. `converged` is False if 48 steps did not get there.
    """
    side, width = start.shape
    eps = torch.finfo(start.dtype).eps
    basis = independent(start)  # (p, width)
    previous, wait, edge = math.inf, 1, 0.0
    for step in range(_STEPS):
        image = apply(basis)
        if step == 0:  # what the basis does not see has this mean, and up to a few times as much
            seen = float(torch.linalg.vecdot(basis.T, image.T).sum(dtype=torch.float64))
            edge = 2 * _SHIFT * max(0.0, total - seen) / max(1, side - width)
        if wait:
            wait -= 1
        else:
            values, vectors = nystrom(basis, image, rank)
            gain = _gain(apply, vectors, values)
            tail = total - float(values[:rank].sum(dtype=torch.float64))
            limit = max(_TOLERANCE[start.dtype] * tail, 16 * eps * total)
            settled = gain > 0.8 * previous and gain <= 256 * eps * total  # rounding, not progress
            if gain <= limit or settled:
                return Eigenspace(values[:rank], vectors, True)
            wait = int(min(_LONGEST_WAIT, math.log(gain / limit) / _PACE)) if limit > 0 else 0
            previous, edge = gain, max(float(values[-1]), 0.0)
        filtered = torch.sub(image, basis, alpha=_root(edge, step))
        basis = independent(filtered, settled=True)
    return Eigenspace(values[:rank], vectors, False)


def _root(edge: float, step: int) -> float:
    """Roots of the cubic Chebyshev polynomial of [0, edge] in turn, the middle one first."""
    return edge / 2 * (1 - math.cos(math.pi * (3, 1, 5)[step % 3] / 6))


def _gain(apply: Callable[[Tensor], Tensor], vectors: Tensor, values: Tensor) -> float:
    """Energy that converged vectors would add: second-order perturbation of each value.

    vectors: (p, r), values: (width,). The rest of the spectrum is taken to start at the smallest
    value. Residuals are taken of the last 16 vectors and of every sixteenth before them.
    """
    rank = vectors.shape[1]
    near = max(0, rank - _NEAREST)
    picked = torch.cat([torch.arange(0, near, _STRIDE), torch.arange(near, rank)])
    weight = torch.ones(picked.shape[0], dtype=values.dtype)
    far = -(-near // _STRIDE)
    weight[:far] = near / max(1, far)
    picked, weight = picked.to(values.device), weight.to(values)
    image = apply(vectors[:, picked])
    image = image - vectors @ (vectors.T @ image)
    gap = (values[picked] - values[-1]).clamp_min(torch.finfo(values.dtype).tiny)
    share = torch.minimum(image.square().sum(0) / gap, values[picked].clamp_min(0))
    return float((share * weight).sum(dtype=torch.float64))
