"""A matrix as sparse combinations of a few rows, the atoms of a dictionary."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_matrix, check_rank
from .svd import exact_svd

#: Numbers that a pursuit holds of its rows at a time: more of them leave the processor's cache.
_AT_ONCE = 1 << 20


def orthonormal_dictionary(
    a: Tensor, atoms: int, nonzeros: int, rounds: int = 20
) -> tuple[Tensor, Tensor]:
    """Codes s (m, atoms), `nonzeros` in a row, and atoms d (atoms, n), for a (m, n) ~ s d.

    The atoms are orthonormal rows. From the leading right singular vectors on, codes and atoms are
    fitted to each other in turn: s keeps the largest of a d^T in each row, and d is the orthonormal
    factor of s^T a (Procrustes), each the exact minimiser of |a - s d|, which so never grows.

    Raises ValueError for atoms outside 1..min(m, n) or nonzeros outside 1..atoms.
    """
    _check(a, atoms, nonzeros)
    d = exact_svd(a).vh[:atoms]
    for _ in range(rounds):
        u, _, vh, _ = exact_svd(_sparse_codes(a, d, nonzeros).mT @ a)
        d = u @ vh
    return _sparse_codes(a, d, nonzeros), d


def learned_dictionary(
    a: Tensor, atoms: int, nonzeros: int, rounds: int = 10
) -> tuple[Tensor, Tensor]:
    """Codes s (m, atoms), `nonzeros` in a row at most, and atoms d (atoms, n), for a (m, n) ~ s d.

    The atoms are rows of unit length, started at the leading right singular vectors. In turn, codes
    are found by orthogonal matching pursuit, and each atom is fitted to the rows that use it, with
    their codes for it (K-SVD, Aharon et al. 2006, by one power step: Rubinstein et al. 2008). The
    best round is kept.

    Raises ValueError for atoms outside 1..min(m, n) or nonzeros outside 1..atoms.
    """
    _check(a, atoms, nonzeros)
    d = exact_svd(a).vh[:atoms].clone()
    s = matching_pursuit(a, d, nonzeros)
    best, least = (s, d), (a - s @ d).square().sum()
    for _ in range(rounds):
        _fit_atoms(a, s := s.clone(), d := d.clone())
        fitted = (a - s @ d).square().sum()
        again = matching_pursuit(a, d, nonzeros)
        if (error := (a - again @ d).square().sum()) < fitted:
            s, fitted = again, error
        if fitted < least:
            best, least = (s, d), fitted
    return best


def matching_pursuit(a: Tensor, d: Tensor, nonzeros: int) -> Tensor:
    """Codes (m, k), at most `nonzeros` in a row, of a (m, n) over atoms d (k, n) of unit length.

    Orthogonal matching pursuit: the atom that the residual is most along is added, and the codes
    of all chosen are fitted again (Pati et al. 1993), for many rows at once.
    """
    gram, seen = d @ d.mT, a @ d.mT
    rows = max(1, _AT_ONCE // (nonzeros * len(d)))
    return torch.cat([_pursue(gram, part, nonzeros) for part in seen.split(rows)])


def _pursue(gram: Tensor, seen: Tensor, nonzeros: int) -> Tensor:
    """Pursuit by the atoms' products with each other and with the rows, `seen` (m, k).

    Chosen atoms are made orthonormal in turn (Gram-Schmidt); a direction is known by its products
    with all atoms, so a step takes what it explains off the residual's products with them.
    """
    count, atoms = seen.shape
    along, taken = seen.clone(), torch.zeros_like(seen, dtype=torch.bool)
    directions = seen.new_zeros(count, nonzeros, atoms)
    triangle = seen.new_zeros(count, nonzeros, nonzeros)  # the atoms in those directions
    parts = seen.new_zeros(count, nonzeros)  # the rows in them
    chosen = torch.zeros(count, nonzeros, dtype=torch.long, device=seen.device)
    least = torch.finfo(seen.dtype).eps
    for t in range(nonzeros):
        new = along.abs().masked_fill(taken, -1.0).argmax(1)
        taken.scatter_(1, new[:, None], True)
        before = directions[:, :t]
        shares = before.gather(2, new[:, None, None].expand(-1, t, 1))[:, :, 0]
        length = (gram.diagonal()[new] - shares.square().sum(1)).clamp_min(least).sqrt()
        rest = gram[new] - (shares[:, None] @ before)[:, 0]
        directions[:, t] = rest / length[:, None]
        parts[:, t] = along.gather(1, new[:, None])[:, 0] / length
        along -= parts[:, t, None] * directions[:, t]
        triangle[:, :t, t], triangle[:, t, t] = shares, length
        chosen[:, t] = new
    codes = torch.linalg.solve_triangular(triangle, parts[:, :, None], upper=True)[:, :, 0]
    return torch.zeros_like(seen).scatter(1, chosen, codes)


def _fit_atoms(a: Tensor, s: Tensor, d: Tensor) -> None:
    """Fit each atom and its codes, in place, to what the others leave of the rows that use it."""
    rest = a - s @ d
    for j in range(len(d)):
        users = s[:, j].nonzero()[:, 0]
        if len(users) == 0:
            continue
        own = rest[users] + torch.outer(s[users, j], d[j])
        atom = s[users, j] @ own
        if float(atom.norm()) == 0:
            continue
        d[j] = atom / atom.norm()
        s[users, j] = own @ d[j]
        rest[users] = own - torch.outer(s[users, j], d[j])


def _check(a: Tensor, atoms: int, nonzeros: int) -> None:
    check_matrix(a, "a")
    check_rank(atoms, (a.shape[0], a.shape[1]))
    if not 1 <= nonzeros <= atoms:
        raise ValueError(f"nonzeros={nonzeros} is outside 1 to {atoms}, the atoms")


def _sparse_codes(a: Tensor, d: Tensor, nonzeros: int) -> Tensor:
    codes = a @ d.mT
    kept = codes.abs().topk(nonzeros, dim=1).indices
    return torch.zeros_like(codes).scatter(1, kept, codes.gather(1, kept))
