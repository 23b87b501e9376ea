"""A dense weight that guides a structured one, and fades out."""

from __future__ import annotations

import math

from ..operators import Scaled, Sum
from .control import Training
from .replacing import replace


def fade_out(training: Training, share: float) -> None:
    """Set the guide's ratio by a cosine over `share` of the planned steps; then drop it.

    The operators are Sum((1 - ratio) * structured, ratio * guide).
    """
    last = share * training.planned()
    ratio = (1 + math.cos(math.pi * training.step / last)) / 2 if training.step < last else 0.0
    training.memory["ratio"] = ratio
    if ratio:
        faded(training)
        return
    for site, op in list(training.operators.items()):
        if isinstance(op, Sum):
            structured, _ = op.operators
            assert isinstance(structured, Scaled)
            replace(training, site, structured.operator)


def faded(training: Training) -> None:
    """Let the guides act as strongly as is remembered."""
    for op in training.operators.values():
        if isinstance(op, Sum):
            structured, guide = op.operators
            assert isinstance(structured, Scaled)
            assert isinstance(guide, Scaled)
            structured.scale, guide.scale = 1 - training.memory["ratio"], training.memory["ratio"]
