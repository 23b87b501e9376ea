"""What methods add to the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..losses import norm_loss
from .control import Training
from .orthonormality import orthonormality
from .whole import whole

Penalty = Callable[[Training], Tensor]


def orthogonality(weight: float) -> Penalty:
    """weight * the mean over all factors of |a a^T - I| and |b^T b - I| (Frobenius, not squared).

    Masked ranks are left out.
    """

    def penalty(training: Training) -> Tensor:
        distances = []
        for op in training.low_ranks().values():
            a, b = whole(op.a), whole(op.b)
            if op.mask is not None:
                a, b = a[op.mask], b[:, op.mask]
            distances += [orthonormality(a.mT), orthonormality(b)]
        return weight * torch.stack(distances).mean()

    return penalty


def sparse_gates(weight: float) -> Penalty:
    """weight * the mean of |gate| over the gates of all ranks that are not masked."""

    def penalty(training: Training) -> Tensor:
        return weight * torch.cat(_gates(training)).abs().mean()

    return penalty


def binary_gates(weight: float) -> Penalty:
    """weight * the mean of gate^2 (1 - gate)^2: zero where every gate is 0 or 1."""

    def penalty(training: Training) -> Tensor:
        gates = torch.cat(_gates(training))
        return weight * (gates * (1 - gates)).square().mean()

    return penalty


def frobenius_decay(weight: float) -> Penalty:
    """weight / 2 * |b a|^2 (Frobenius), summed over the products.

    Its gradient to b is weight * b a a^T and to a weight * b^T b a; b a is not written down.
    """

    def penalty(training: Training) -> Tensor:
        sizes = []
        for op in training.low_ranks().values():
            b, a = (whole(factor) for factor in op.factors())
            sizes.append(((b.mT @ b) * (a @ a.mT)).sum())
        return weight / 2 * torch.stack(sizes).sum()

    return penalty


def nuclear_norm(weight: float, matrices: Callable[[Training], Iterable[Tensor]]) -> Penalty:
    """weight * the sum of the singular values of all matrices."""

    def penalty(training: Training) -> Tensor:
        norms = [torch.linalg.matrix_norm(whole(m), "nuc") for m in matrices(training)]
        return weight * torch.stack(norms).sum()

    return penalty


def unit_rows(weight: float) -> Penalty:
    """weight * the sum over all rows of all matrices of (1 - |row|)^2."""

    def penalty(training: Training) -> Tensor:
        return weight * norm_loss(whole(op.dense()) for op in training.operators.values())

    return penalty


def _gates(training: Training) -> list[Tensor]:
    return [
        whole(op.gate) if op.mask is None else whole(op.gate)[op.mask]
        for op in training.low_ranks().values()
        if op.gate is not None
    ]
