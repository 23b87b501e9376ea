"""A matrix as sparse combinations of a few orthonormal rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_matrix, check_rank
from .svd import exact_svd


def orthonormal_dictionary(
    a: Tensor, atoms: int, nonzeros: int, rounds: int = 20
) -> tuple[Tensor, Tensor]:
    """Codes s (m, atoms), `nonzeros` in a row, and atoms d (atoms, n), for a (m, n) ~ s d.

    The atoms are orthonormal rows. From the leading right singular vectors on, codes and atoms are
    fitted to each other in turn: s keeps the largest of a d^T in each row, and d is the orthonormal
    factor of s^T a (Procrustes), each the exact minimiser of |a - s d|, which so never grows.

    Raises ValueError for atoms outside 1..min(m, n) or nonzeros outside 1..atoms.
    """
    check_matrix(a, "a")
    check_rank(atoms, (a.shape[0], a.shape[1]))
    if not 1 <= nonzeros <= atoms:
        raise ValueError(f"nonzeros={nonzeros} is outside 1 to {atoms}, the atoms")
    d = exact_svd(a).vh[:atoms]
    for _ in range(rounds):
        u, _, vh, _ = exact_svd(_sparse_codes(a, d, nonzeros).mT @ a)
        d = u @ vh
    return _sparse_codes(a, d, nonzeros), d


def _sparse_codes(a: Tensor, d: Tensor, nonzeros: int) -> Tensor:
    codes = a @ d.mT
    kept = codes.abs().topk(nonzeros, dim=1).indices
    return torch.zeros_like(codes).scatter(1, kept, codes.gather(1, kept))
