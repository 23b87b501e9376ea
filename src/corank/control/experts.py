"""Gradients preconditioned per expert, and loads balanced without a loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..operators import Routed
from .control import Control, Training


def riemannian(damping: float) -> Control:
    """Before each step, per expert: grad a <- (b^T b + damping)^-1 grad a, grad b <- grad b
    (a a^T + damping)^-1, both with the factors as they are before the step."""

    def precondition(training: Training) -> None:
        for op in routed(training):
            if op.a.grad is None or op.b.grad is None:
                continue
            shape, count = op.a.shape, op.experts
            eye = damping * torch.eye(shape[0] // count, dtype=op.a.dtype, device=op.a.device)
            a, b = op.a.unflatten(0, (count, -1)), op.b.mT.unflatten(0, (count, -1))  # (n, r, .)
            to_a, to_b = op.a.grad.view_as(a), op.b.grad.mT.reshape_as(b)
            to_a = torch.linalg.solve(b @ b.mT + eye, to_a)
            to_b = torch.linalg.solve(a @ a.mT + eye, to_b)
            op.a.grad.copy_(to_a.reshape(shape))
            op.b.grad.copy_(to_b.reshape(op.b.shape[::-1]).mT)

    return Control(before_step=precondition)


def balanced(rate: float) -> Control:
    """After each step, the bias of experts chosen less than the mean rises by `rate`, that of
    those chosen more falls, and counting starts anew."""

    def balance(training: Training) -> None:
        for op in routed(training):
            if op.bias is not None:
                op.bias.data.add_(rate * (op.load.mean() - op.load).sign())
                op.load.zero_()

    return Control(after_step=balance)


def routed(training: Training) -> Iterator[Routed]:
    """The routed experts among an adapter's operators."""
    for op in training.operators.values():
        yield from (part for part in op.modules() if isinstance(part, Routed))
