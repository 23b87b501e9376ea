"""When a basis is refreshed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

import torch
from torch import Tensor

from .conjugate import Basis
from .transform import Now, State


def require_at_least(least: float, **values: float) -> None:
    """Raise ValueError, naming the value, where one is less than `least`."""
    for name, value in values.items():
        if isinstance(value, bool) or not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value!r}")


def every(steps: int, stagger: bool = True) -> Callable[[State, Now], bool]:
    """Each `steps` steps; staggered, the parameters take turns, so that no one step does it all."""
    require_at_least(1, every=steps)

    def due(state: State, now: Now) -> bool:
        ahead = now.slot * steps // now.slots if stagger else 0
        return (now.step - 1 + ahead) % steps == 0

    return due


def unless(due: Callable[[State, Now], bool]) -> Callable[[State, Now], Hashable]:
    """The company of a basis that is sought for one parameter at a time: alone when it is due."""

    def company(state: State, now: Now) -> Hashable:
        return None if now.step == 1 or due(state, now) else 0

    return company


def lazily(basis: Basis, threshold: float, history: int = 5) -> Basis:
    """`basis` refreshed half as often whenever it has stopped moving.

    After a refresh, if the last `history` cosines between its leading vector before and after
    average `threshold` or more (signs aside), the parameter skips every other refresh from then on.
    """

    def start(like: Tensor) -> State:
        return basis.start(like) | {"seen": 0, "skip": 1, "cosines": torch.zeros(history)}

    def due(state: State, now: Now) -> bool:
        if not basis.due(state, now):
            return False
        state["seen"] += 1
        return bool(state["seen"] % state["skip"] == 0)

    def refresh(x: Tensor, state: State, now: Now) -> State:
        e = x.new_zeros(*x.shape[:-2], basis.rank(x.shape[-2]), 1)
        e[..., 0, 0] = 1
        before = basis.frame(x, state, now).up(e) if now.step > 1 else None
        state = basis.refresh(x, state, now)
        if before is None:
            return state
        after = basis.frame(x, state, now).up(e)
        cosine = torch.nn.functional.cosine_similarity(before, after, dim=-2).abs().mean().cpu()
        cosines = torch.cat([state["cosines"][1:], cosine.reshape(1).float()])
        if bool((cosines > 0).all()) and float(cosines.mean()) >= threshold:
            return state | {"skip": 2 * state["skip"], "seen": 0, "cosines": torch.zeros(history)}
        return state | {"cosines": cosines}

    return replace(basis, start=start, due=due, refresh=refresh)


def shared(basis: Basis) -> Basis:
    """One frame for a whole stack of matrices (s, a, b): that of the matrices side by side."""

    def joined(x: Tensor) -> Tensor:
        return x if x.ndim == 2 else x.movedim(-2, 0).flatten(1)

    return replace(
        basis,
        start=lambda like: basis.start(joined(like)),
        refresh=lambda x, state, now: basis.refresh(joined(x), state, now),
    )


def stored(rank: Callable[[int], int], name: str = "basis") -> Callable[[Tensor], State]:
    """`start` of a basis that keeps its matrix (..., a, r)."""

    def start(like: Tensor) -> State:
        side = like.shape[-2]
        return {name: like.new_zeros(*like.shape[:-2], side, rank(side))}

    return start


def at_most(rank: int) -> Callable[[int], int]:
    """That rank, or the side's length where it is shorter."""
    require_at_least(1, rank=rank)
    return lambda side: min(rank, side)


def share(density: float) -> Callable[[int], int]:
    """That share of the side, at least 1."""
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density!r}")
    return lambda side: max(1, round(density * side))
