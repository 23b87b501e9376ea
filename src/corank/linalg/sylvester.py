"""Matrices that two second moments ask for together."""

from __future__ import annotations

import torch
from torch import Tensor

from .symmetric import eigh_clamped


def shared_matrix(
    first: Tensor, right: Tensor | None, second: Tensor, left: Tensor | None
) -> Tensor:
    """The w (m, n) with least |(w - first) x|^2 + |(w^T - second^T) z|^2 on average.

    first, second: (m, n). right (n, n), left (m, m): second moments of x and z, None the identity.
    It solves w right + left w = first right + left second, by the eigenvectors of both; where no
    input tells, it is the mean of both matrices.
    """
    mean = (first + second) / 2
    rest = _times(left, second - mean) + _times(right, (first - mean).mT).mT
    (a, u), (b, v) = _eigen(left, first, 0), _eigen(right, first, 1)
    size = a[:, None] + b
    cut = torch.finfo(size.dtype).eps * max(size.shape) * size.max()
    turned = u.mT @ rest @ v
    turned = torch.where(size > cut, turned / size.clamp_min(cut), torch.zeros_like(turned))
    return mean + u @ turned @ v.mT


def _times(moment: Tensor | None, matrix: Tensor) -> Tensor:
    return matrix if moment is None else moment.to(matrix) @ matrix


def _eigen(moment: Tensor | None, like: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    side = like.shape[axis]
    if moment is None:
        eye = torch.eye(side).to(like)
        return eye.diagonal(), eye
    return eigh_clamped(moment.to(like))
