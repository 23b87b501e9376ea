"""Optimisers that run in whatever space they are put: Adam, momentum, Lion, sign, ..."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .transform import Now, State, Transform, anybody


def turned_squares(turn: Tensor, squares: Tensor) -> Tensor:
    """Second moments after a change of coordinates, taking the old coordinates as uncorrelated."""
    return turn.square() @ squares


def adam(name: str = "exp_avg") -> Transform:
    """Adam's direction with bias correction, as torch's AdamW computes it; betas, eps of the group.

    A change of coordinates turns the first moments, and the second ones by its squares: signs and
    the order of coordinates make no difference.
    """
    squares = f"{name}_sq"

    def start(like: Tensor) -> State:
        return {name: torch.zeros_like(like), squares: torch.zeros_like(like)}

    def update(g: Tensor, state: State, now: Now) -> tuple[Tensor, State]:
        first, second = now.options["betas"]
        m, v = state[name], state[squares]
        m.lerp_(g.to(m.dtype), 1 - first)
        v.mul_(second).addcmul_(g.to(v.dtype), g.to(v.dtype), value=1 - second)
        root = (v.to(g.dtype).sqrt() / math.sqrt(1 - second**now.step)).add_(now.options["eps"])
        return (m / (1 - first**now.step)).to(g.dtype).div_(root), state

    def carry(state: State, turn: Tensor) -> State:
        m, v = state[name].to(turn.dtype), state[squares].to(turn.dtype)
        turned = {name: turn @ m, squares: turned_squares(turn, v)}
        return state | {k: t.to(state[k].dtype) for k, t in turned.items()}

    return Transform(start, update, carry, anybody)


def _averaging(direction: Callable[[Tensor, Tensor, Now], Tensor], corrected: bool) -> Transform:
    """An average of gradients, and `direction(average before, gradient, now)` or of that after."""

    def start(like: Tensor) -> State:
        return {"exp_avg": torch.zeros_like(like)}

    def update(g: Tensor, state: State, now: Now) -> tuple[Tensor, State]:
        m = state["exp_avg"].to(g.dtype)
        out = direction(m, g, now)
        keep = now.options["betas"][0 if corrected else 1]
        return out, state | {"exp_avg": m.lerp(g, 1 - keep).to(state["exp_avg"].dtype)}

    def carry(state: State, turn: Tensor) -> State:
        m = state["exp_avg"]
        return state | {"exp_avg": (turn @ m.to(turn.dtype)).to(m.dtype)}

    return Transform(start, update, carry, anybody)


def momentum() -> Transform:
    """The average of gradients with the first beta, corrected for its start at zero."""

    def direction(m: Tensor, g: Tensor, now: Now) -> Tensor:
        keep = now.options["betas"][0]
        return m.lerp(g, 1 - keep) / (1 - keep**now.step)

    return _averaging(direction, corrected=True)


def lion() -> Transform:
    """Lion: the sign of one average, while the state keeps another."""
    return _averaging(lambda m, g, now: m.lerp(g, 1 - now.options["betas"][0]).sign(), False)


def sign() -> Transform:
    """The sign of the gradient; no state."""
    return Transform(lambda like: {}, lambda g, state, now: (g.sign(), state), company=anybody)


def muon() -> Transform:
    """The momentum made orthogonal by five Newton-Schulz steps (coefficients of Muon's authors)."""

    def direction(m: Tensor, g: Tensor, now: Now) -> Tensor:
        x = m.lerp(g, 1 - now.options["betas"][0])
        tall = x.shape[-2] > x.shape[-1]
        x = x.mT if tall else x
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        for _ in range(5):
            gram = x @ x.mT
            x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
        return x.mT if tall else x

    return _averaging(direction, corrected=True)


def adafactor() -> Transform:
    """The gradient over the root of its factored second moment, cut to a root mean square of 1.

    Shazeer and Stern (2018) without momentum or relative steps: decay 1 - t^-0.8.
    """

    def start(like: Tensor) -> State:
        return {
            "row_sq": like.new_zeros(*like.shape[:-1], 1),
            "column_sq": like.new_zeros(*like.shape[:-2], 1, like.shape[-1]),
        }

    def update(g: Tensor, state: State, now: Now) -> tuple[Tensor, State]:
        fresh = now.step**-0.8
        squares = g.square() + 1e-30
        row = state["row_sq"].to(g.dtype).lerp(squares.mean(-1, keepdim=True), fresh)
        column = state["column_sq"].to(g.dtype).lerp(squares.mean(-2, keepdim=True), fresh)
        state["row_sq"].copy_(row)
        state["column_sq"].copy_(column)
        out = g * (row.mean(-2, keepdim=True) / row).sqrt() / column.sqrt()
        return out / out.square().mean((-2, -1), keepdim=True).sqrt().clamp(min=1.0), state

    def carry(state: State, turn: Tensor) -> State:
        row = turned_squares(turn, state["row_sq"].to(turn.dtype)).clamp(min=1e-30)
        return state | {"row_sq": row.to(state["row_sq"].dtype)}

    return Transform(start, update, carry, anybody)


INNER: dict[str, Callable[[], Transform]] = {
    "adam": adam,
    "momentum": momentum,
    "lion": lion,
    "sign": sign,
    "muon": muon,
    "adafactor": adafactor,
}
