"""Rows that stand for a matrix, chosen from an orthonormal basis of its columns."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_matrix
from .triangular import pivoted_columns


def deim(basis: Tensor) -> Tensor:
    """Indices (r,) of rows of `basis` (m, r), by the discrete empirical interpolation method.

    Each is where the next column is worst interpolated from the rows before (Sorensen and Embree,
    SIAM J. Sci. Comput. 38 (2016), algorithm 1), so those of fewer columns are the first of them.
    Raises ValueError where the columns are dependent, or more than the rows.
    """
    check_matrix(basis, "basis")
    if basis.shape[1] > basis.shape[0]:
        raise ValueError(f"basis has {basis.shape[1]} columns and only {basis.shape[0]} rows")
    # Eliminating the chosen rows column by column gives the interpolation residuals in turn.
    rest = basis.clone()
    chosen = []
    for j in range(basis.shape[1]):
        best = int(rest[:, j].abs().argmax())
        if float(rest[best, j]) == 0:
            raise ValueError(f"basis: column {j} depends on those before it")
        chosen.append(best)
        later = rest[best, j + 1 :] / rest[best, j]
        rest[:, j + 1 :] -= torch.outer(rest[:, j], later)
    return torch.tensor(chosen, device=basis.device)


def by_leverage(basis: Tensor) -> Tensor:
    """Indices (r,) of the longest rows of `basis` (m, r): those of the largest leverage scores."""
    check_matrix(basis, "basis")
    return basis.square().sum(1).topk(basis.shape[1]).indices


def by_volume(basis: Tensor) -> Tensor:
    """Indices (r,) of rows of `basis` (m, r) that span much volume: QR with pivoted columns."""
    check_matrix(basis, "basis")
    return pivoted_columns(basis.mT, basis.shape[1])


#: How rows are chosen from a basis.
SELECTIONS = {"deim": deim, "leverage": by_leverage, "volume": by_volume}
