"""Singular value decomposition that either succeeds exactly or says that it did not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import DecompositionError, check_matrix, check_rank, working_dtype

logger = logging.getLogger(__name__)

_EXACT_SIDE = 128


class SVDResult(NamedTuple):
    """a ~ u @ diag(s) @ vh with s descending; `error` bounds the spectral norm of the residual."""

    u: Tensor  # (m, r)
    s: Tensor  # (r,)
    vh: Tensor  # (r, n)
    error: float


def fix_signs(u: Tensor, vh: Tensor) -> tuple[Tensor, Tensor]:
    """Flip paired vectors so that the largest |entry| of each column of `u` is positive."""
    sign = signs(u)
    return u * sign, vh * sign[:, None]


def signs(u: Tensor) -> Tensor:
    """Sign (r,) of the largest |entry| of each column of u (m, r); 1 where the column is zero."""
    low, high = u.aminmax(dim=0)
    return torch.where(-low > high, -1.0, 1.0).to(u.dtype)


def exact_svd(a: Tensor) -> SVDResult:
    """Thin SVD of a (m, n); half precisions are computed and returned in float32.

    Drivers are tried in order of speed: on CUDA gesvdj, gesvd, gesvda, then the CPU; on the CPU
    the default, then float64, then two symmetric eigendecompositions in float64. Each result is
    checked to be finite and each fallback is logged. `error` is 0.

    Raises ValueError or TypeError for bad input and DecompositionError if every driver fails.
    """
    check_matrix(a, "a")
    a = a.to(working_dtype(a))
    failures: list[str] = []
    for name, device, dtype, driver in _attempts(a):
        try:
            moved = a.to(device=device, dtype=dtype)
            if driver == "eigh":
                u, s, vh = _svd_by_eigh(moved)
            else:
                u, s, vh = torch.linalg.svd(moved, full_matrices=False, driver=driver)
        except torch.linalg.LinAlgError as failure:
            failures.append(f"{name}: {failure}")
            logger.warning("svd driver %s failed on shape %s", name, tuple(a.shape))
            continue
        if all(bool(torch.isfinite(t).all()) for t in (u, s, vh)):
            u, vh = fix_signs(u, vh)
            return SVDResult(u.to(a), s.to(a), vh.to(a), 0.0)
        failures.append(f"{name}: non-finite factors")
        logger.warning("svd driver %s gave non-finite factors", name)
    raise DecompositionError(
        f"SVD of a finite {tuple(a.shape)} matrix failed with every driver: {'; '.join(failures)}"
    )


def truncated_svd(a: Tensor, rank: int, generator: torch.Generator | None = None) -> SVDResult:
    """Best (or near-best) rank-`rank` SVD of a (m, n) by the cheaper algorithm.

    Exact if the smaller side is at most 128 or `rank` exceeds an eighth of it: four passes of
    randomised block Krylov then cost as much as one dense SVD. `error` is the next singular value
    when exact, an a-posteriori upper estimate otherwise. `generator` as in `randomized_svd`.

    Raises ValueError for a rank outside 1..min(m, n) or non-finite entries.
    """
    check_matrix(a, "a")
    check_rank(rank, (a.shape[0], a.shape[1]))
    side = min(a.shape)
    if side > _EXACT_SIDE and 8 * rank <= side:
        from .randomized import randomized_svd

        return randomized_svd(a, rank, generator=generator)
    u, s, vh, _ = exact_svd(a)
    error = float(s[rank]) if rank < side else 0.0
    return SVDResult(u[:, :rank], s[:rank], vh[:rank], error)


def _attempts(
    a: Tensor,
) -> Iterator[tuple[str, torch.device, torch.dtype, str | None]]:
    cpu = torch.device("cpu")
    if a.is_cuda:
        for driver in ("gesvdj", "gesvd", "gesvda"):
            yield driver, a.device, a.dtype, driver
    else:
        yield "gesdd", cpu, a.dtype, None
    yield "gesdd in float64", cpu, torch.float64, None
    yield "eigh in float64", cpu, torch.float64, "eigh"


def _svd_by_eigh(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD through the Gram of the smaller side, with the other side restored by QR."""
    if a.shape[0] < a.shape[1]:
        u, s, vh = _svd_by_eigh(a.T)
        return vh.T, s, u.T
    _, v = torch.linalg.eigh(a.T @ a)  # ascending
    v = v.flip(1)
    u, r = torch.linalg.qr(a @ v)  # nearly diagonal r: its off-diagonal is rounding
    sign = torch.where(r.diagonal() < 0, -1.0, 1.0).to(a.dtype)
    s, order = (r.diagonal() * sign).sort(descending=True)
    u, v = (u * sign)[:, order], v[:, order]
    residual = torch.linalg.matrix_norm((u * s) @ v.T - a)
    if not residual <= 1e-6 * torch.linalg.matrix_norm(a):
        raise torch.linalg.LinAlgError(f"residual {float(residual):.3g} after eigh")
    return u, s, v.T
