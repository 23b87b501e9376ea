"""Weights that are cut back to low rank every so often while they train in full."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import nn

from ..linalg import exact_svd, rank_by_energy
from ..operators import Dense
from .control import Control, Training


def truncating(every: int, energy: float, weight: float) -> Control:
    """Every `every` steps, and at the end, each weight loses its smallest singular values.

    What stays holds the share `energy` of the squares. The gradient of the step after has
    weight * u vh added, of the triples that stay: a subgradient of the nuclear norm.
    """

    def before_step(training: Training) -> None:
        for site, leaf in _weights(training):
            found = training.memory.pop(f"subgradient:{site}", None)
            if found is not None and leaf.grad is not None:
                leaf.grad.add_(found.to(leaf.grad), alpha=weight)

    def after_step(training: Training) -> None:
        if training.step % every and training.step != training.total:
            return
        for site, leaf in _weights(training):
            u, s, vh, _ = exact_svd(leaf.data)
            rank = rank_by_energy(s, energy)
            leaf.copy_(u[:, :rank] * s[:rank] @ vh[:rank])
            if weight:
                training.memory[f"subgradient:{site}"] = u[:, :rank] @ vh[:rank]

    return Control(before_step=before_step, after_step=after_step)


def _weights(training: Training) -> Iterator[tuple[str, nn.Parameter]]:
    for site, op in training.operators.items():
        yield site, cast("Dense", op).weight
