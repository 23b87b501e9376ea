"""Interpolative decomposition: some columns of a matrix, and all others made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_matrix, working_dtype
from .triangular import pivoted_columns


def interpolative(a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Columns (rank,) of a (m, n) and t (rank, n - rank), the others being about a[:, columns] @ t.

    Columns are those of QR with column pivoting, in the order chosen; the others come in their own
    order, and t is their least squares fit (Cheng, Gimbutas, Martinsson and Rokhlin, SIAM J. Sci.
    Comput. 26 (2005), 1389-1404). Raises ValueError for a rank outside 1..min(m, n).
    """
    columns = pivoted_columns(a, rank)
    wide = a.to(working_dtype(a))
    return columns, torch.linalg.pinv(wide[:, columns]) @ wide[:, others(columns, a.shape[1])]


def interpolation_errors(a: Tensor) -> Tensor:
    """Squared Frobenius errors (k + 1,) of `interpolative` at ranks 0 to k = min(m, n)."""
    check_matrix(a, "a")
    columns = pivoted_columns(a, min(a.shape))
    ordered = a.to(working_dtype(a))[:, torch.cat([columns, others(columns, a.shape[1])])]
    energies = torch.linalg.qr(ordered, mode="r").R.square().sum(1)
    tails = energies.flip(0).cumsum(0).flip(0)
    return torch.cat([tails, tails.new_zeros(1)])


def others(chosen: Tensor, count: int) -> Tensor:
    """The indices below `count` that are not among `chosen`, ascending."""
    left = torch.ones(count, dtype=torch.bool, device=chosen.device)
    left[chosen] = False
    return left.nonzero().squeeze(1)
