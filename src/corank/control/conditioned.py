"""U S V with orthonormal U and V, and an S whose condition stays small, by Riemannian steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..operators import Dense, LowRank, Operator, Product
from .control import Training


def factors(op: Operator) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """U (out, r), S (r, r) and V (r, in) of a Product(LowRank(U, S), Dense(V))."""
    assert isinstance(op, Product)
    left, right = op.operators
    assert isinstance(left, LowRank)
    return left.b, left.a, matrix(right)


def matrix(op: Operator) -> nn.Parameter:
    """The leaf of a Dense."""
    assert isinstance(op, Dense)
    return op.weight


def _all(training: Training) -> Iterator[tuple[nn.Parameter, nn.Parameter, nn.Parameter]]:
    for op in training.operators.values():
        yield factors(op)


def to_tangent(training: Training) -> None:
    """Before a step: U's gradient G becomes (I - U U^T) G (S S^T)^-1, and V's its like.

    They are then dL/dW V S^-1 and its like on the part of the space that U (V) is not in: the step
    that W itself would take there.
    """
    for u, s, v in _all(training):
        if u.grad is not None:
            u.grad = _to_tangent(u, u.grad, s)
        if v.grad is not None:
            v.grad = _to_tangent(v.mT, v.grad.mT, s.mT).mT.contiguous()


def _to_tangent(x: Tensor, gradient: Tensor, core: Tensor) -> Tensor:
    base, moved, middle = wide(x), wide(gradient), wide(core)
    apart = moved - base @ (base.mT @ moved)
    solved = torch.linalg.solve(middle @ middle.mT, apart.mT).mT
    return solved.to(gradient.dtype).contiguous()


def wide(x: Tensor) -> Tensor:
    """x in float32 if it is narrower: decompositions know no less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def to_manifold(training: Training, tau: float) -> None:
    """After a step: U and V become orthonormal again, and S's condition at most 1 + tau."""
    for u, s, v in _all(training):
        u.copy_(orthonormal(u))
        v.copy_(orthonormal(v.mT).mT)
        s.copy_(conditioned(s, tau))


def orthonormal(x: Tensor) -> Tensor:
    """The Q of x (p, r) whose R has a positive diagonal: it turns as little as x does."""
    q, r = torch.linalg.qr(wide(x))
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q.dtype)


def conditioned(s: Tensor, tau: float) -> Tensor:
    """s with its singular values within mean (1 -+ tau / (2 + tau)), so 1 + tau apart at most."""
    p, values, q = torch.linalg.svd(wide(s))
    mean, share = values.mean(), tau / (2 + tau)
    return p * values.clamp(mean * (1 - share), mean * (1 + share)) @ q
