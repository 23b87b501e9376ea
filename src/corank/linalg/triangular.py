"""W = L D U with unit triangles, and the columns that span a matrix best: pivoted eliminations."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_matrix, check_rank, working_dtype


def ldu(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors l (m, k), d (k,), u (k, n) with a = l diag(d) u, k = min(m, n), rows pivoted.

    l is a unit lower triangle whose rows are permuted, u a unit upper triangle. Where a pivot is
    numerically zero (under k eps of the largest) d is 1 and u's row is left as it comes out.
    Half precisions are computed and returned in float32. Raises as `check_matrix`.
    """
    check_matrix(a, "a")
    p, lower, upper = torch.linalg.lu(a.to(working_dtype(a)))
    pivots = upper.diagonal()
    cut = min(a.shape) * torch.finfo(upper.dtype).eps * pivots.abs().max()
    d = torch.where(pivots.abs() > cut, pivots, torch.ones_like(pivots))
    return p @ lower, d, upper / d[:, None]


def pivoted_columns(a: Tensor, count: int) -> Tensor:
    """Indices (count,) of columns of a (m, n), each the longest outside the span of those before.

    The choice of QR with column pivoting. Raises ValueError for a count outside 1..min(m, n).
    """
    check_matrix(a, "a")
    check_rank(count, (a.shape[0], a.shape[1]))
    rest = a.to(working_dtype(a), copy=True)
    taken = torch.zeros(a.shape[1], dtype=torch.bool, device=a.device)
    chosen = []
    for _ in range(count):
        lengths = torch.linalg.vector_norm(rest, dim=0).masked_fill(taken, -1.0)
        best = int(lengths.argmax())
        taken[best] = True
        chosen.append(best)
        if float(lengths[best]) > 0:
            direction = rest[:, best] / lengths[best]
            rest -= torch.outer(direction, direction @ rest)
    return torch.tensor(chosen, device=a.device)
