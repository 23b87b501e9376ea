"""Reduction of a tall matrix to a square one with the same right-hand geometry."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .symmetric import BLOCK

_WORST_LENGTH = 1e-2


def reduce_tall(w: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
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


def shifted_root(w: Tensor) -> Tensor | None:
    """Upper T (n, n) with T^T T = W^T W + shift for w (m, n), or None if there is none.

    It stands for w where only leading directions count, at the speed of matrix products: strips of
    W^T W are formed as Cholesky's elimination comes to them. The shift, of the size of the rounding
    of W^T W, keeps it defined for every condition of W.
    """
    columns = w.shape[1]
    shift = torch.finfo(w.dtype).eps * float(torch.linalg.vector_norm(w)) ** 2
    root = w.new_zeros(columns, columns)
    for start in range(0, columns, BLOCK):
        rows, above = slice(start, start + BLOCK), root[:start]
        strip = w[:, rows].T @ w[:, start:]
        strip.addmm_(above[:, rows].T, above[:, start:], alpha=-1)
        strip.diagonal().add_(shift)
        lower, failed = torch.linalg.cholesky_ex(strip[:, :BLOCK])
        if bool(failed):
            return None
        root[rows, start:] = torch.linalg.solve_triangular(lower, strip, upper=False)
        root[rows, rows] = lower.T
    return root


def lift_leading(w: Tensor, root: Tensor, v: Tensor) -> Tensor | None:
    """W T^-1 V (m, r), orthonormal up to the shift, for V (n, r) beside T = shifted_root(w).

    None where T^-1 V leans on directions of W that the shift hides: then columns are no longer of
    unit length, and `reduce_tall` has to serve.
    """
    back = torch.linalg.solve_triangular(root, v, upper=True)
    u = (back.T @ w.T).T  # BLAS is slower to write rows of odd lengths
    length = torch.linalg.vector_norm(u, dim=0)
    return u if bool(((length - 1).abs() < _WORST_LENGTH).all()) else None
