"""Leaves that begin to train late."""

from __future__ import annotations

import math
from collections.abc import Collection

from .control import Control, Training


def lazy(names: Collection[str], share: float) -> Control:
    """Leaves with these last names ("a") train in the last `share` of the planned steps only."""

    def before_step(training: Training) -> None:
        if training.step >= math.floor((1 - share) * training.planned()):
            return
        for name, leaf in training.leaves().items():
            if name.rpartition(".")[2].rpartition("/")[2] in names:
                leaf.grad = None

    return Control(before_step=before_step)
