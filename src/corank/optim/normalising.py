"""Transforms around another one: by norms of the gradient, and of the weight."""

from __future__ import annotations

import math

from torch import Tensor

from .inner import adam
from .transform import Now, State, Transform


def subset_normed(inner: Transform) -> Transform:
    """What `inner` gives over the root of an average squared norm of the gradient's subsets.

    A subset is a line along the matrix's longer side; the second beta averages.
    """

    def axis(x: Tensor) -> int:
        return -2 if x.shape[-2] >= x.shape[-1] else -1

    def start(like: Tensor) -> State:
        line = like.new_zeros(like.shape).sum(axis(like), keepdim=True)
        return inner.start(like) | {"subset_sq": line}

    def update(x: Tensor, state: State, now: Now) -> tuple[Tensor, State]:
        keep = now.options["betas"][1]
        fresh = x.square().sum(axis(x), keepdim=True)
        v = state["subset_sq"].to(x.dtype).lerp(fresh, 1 - keep)
        out, state = inner.update(x, state, now)
        root = v.sqrt() / math.sqrt(1 - keep**now.step) + now.options["eps"]
        return out / root, state | {"subset_sq": v.to(state["subset_sq"].dtype)}

    return Transform(start, update, company=inner.company)


def by_length_and_direction(inner: Transform) -> Transform:
    """Adam on the rows' lengths, `inner` on their directions: W = length * V / norm(V), by rows.

    To first order in the step: the update is the lengths' along each row, and the directions' made
    orthogonal to it. Each row of W is its own V, so that neither is stored.
    """
    lengths = adam("length_avg")

    def start(like: Tensor) -> State:
        return inner.start(like) | lengths.start(like.new_empty(*like.shape[:-1], 1))

    def update(x: Tensor, state: State, now: Now) -> tuple[Tensor, State]:
        weight = now.weight.to(x.dtype)
        along = weight / weight.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        slope = (along * x).sum(-1, keepdim=True)
        longer, state = lengths.update(slope, state, now)
        turned, state = inner.update(x - along * slope, state, now)
        turned = turned - along * (along * turned).sum(-1, keepdim=True)
        return turned + along * longer, state

    return Transform(start, update)
