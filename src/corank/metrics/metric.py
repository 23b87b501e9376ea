from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """loss(E) = trace(A E C E^T), with A = `left` and C = `right`, for an error E of (out, in).

    `left` (out,) or (out, out) and `right` (in,) or (in, in) are second moments: symmetric and
    positive semidefinite, a vector standing for a diagonal, None for the identity. Where
    `elementwise` F (out, in) is given, it is the true loss, sum(F * E^2), and `left` and `right`
    are its separable surrogate, which solvers use.
    """

    left: Tensor | None = None
    right: Tensor | None = None
    elementwise: Tensor | None = None

    def loss(self, error: Tensor) -> Tensor:
        """The cost of `error`, of shape (out, in): a scalar >= 0, in fp32 or wider."""
        error = error if error.dtype == torch.float64 else error.float()
        if self.elementwise is not None:
            return (self.elementwise.to(error) * error.square()).sum()
        return (times(self.left, error) * times(self.right, error.mT).mT).sum().clamp_min(0)


def times(moment: Tensor | None, matrix: Tensor) -> Tensor:
    """moment @ matrix, for a moment that may be a diagonal (a vector) or the identity (None)."""
    if moment is None:
        return matrix
    moment = moment.to(matrix)
    return moment[:, None] * matrix if moment.ndim == 1 else moment @ matrix
