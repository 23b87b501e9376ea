"""The top subspace in a metric of any condition, resolved level by level."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import gaussian
from .leading import Method, leading
from .metric import deflate, extend, in_range, inner, weigh
from .symmetric import BLOCK

DOUBLE_SIDE = 512
_LEVELS = 8


def solve_levels(
    core: Tensor, gram: Tensor | None, rank: int, method: Method, generator: torch.Generator
) -> Tensor:
    """Orthonormal (p, rank) for core (p, n) with p <= n, level by level, in float64 if small.

    One eigendecomposition resolves eigenvalues down to rounding of its largest. What lies below is
    resolved again on the deflated core, at its own scale; what C does not see, in the identity.
    """
    noise = 0.0 if gram is None else torch.finfo(gram.dtype).eps
    if core.shape[0] <= DOUBLE_SIDE:
        core = core.double()
    gram = None if gram is None else in_range(gram.to(core))[0]
    found = core.new_zeros(core.shape[0], 0)
    for metric in (gram, None):
        for _ in range(_LEVELS):
            missing = rank - found.shape[1]
            residual = deflate(core, found) if missing else core
            if missing == 0 or _is_rounding(residual, core):
                break
            values, vectors, scale = leading(residual, metric, missing, method, generator)
            kept = int((values > _cut(core, residual, metric, noise, scale)).sum())
            if kept == 0:
                break
            found = extend(found, vectors[:, : min(kept, missing)])
    missing = rank - found.shape[1]
    if missing:  # W itself has no further direction
        drawn = torch.linalg.qr(gaussian(core.shape[0], missing, core, generator)).Q
        found = extend(found, drawn)
    return found


def _cut(core: Tensor, residual: Tensor, gram: Tensor | None, noise: float, scale: float) -> float:
    """Size under which eigenvalues of residual C residual^T are rounding.

    Three sources: the eigendecomposition, the deflation, and the entries of C themselves, whose
    relative rounding `noise` acts like a random symmetric matrix of size sqrt(C_ii C_jj).
    """
    side = core.shape[0]
    eps = torch.finfo(core.dtype).eps
    spread = gram.diagonal() if gram is not None and gram.ndim == 2 else gram

    def spread_energy(a: Tensor) -> float:
        return sum(inner(weigh(rows, spread), rows) for rows in a.split(BLOCK))

    whole = spread_energy(core)
    deflation = (side * eps) ** 2 * whole
    entries = noise * (whole if residual is core else spread_energy(residual)) / side**0.5
    return max(32 * eps * scale, deflation, entries)


def _is_rounding(residual: Tensor, core: Tensor) -> bool:
    norm = torch.linalg.vector_norm(core)
    limit = core.shape[0] * torch.finfo(core.dtype).eps * norm
    return bool((norm if residual is core else torch.linalg.vector_norm(residual)) <= limit)
