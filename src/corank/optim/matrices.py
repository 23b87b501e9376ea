"""Parameters as matrices, or stacks of them.

Two dimensions are taken as they are; more are flattened behind the first (filters of a
convolution), or, with the group's `stack`, taken as a stack of matrices (fused experts); with the
group's `heads`, the rows of a matrix are cut into that many matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def as_matrix(t: Tensor, group: Mapping[str, Any]) -> Tensor:
    """A parameter or its gradient as the matrix (..., m, n); `reshape` leads back."""
    heads = group.get("heads", 1)
    if t.ndim > 2 and not group["stack"]:
        t = t.flatten(1)
    if heads > 1 and t.ndim == 2:
        if t.shape[0] % heads:
            raise ValueError(f"heads={heads} does not divide the {t.shape[0]} rows of a weight")
        t = t.unflatten(0, (heads, -1))
    return t
