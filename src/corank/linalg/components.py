"""Principal components of a covariance: of all directions, or of the leading ones alone."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import gaussian
from .eigenspace import eigenspace_width, top_eigenspace
from .symmetric import symmetric_eigh

_EXACT_SIDE = 1024


def principal_components(covariance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues (count,), descending, and vectors (n, count), of (n, n)."""
    side = covariance.shape[0]
    width = eigenspace_width(count)
    if side > _EXACT_SIDE and width <= side // 2:
        sketch = gaussian(side, width, covariance, torch.Generator().manual_seed(0))
        found = top_eigenspace(
            lambda block: covariance @ block,
            covariance @ sketch,
            count,
            float(covariance.diagonal().sum(dtype=torch.float64)),
        )
        if found.converged:
            return found.values, found.vectors
    values, vectors = symmetric_eigh(covariance)
    return values[:count], vectors[:, :count]
