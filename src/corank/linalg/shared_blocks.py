"""A grid of blocks whose factors are shared along its rows and its columns."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_finite


def shared_blocks(
    a: Tensor, rank: int, steps: int = 300, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """u (b, p, r), s (b, c, r), v (c, q, r) with a[i, j] ~ u_i diag(s_ij) v_j^T.

    a: a grid of blocks (b, c, p, q). By preconditioned gradient descent, as in BLAST (2410.21262);
    that each step divides by its own least-squares system plus a shift that shrinks with the error,
    at a rate that falls from one to zero, is our reading. The best step is kept.

    Raises ValueError for a rank below one, other shapes or entries that are not finite.
    """
    check_finite(a, "a")
    if a.ndim != 4 or rank < 1:
        raise ValueError(
            f"a must be a grid of blocks and rank at least 1: {tuple(a.shape)}, {rank}"
        )
    (b, c, p, q), size = a.shape, a.norm()
    scale = (size / a.numel() ** 0.5 / rank**0.5).clamp_min(1e-30).sqrt()

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(a) * scale

    u, v = draw(b, p, rank), draw(c, q, rank)
    s = torch.rand(b, c, rank, generator=generator, dtype=torch.float64).to(a)
    rows, columns = a.transpose(1, 2).reshape(b, p, c * q), a.permute(1, 3, 0, 2).reshape(c, q, -1)
    best, least = (u, s, v), torch.inf
    for step in range(steps):
        rate = 1 - step / steps
        beside = (s[:, :, None] * v).reshape(b, c * q, rank)  # row i of blocks is u_i beside_i^T
        error = (rows - u @ beside.mT).norm()
        if error < least:
            best, least = (u, s, v), error
        shift = 0.1 * error / size.clamp_min(1e-30)
        gram = beside.mT @ beside
        u = u - rate * _solve(gram, u @ gram - rows @ beside, shift)
        beside = (s.transpose(0, 1)[:, :, None] * u).reshape(c, b * p, rank)
        gram = beside.mT @ beside
        v = v - rate * _solve(gram, v @ gram - columns @ beside, shift)
        gram = (u.mT @ u)[:, None] * (v.mT @ v)
        slope = (gram @ s[..., None])[..., 0] - ((a @ v) * u[:, None]).sum(2)
        s = s - rate * _solve(gram, slope[..., None, :], shift)[..., 0, :]
    return best


def _solve(gram: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """slope (gram + shift * its mean diagonal)^-1, over the last two axes."""
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    eye = torch.eye(gram.shape[-1]).to(gram)
    floor = torch.finfo(gram.dtype).eps
    return torch.linalg.solve(gram + (shift + floor) * mean.clamp_min(floor) * eye, slope.mT).mT
