"""What an update is, given what was found in the small space and the part that was left out.

u is the projected gradient r after the inner optimiser; P u brings it up; x - P r was left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .conjugate import Lift
from .frames import Frame
from .inner import adam
from .transform import Now, State

_TINY = 1e-30


def dropped(scale: float = 1.0) -> Lift:
    """scale * P u: the rest of the gradient is lost."""

    def up(
        u: Tensor, r: Tensor, x: Tensor, frame: Frame, state: State, now: Now
    ) -> tuple[Tensor, State]:
        return frame.up(scale * u), state

    return Lift(up)


def added(weight: float = 1.0) -> Lift:
    """P u + weight * (x - P r): plain descent along the rest."""

    def up(
        u: Tensor, r: Tensor, x: Tensor, frame: Frame, state: State, now: Now
    ) -> tuple[Tensor, State]:
        return frame.up(u - weight * r).add_(x, alpha=weight), state

    return Lift(up)


def signed(weight: float = 1.0) -> Lift:
    """P u + weight * sign(x - P r) (FRUGAL)."""

    def up(
        u: Tensor, r: Tensor, x: Tensor, frame: Frame, state: State, now: Now
    ) -> tuple[Tensor, State]:
        rest = x - frame.up(r)
        noise = 8 * torch.finfo(x.dtype).eps * x.abs().amax(dim=(-2, -1), keepdim=True)
        rest = torch.where(rest.abs() > noise, rest, 0)  # rounding has a sign, but no meaning
        return frame.up(u).add_(rest.sign_(), alpha=weight), state

    return Lift(up)


def _start(like: Tensor) -> State:
    return {"left_norm": like.new_zeros(like.shape[:-2], dtype=torch.float32)}


def _limited(x: Tensor, growth: float, state: State) -> tuple[Tensor, State]:
    """x cut so that its norm is at most `growth` times what it was a step ago."""
    norm, before = x.norm(dim=(-2, -1)), state["left_norm"].to(x.dtype)
    most = torch.where(before > 0, growth * before, norm)
    cut = torch.where(norm > most, most / norm.clamp(min=_TINY), 1.0)
    return x * cut[..., None, None], state | {"left_norm": (norm * cut).float()}


def _gains(u: Tensor, r: Tensor, by_column: bool) -> Tensor:
    """How much longer the inner optimiser made each column of r, or r as a whole."""
    axes = (-2,) if by_column else (-2, -1)
    above, below = (t.norm(dim=axes, keepdim=True) for t in (u, r))
    return torch.where(below > 0, above / below.clamp(min=_TINY), 0)


def rescaled_rest(scale: float, growth: float) -> Lift:
    """scale * P u + the rest, each column as much longer as the inner optimiser made r (Fira).

    The rest's norm grows at most by `growth` a step.
    """

    def up(
        u: Tensor, r: Tensor, x: Tensor, frame: Frame, state: State, now: Now
    ) -> tuple[Tensor, State]:
        rest, state = _limited(_gains(u, r, True) * (x - frame.up(r)), growth, state)
        return frame.up(scale * u).add_(rest), state

    return Lift(up, _start)


def rescaled(scale: float, growth: float, by_column: bool) -> Lift:
    """scale * the gradient itself, its columns (or the whole) scaled as u to r (APOLLO)."""

    def up(
        u: Tensor, r: Tensor, x: Tensor, frame: Frame, state: State, now: Now
    ) -> tuple[Tensor, State]:
        return _limited(scale * _gains(u, r, by_column) * x, growth, state)

    return Lift(up, _start)


def sparse_rest(scale: float, share: float, due: Callable[[State, Now], bool]) -> Lift:
    """scale * (P u + Adam of the rest's largest entries) (GaLore+).

    The entries, a `share` of all, are chosen anew when `due`; their moments then start at zero.
    """

    def count(like: Tensor) -> int:
        return max(1, round(share * like.shape[-2] * like.shape[-1]))

    inner = adam("rest_avg")

    def start(like: Tensor) -> State:
        shape = (*like.shape[:-2], count(like))
        places = torch.zeros(shape, dtype=torch.int32, device=like.device)
        return {"places": places, "chosen": 0} | inner.start(like.new_zeros(shape))

    def up(
        u: Tensor, r: Tensor, x: Tensor, frame: Frame, state: State, now: Now
    ) -> tuple[Tensor, State]:
        rest = (x - frame.up(r)).flatten(-2)
        if now.step == 1 or due(state, now):
            places = rest.abs().topk(count(x), dim=-1).indices.sort(-1).values
            fresh = inner.start(state["rest_avg"])
            state = state | fresh | {"places": places.int(), "chosen": now.step - 1}
        places = state["places"].long()
        own = replace(now, step=now.step - state["chosen"])
        step, state = inner.update(rest.gather(-1, places), state, own)
        whole = frame.up(u).flatten(-2).scatter_add_(-1, places, step).view_as(x)
        return whole.mul_(scale), state

    return Lift(up, start)
