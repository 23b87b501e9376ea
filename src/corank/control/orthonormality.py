"""How far factors are from having orthonormal columns and rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators import LowRank
from .control import Training
from .whole import whole


def orthonormality(columns: Tensor) -> Tensor:
    """||M.T M - I||_F of M (n, r): 0 where its columns are orthonormal."""
    columns = whole(columns)
    gram = columns.mT @ columns
    eye = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    return torch.linalg.matrix_norm(gram - eye)


def trained_low_ranks(training: Training) -> list[LowRank]:
    """The LowRanks of an adapter whose factors both train."""
    return [
        part
        for op in training.operators.values()
        for part in op.modules()
        if isinstance(part, LowRank) and part.b.requires_grad and part.a.requires_grad
    ]


def peak_learning_rate(training: Training) -> float:
    """The largest learning rate of the optimiser's groups, before any schedule.

    Raises ValueError where no optimiser is attached.
    """
    if training.optimizer is None:
        raise ValueError(
            "this penalty is relative to the learning rate: attach the controller to the optimizer"
        )
    return max(float(g.get("initial_lr", g["lr"])) for g in training.optimizer.param_groups)
