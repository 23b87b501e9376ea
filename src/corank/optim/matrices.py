"""Parameters as the matrices (..., a, b), a <= b, whose shorter side is projected.

Two dimensions are taken as they are; more are flattened behind the first (filters of a
convolution), or, with the group's `stack`, taken as a stack of matrices (fused experts); with the
group's `heads`, the rows of a matrix are cut into that many matrices. A matrix with as many rows
as columns or more is transposed: so the gradients of tall and square ones are projected from the
right, of wide ones from the left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def _cut(t: Tensor, group: Mapping[str, Any]) -> Tensor:
    heads = group.get("heads", 1)
    if t.ndim > 2 and not group["stack"]:
        t = t.flatten(1)
    if heads > 1 and t.ndim == 2:
        if t.shape[0] % heads:
            raise ValueError(f"heads={heads} does not divide the {t.shape[0]} rows of a weight")
        t = t.unflatten(0, (heads, -1))
    return t


def is_turned(p: Tensor, group: Mapping[str, Any]) -> bool:
    """Whether the parameter's matrix is transposed to have its shorter side first."""
    shape = _cut(p, group).shape
    return shape[-2] >= shape[-1]


def as_matrix(t: Tensor, group: Mapping[str, Any]) -> Tensor:
    """A parameter or its gradient as the matrix (..., a, b)."""
    cut = _cut(t, group)
    return cut.mT if cut.shape[-2] >= cut.shape[-1] else cut


def as_parameter(x: Tensor, p: Tensor, group: Mapping[str, Any]) -> Tensor:
    """A matrix (..., a, b) in the parameter's shape."""
    return (x.mT if is_turned(p, group) else x).reshape(p.shape)
