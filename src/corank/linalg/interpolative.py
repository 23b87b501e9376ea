"""Interpolative decomposition: some columns of a matrix, and all others made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_matrix, check_rank


def interpolative(a: Tensor, rank: int, weighed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Columns (rank,) of a (m, n), and t (rank, n - rank) that makes the others of them.

    The other columns, in their own order, are about a[:, columns] @ t, by least squares. Which ones
    are chosen is as in QR with column pivoting, each the longest outside the span of those before
    (Cheng, Gimbutas, Martinsson and Rokhlin, SIAM J. Sci. Comput. 26 (2005), 1389-1404). Lengths
    and squares are in the metric C, symmetric and positive semidefinite, of `weighed` = C a, or as
    they are. Computed in float64.

    Raises ValueError for a rank outside 1..min(m, n) or entries of a that are not finite.
    """
    check_matrix(a, "a")
    check_rank(rank, (a.shape[0], a.shape[1]))
    columns, rows, _ = _pivoted(a, weighed, rank)
    rest = complement(columns, a.shape[1])
    root = rows[:, columns]  # (rank, rank), upper triangular: R of a[:, columns] = Q R
    seen = int((root.diagonal() > 0).sum())
    t = root.new_zeros(rank, len(rest))
    t[:seen] = torch.linalg.solve_triangular(root[:seen, :seen], rows[:seen, rest], upper=True)
    return columns, t


def interpolation_errors(a: Tensor, weighed: Tensor | None = None) -> Tensor:
    """Squared errors (min(m, n) + 1,) of `interpolative` of a (m, n) at ranks 0 to min(m, n)."""
    check_matrix(a, "a")
    return _pivoted(a, weighed, min(a.shape))[2]


def complement(chosen: Tensor, count: int) -> Tensor:
    """The indices below `count` that are not among `chosen`, ascending."""
    left = torch.ones(count, dtype=torch.bool, device=chosen.device)
    left[chosen] = False
    return left.nonzero().squeeze(1)


def _pivoted(a: Tensor, weighed: Tensor | None, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cholesky with pivoting of a^T weighed, which is not formed: places (count,), rows (count, n)
    of L^T, what each step leaves (count + 1,).

    A step whose pivot is numerically zero takes the first place that is left, and its row is zero.
    """
    a = a.double()
    weighed = a if weighed is None else weighed.to(a)
    left = (a * weighed).sum(0).clamp_min(0)
    least = len(left) * torch.finfo(a.dtype).eps * left.max()
    rows, places, errors = a.new_zeros(count, len(left)), [], [left.sum()]
    free = torch.ones_like(left, dtype=torch.bool)
    for step in range(count):
        place = int(torch.where(free, left, -1.0).argmax())
        places.append(place)
        free[place] = False
        if left[place] > least:
            column = weighed[:, place] @ a - rows[:step, place] @ rows[:step]
            rows[step] = torch.where(free, column, 0.0) / left[place].sqrt()
            rows[step, place] = left[place].sqrt()
            left = (left - rows[step].square()).clamp_min(0)
        left[place] = 0
        errors.append(left.sum())
    return torch.tensor(places, device=a.device), rows, torch.stack(errors)
