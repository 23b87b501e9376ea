"""Best low-rank approximation in a metric on both sides of a weight."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_finite, check_matrix, check_rank, working_dtype
from .projection import project
from .svd import exact_svd
from .symmetric import check_square, eigh_clamped, numeric_cut


def two_sided(
    w: Tensor,
    left_gram: Tensor | None,
    right_gram: Tensor | None,
    rank: int,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Factors b (m, rank), a (rank, n) minimising ||A^(1/2) (W - b a) C^(1/2)||_F.

    w: (m, n). left_gram A: second moment of the output's gradient, (m, m), its diagonal (m,) or
    None for the identity; right_gram C likewise for the input, (n, n), (n,) or None. A is
    inverted only on its numeric range (n * eps of its largest eigenvalue). Outputs that A does
    not see take their least-squares share of the same rows a, and rank left over is spent on
    them, so that full rank is lossless.

    Raises ValueError for a rank outside 1..min(m, n), mismatched shapes or non-finite entries.
    """
    check_matrix(w, "w")
    check_rank(rank, (w.shape[0], w.shape[1]))
    out = working_dtype(w, left_gram, right_gram)
    w = w.to(out)
    if left_gram is None:
        return project(w, right_gram, rank, generator=generator)
    values, basis = _spectrum(left_gram.to(out), w.shape[0])
    seen = int((values > numeric_cut(values, w.shape[0])).sum())
    rotated = _turn(basis, w)  # (m, n), rows by the weight that A gives them
    scale = values[:seen].sqrt()[:, None]
    scaled, hidden = scale * rotated[:seen], rotated[seen:]
    a, b = w.new_zeros(0, w.shape[1]), w.new_zeros(seen, 0)
    inner = min(rank, seen)
    if inner:
        b, a = project(scaled, right_gram, inner, generator=generator)
        b = b / scale
    if seen < w.shape[0]:
        rows = _rows_with(a, hidden, rank, generator)  # (rank, n)
        a, b = rows, torch.cat([b @ (a @ rows.T), hidden @ rows.T])
    return _turn_back(basis, b), a


def _rows_with(a: Tensor, hidden: Tensor, rank: int, generator: torch.Generator | None) -> Tensor:
    """`rank` rows, orthonormal or zero: the row space of `a`, then what `hidden` has beyond it."""
    rows = a
    if a.shape[0]:
        _, s, vh, _ = exact_svd(a)
        rows = vh[s > max(a.shape) * torch.finfo(a.dtype).eps * s[0]]
    rest = min(rank - rows.shape[0], hidden.shape[0])
    if rest:
        left = (hidden - (hidden @ rows.T) @ rows).T  # (n, hidden)
        more, _ = project(left, None, rest, generator=generator)
        rows = torch.linalg.qr(torch.cat([rows.T, more.to(rows)], dim=1)).Q.T
    return torch.cat([rows, rows.new_zeros(rank - rows.shape[0], rows.shape[1])])


def _spectrum(gram: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (m,) descending, and eigenvectors (m, m), or (m,) an order if diagonal."""
    if gram.ndim == 1 and gram.shape[0] == side:
        check_finite(gram, "left_gram")
        if bool((gram < 0).any()):
            raise ValueError("left_gram has a negative entry; a second moment cannot")
        values, order = gram.sort(descending=True)
        return values, order
    check_square(gram, "left_gram")
    if gram.shape[0] != side:
        raise ValueError(f"left_gram must be ({side},) or ({side}, {side}): {tuple(gram.shape)}")
    return eigh_clamped(gram)


def _turn(basis: Tensor, w: Tensor) -> Tensor:
    return w[basis] if basis.ndim == 1 else basis.T @ w


def _turn_back(basis: Tensor, b: Tensor) -> Tensor:
    if basis.ndim == 2:
        return basis @ b
    turned = torch.empty_like(b)
    turned[basis] = b
    return turned
