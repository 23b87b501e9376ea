"""Freezing for a while the vectors that have moved the most."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .control import Control, Training

Vectors = Callable[[Training], Mapping[str, Tensor]]


def vector_freezing(
    vectors: Vectors, warmup: int, interval: int, count: int, smoothing: float
) -> Control:
    """From step `warmup` on, every `interval` steps, the `count` strongest vectors stop until the
    next time; at least one goes on.

    The strength of a vector v is the mean of |v - v0| over its entries, v0 being its start,
    averaged over the steps with weight `smoothing` on the past.
    """

    def start(training: Training) -> None:
        training.memory["frozen"] = []
        for name, vector in vectors(training).items():
            training.memory[f"start {name}"] = vector.detach().clone()
            training.memory[f"strength {name}"] = 0.0

    def before_step(training: Training) -> None:
        there = vectors(training)
        for name in training.memory["frozen"]:
            there[name].grad = None

    def after_step(training: Training) -> None:
        memory, there = training.memory, vectors(training)
        moved = [(v - memory[f"start {name}"]).abs().mean() for name, v in there.items()]
        for name, distance in zip(there, torch.stack(moved).tolist(), strict=True):
            past = memory[f"strength {name}"]
            memory[f"strength {name}"] = smoothing * past + (1 - smoothing) * distance
        late = training.step - warmup
        if late >= 0 and late % interval == 0:
            order = sorted(there, key=lambda name: memory[f"strength {name}"], reverse=True)
            memory["frozen"] = order[: min(count, len(order) - 1)]

    return Control(start=start, before_step=before_step, after_step=after_step)
