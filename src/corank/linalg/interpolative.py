"""Interpolative decomposition: some columns of a matrix, and all others made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_rank
from .symmetric import check_square


def interpolative(gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Columns (rank,) of a matrix a (m, n) of that gram = a^T a (n, n), and t (rank, n - rank).

    The other columns, in their own order, are about a[:, columns] @ t, by least squares. Which
    ones are chosen is as in QR with column pivoting, each the longest outside the span of those
    before (Cheng, Gimbutas, Martinsson and Rokhlin, SIAM J. Sci. Comput. 26 (2005), 1389-1404).
    Computed in float64. Raises ValueError for a rank outside 1..n.
    """
    check_rank(rank, (len(gram), len(gram)))
    columns, rows, _ = _pivoted(gram, rank)
    rest = complement(columns, len(gram))
    root = rows[:, columns]  # (rank, rank), upper triangular: R of a[:, columns] = Q R
    seen = int((root.diagonal() > 0).sum())
    t = root.new_zeros(rank, len(rest))
    t[:seen] = torch.linalg.solve_triangular(root[:seen, :seen], rows[:seen, rest], upper=True)
    return columns, t


def interpolation_errors(gram: Tensor) -> Tensor:
    """Squared Frobenius errors (n + 1,) of `interpolative` at ranks 0 to n."""
    return _pivoted(gram, len(gram))[2]


def complement(chosen: Tensor, count: int) -> Tensor:
    """The indices below `count` that are not among `chosen`, ascending."""
    left = torch.ones(count, dtype=torch.bool, device=chosen.device)
    left[chosen] = False
    return left.nonzero().squeeze(1)


def _pivoted(gram: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cholesky with pivoting: places (count,), rows (count, n) of L^T, what each step leaves.

    A step whose pivot is numerically zero takes the first place that is left, and its row is zero.
    """
    gram = check_square(gram, "gram").double()
    left = gram.diagonal().clamp_min(0)
    least = len(gram) * torch.finfo(gram.dtype).eps * left.max()
    rows, places, errors = gram.new_zeros(count, len(gram)), [], [left.sum()]
    free = torch.ones_like(left, dtype=torch.bool)
    for step in range(count):
        place = int(torch.where(free, left, -1.0).argmax())
        places.append(place)
        free[place] = False
        if left[place] > least:
            column = gram[place] - rows[:step, place] @ rows[:step]
            rows[step] = torch.where(free, column, 0.0) / left[place].sqrt()
            rows[step, place] = left[place].sqrt()
            left = (left - rows[step].square()).clamp_min(0)
        left[place] = 0
        errors.append(left.sum())
    return torch.tensor(places, device=gram.device), rows, torch.stack(errors)
