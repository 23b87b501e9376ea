"""Bases that learn: a gradient step on how well they hold the gradient."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from .bases import Due, Rank, randomized
from .conjugate import Basis
from .inner import adam
from .refreshing import require_at_least
from .transform import Now, State


def _slope(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = at.detach().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]


def online_pca(rank: Rank, rate: float, orthogonality: float) -> Basis:
    """P takes an Adam step each time on norm(P Pᵀ g - g)² + orthogonality * norm(Pᵀ P - I)².

    g is the gradient over its norm, and the step's size `rate` times the learning rate. The first
    P holds the first gradient's leading singular vectors.
    """
    first, learning = randomized(rank, lambda state, now: True), adam("basis_avg")

    def start(like: Tensor) -> State:
        begun = first.start(like)
        return begun | learning.start(begun["basis"])

    def refresh(x: Tensor, state: State, now: Now) -> State:
        if now.step == 1:
            return first.refresh(x, state, now)
        g = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-30)
        p = state["basis"].to(x.dtype)
        eye = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)

        def loss(p: Tensor) -> Tensor:
            missed, bent = (p @ (p.mT @ g) - g).square(), (p.mT @ p - eye).square()
            return missed.sum() + orthogonality * bent.sum()

        usual = replace(now, step=now.step - 1, options={"betas": (0.9, 0.999), "eps": 1e-8})
        direction, state = learning.update(_slope(loss, p), state, usual)
        return state | {"basis": p - rate * float(now.options["lr"]) * direction}

    def company(state: State, now: Now) -> Hashable:
        return None if now.step == 1 else 0

    return replace(first, start=start, refresh=refresh, company=company)


def correlated(rank: Rank, due: Due, anew: int, rate: float = 0.1) -> Basis:
    """P takes one step on mse(P Pᵀ X, X) * (1 - mean cosine of the columns of P M and X).

    M is the first moment in the small space. The slope is cut to norm 1. Every `anew`-th refresh
    is subspace iteration from the last P.
    """
    require_at_least(1, anew=anew)
    fresh = randomized(rank, due)

    def refresh(x: Tensor, state: State, now: Now) -> State:
        count = 0 if now.step == 1 else state["refreshes"] + 1
        state = state | {"refreshes": count}
        if count % anew == 0:
            return fresh.refresh(x, state, now)
        p, moment = state["basis"].to(x.dtype), state["exp_avg"].to(x.dtype)

        def loss(p: Tensor) -> Tensor:
            alike = cosine_similarity(p @ moment, x, dim=-2).mean(-1)
            missed = (p @ (p.mT @ x) - x).square().mean((-2, -1))
            return (missed * (1 - alike)).sum()

        slope = _slope(loss, p)
        slope = slope / slope.norm(dim=(-2, -1), keepdim=True).clamp(min=1.0)
        return state | {"basis": p - rate * slope}

    return replace(fresh, start=lambda like: fresh.start(like) | {"refreshes": 0}, refresh=refresh)
