"""Matrices that stay orthogonal while they train."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ..operators import Dense, Kron
from .control import Control, Training


def orthogonal_krons() -> Control:
    """Keep the trained square factors of every Kronecker product orthogonal.

    The gradient is replaced by its part along the manifold, X (X.T G - G.T X) / 2, and after the
    step each factor goes to the nearest orthogonal matrix, X (X.T X)^-1/2.
    """

    def before_step(training: Training) -> None:
        for x in _factors(training):
            if x.grad is not None:
                met = x.mT @ x.grad
                x.grad = x @ (met - met.mT) / 2

    def after_step(training: Training) -> None:
        for x in _factors(training):
            u, _, vh = torch.linalg.svd(x)
            x.copy_(u @ vh)

    return Control(before_step=before_step, after_step=after_step)


def _factors(training: Training) -> Iterator[nn.Parameter]:
    seen: set[int] = set()
    for op in training.operators.values():
        for kron in op.modules():
            for part in kron.modules() if isinstance(kron, Kron) else ():
                if isinstance(part, Dense) and part.weight.requires_grad and id(part) not in seen:
                    seen.add(id(part))
                    yield part.weight
