"""Keeping the vectors of a chain of reflections apart."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators import Reflections
from .control import Control, Training
from .orthonormality import orthonormality
from .whole import whole


def reflections_apart(weight: float) -> Control:
    """Penalise weight * |I - U.T U|, U the unit vectors of each chain of reflections."""

    def penalty(training: Training) -> Tensor:
        terms = []
        for op in training.operators.values():
            for chain in op.modules():
                if isinstance(chain, Reflections):
                    u = whole(chain.u)
                    unit = u / torch.linalg.vector_norm(u, dim=1, keepdim=True)
                    terms.append(orthonormality(unit.mT))
        return weight * torch.stack(terms).sum()

    return Control(penalty=penalty)
