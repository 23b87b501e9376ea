"""An optimiser in a small space: down, transform, up, and what becomes of the part left out."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from torch import Tensor

from .frames import Frame, turn
from .tracing import untraced
from .transform import Now, State, Transform, in_common

#: What a refresh does to the inner state.
Carry: TypeAlias = 'Literal["rotate", "keep", "reset"]'


@dataclass(frozen=True)
class Basis:
    """A frame that follows the gradient.

    `rank(side)` is how many vectors for a side; `start(like)` the state before the first gradient;
    `due(state, now)` whether to refresh, always so at step 1; `refresh(x, state, now)` the state
    with a new frame (the whole state is given: a basis may look at the moments); `frame(x, state,
    now)` the frame that the state stands for; `company(state, now)` as a transform's.
    """

    rank: Callable[[int], int]
    start: Callable[[Tensor], State]
    due: Callable[[State, Now], bool]
    refresh: Callable[[Tensor, State, Now], State]
    frame: Callable[[Tensor, State, Now], Frame]
    company: Callable[[State, Now], Hashable]


@dataclass(frozen=True)
class Lift:
    """`up(small, r, x, frame, state, now)`: the full update, from the transformed `small`, the
    projected gradient r and the gradient x; `start(like)` its own state."""

    up: Callable[[Tensor, Tensor, Tensor, Frame, State, Now], tuple[Tensor, State]]
    start: Callable[[Tensor], State] = lambda like: {}


def conjugate(inner: Transform, basis: Basis, lift: Lift, carry: Carry = "rotate") -> Transform:
    """`inner` in the space that `basis` spans, brought back by `lift`.

    The shorter side is projected: gradients of tall and square matrices from the right (they are
    transposed before anything else), of wide ones from the left.

    carry: on a refresh the inner state is rotated to the new basis, kept as it is, or reset (its
        count of steps too).
    """

    def small_like(like: Tensor) -> Tensor:
        rank = basis.rank(like.shape[-2])
        return like.new_empty(*like.shape[:-2], rank, like.shape[-1])

    def start(like: Tensor) -> State:
        like = _shorter_first(like)
        since = {"since": 0} if carry == "reset" else {}
        return since | basis.start(like) | inner.start(small_like(like)) | lift.start(like)

    @untraced
    def refreshed(x: Tensor, state: State, now: Now) -> State:
        old = basis.frame(x, state, now) if now.step > 1 and carry == "rotate" else None
        state = _stored_as(state, basis.refresh(x, state, now))
        if old is not None:
            change = turn(basis.frame(x, state, now), old, x, basis.rank(x.shape[-2]))
            state = inner.carry(state, change)
        if carry == "reset":
            fresh = _stored_as(state, inner.start(small_like(x)))
            state = state | fresh | {"since": now.step - 1}
        return state

    def update(x: Tensor, state: State, now: Now) -> tuple[Tensor, State]:
        whole, x = x, _shorter_first(x)
        if now.step == 1 or basis.due(state, now):
            state = refreshed(x, state, now)
        frame = basis.frame(x, state, now)
        r = frame.down(x)
        inside = now if carry != "reset" else replace(now, step=now.step - state["since"])
        small, state = inner.update(r, state, inside)
        out, state = lift.up(small, r, x, frame, state, now)
        return (out if whole is x else out.mT), state

    return Transform(start, update, company=in_common(inner.company, basis.company))


def _shorter_first(x: Tensor) -> Tensor:
    return x.mT if x.shape[-2] >= x.shape[-1] else x


def _stored_as(before: State, after: State) -> State:
    """`after` with its tensors in the types that they had before."""
    return {
        name: value.to(before[name].dtype) if isinstance(value, Tensor) else value
        for name, value in after.items()
    }
