"""Reduction of a tall matrix to a square one with the same right-hand geometry."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def reduce_tall(w: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Square T (n, n) with W = Q T for w (m, n), m >= n, and the map from V (n, r) to Q V.

    Left singular vectors of T carry over to W through Q, which stays a product of Householder
    reflections. A Cholesky of W^T W would save a tenth of the solver's time and lose orthogonality
    as the square of W's condition.
    """
    rows, columns = w.shape
    reflectors, scales = torch.geqrf(w)

    def lift(v: Tensor) -> Tensor:
        padded = torch.cat([v, v.new_zeros(rows - columns, v.shape[1])])
        return torch.ormqr(reflectors, scales, padded)

    return reflectors[:columns].triu(), lift
