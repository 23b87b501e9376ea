"""Reduction of a tall matrix to a square one with the same right-hand geometry."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .orthonormal import renewed
from .symmetric import symmetric_product

Lift = Callable[[Tensor], Tensor]

_WORST_COLUMN = 1e-2


def reduce_tall(w: Tensor) -> tuple[Tensor, Lift]:
    """Square T (n, n) with W = Q T for w (m, n), m >= n, and the map from V (n, r) to Q V.

    Left singular vectors of T carry over to W through Q, which stays a product of Householder
    reflections.
    """
    rows, columns = w.shape
    reflectors, scales = torch.geqrf(w)

    def lift(v: Tensor) -> Tensor:
        padded = torch.cat([v, v.new_zeros(rows - columns, v.shape[1])])
        return torch.ormqr(reflectors, scales, padded)

    return reflectors[:columns].triu(), lift


def reduce_leading(w: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor | None]]:
    """The same for leading directions only, by matrix products: T^T T = W^T W + shift.

    The shift, of the size of the rounding of W^T W, keeps the Cholesky factor T defined for every
    condition of W. V is lifted as the orthonormal basis of W T^-1 V, or to None where T^-1 V leans
    on directions that the shift hides: then `reduce_tall` has to serve.
    """
    moment = symmetric_product(w.T, w.T)
    shift = torch.finfo(w.dtype).eps * float(torch.linalg.vector_norm(moment))
    moment.diagonal().add_(shift)
    root = torch.linalg.cholesky_ex(moment, upper=True)[0]

    def lift(v: Tensor) -> Tensor | None:
        u = w @ torch.linalg.solve_triangular(root, v, upper=True)
        length = torch.linalg.vector_norm(u, dim=0)
        if not bool(((length - 1).abs() < _WORST_COLUMN).all()):
            return None
        return renewed(u)

    return root, lift
