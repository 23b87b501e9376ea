from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from .operator import Operator, leaf, require_matrix
from .precision import without_autocast
from .skeleton import storable
from .transpose import adjoint


@storable
@final
class Reflections(Operator):
    """A product of r Householder reflections I - 2 u u.T / |u|^2. `u` (r, d), no row zero.

    Row 0 meets x first: W = H[r-1] ... H[1] H[0]. All are applied at once in the compact WY form
    W.T = I - U.T T U, with T the inverse of the upper triangle of U U.T whose diagonal is halved
    (the UT transform: Joffrain et al., ACM TOMS 32(2), 2006), at 4 r d per token instead of 2 d d.
    """

    def __init__(self, u: Tensor) -> None:
        super().__init__()
        require_matrix(u, "Reflections.u")
        self.shape = (u.shape[1], u.shape[1])
        self.u = leaf(u)

    def forward(self, x: Tensor) -> Tensor:
        return self._reflect(x, self._core())

    def dense(self) -> Tensor:
        eye = torch.eye(self.shape[0], dtype=self.u.dtype, device=self.u.device)
        return self._reflect(eye, self._core()).mT

    def flops(self, tokens: int) -> int:
        r, d = self.u.shape
        return 2 * r * r * d + r**3 // 3 + tokens * (4 * r * d + 2 * r * r + d)

    def _core(self) -> Tensor:  # (r, r), T
        # Half precision would lose the orthogonality, under autocast too.
        with without_autocast(self.u.device):
            u = self.u.to(torch.promote_types(self.u.dtype, torch.float32))
            gram = u @ u.mT
            upper = gram.triu(1) + 0.5 * gram.diagonal().diag()
            eye = torch.eye(u.shape[0], dtype=u.dtype, device=u.device)
            return torch.linalg.solve_triangular(upper, eye, upper=True)

    def _reflect(self, x: Tensor, core: Tensor) -> Tensor:
        z = F.linear(x, self.u)  # (..., r)
        return x - (z @ core.to(z.dtype)) @ self.u


@adjoint.register
def _adjoint(op: Reflections, x: Tensor) -> Tensor:
    return op._reflect(x, op._core().mT)
