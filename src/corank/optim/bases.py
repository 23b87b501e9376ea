"""Bases of the gradient's small space, by how they are found."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import lru_cache, partial

import torch
from torch import Tensor

from ..linalg import exact_svd
from ..linalg.checks import gaussian
from ..linalg.orthonormal import orthonormal
from .conjugate import Basis
from .frames import Columns, Frame, Rows, kept
from .refreshing import stored, unless
from .tracing import untraced
from .transform import Now, State

Rank = Callable[[int], int]
Due = Callable[[State, Now], bool]

_EXTRA = 8  #: fresh random vectors beside the old ones: a direction not in the basis can enter


def _stacked(find: Callable[..., Tensor], x: Tensor, *others: Tensor | None) -> Tensor:
    """`find` over each matrix of a stack."""
    if x.ndim == 2:
        return find(x, *others)
    rows = [[o[i] if o is not None else None for o in others] for i in range(len(x))]
    return torch.stack([_stacked(find, x[i], *rows[i]) for i in range(len(x))])


def identity(rank: Rank, due: Due) -> Basis:
    """The first axes; all of them at full rank."""

    def refresh(x: Tensor, state: State, now: Now) -> State:
        eye = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
        return state | {"basis": eye[:, : rank(x.shape[-2])].expand_as(state["basis"]).clone()}

    return Basis(rank, stored(rank), due, refresh, kept, unless(due))


def svd(rank: Rank, due: Due) -> Basis:
    """The gradient's leading left singular vectors, exactly."""

    def refresh(x: Tensor, state: State, now: Now) -> State:
        def find(one: Tensor) -> Tensor:
            return exact_svd(one).u[:, : rank(one.shape[0])].clone()  # a view would keep all of U

        return state | {"basis": _stacked(find, x).to(x.dtype)}

    return Basis(rank, stored(rank), due, refresh, kept, unless(due))


def subspace_iteration(x: Tensor, old: Tensor | None, rank: int, noise: torch.Generator) -> Tensor:
    """The leading left singular vectors of x (a, b), nearly: (a, rank).

    One power step from the old basis and a few random vectors, or two from random ones alone; then
    the singular vectors of x within the span (Rayleigh-Ritz).
    """
    width = min(x.shape[0], rank + _EXTRA)
    known = 0 if old is None else rank
    block = gaussian(x.shape[0], width - known, x, noise)
    if old is not None:
        block = torch.cat([old, block], 1)
    for _ in range(2 if old is None else 1):
        block = orthonormal(x @ (x.mT @ block))
    inside = block.mT @ x
    _, vectors = torch.linalg.eigh(inside @ inside.mT)  # ascending
    return block @ vectors.flip(1)[:, :rank]


def randomized(rank: Rank, due: Due) -> Basis:
    """The leading left singular vectors by subspace iteration, started from the last basis."""

    def refresh(x: Tensor, state: State, now: Now) -> State:
        noise = now.generator("subspace iteration", now.step)
        find = partial(_iterate, rank=rank(x.shape[-2]), noise=noise)
        return state | {
            "basis": _stacked(find, x, state["basis"].to(x.dtype) if now.step > 1 else None)
        }

    return Basis(rank, stored(rank), due, refresh, kept, unless(due))


def _iterate(x: Tensor, old: Tensor | None, rank: int, noise: torch.Generator) -> Tensor:
    largest = x.abs().max()
    if not largest > 0:  # nothing to see: any basis is as good
        return torch.eye(x.shape[0], rank, dtype=x.dtype, device=x.device) if old is None else old
    return subspace_iteration(x / largest, old, rank, noise)


def seeded(rank: Rank, due: Due) -> Basis:
    """Normal entries of variance 1/r, drawn anew from their seed whenever they are needed."""

    def refresh(x: Tensor, state: State, now: Now) -> State:
        return state | {"drawn": now.step}

    def frame(x: Tensor, state: State, now: Now) -> Frame:
        side, count = x.shape[-2], rank(x.shape[-2])
        drawn = _drawn(side, count, x, now, state["drawn"])
        return Columns(drawn / math.sqrt(count), x)

    return Basis(rank, lambda like: {"drawn": 0}, due, refresh, frame, lambda state, now: None)


@untraced
def _drawn(rows: int, columns: int, x: Tensor, now: Now, epoch: int) -> Tensor:
    return gaussian(rows, columns, x, now.generator("projection", epoch))


def random(rank: Rank, due: Due) -> Basis:
    """Random orthonormal vectors."""

    def refresh(x: Tensor, state: State, now: Now) -> State:
        drawn = _drawn(x.shape[-2], rank(x.shape[-2]), x, now, now.step)
        return state | {"basis": orthonormal(drawn).expand_as(state["basis"]).clone()}

    return Basis(rank, stored(rank), due, refresh, kept, unless(due))


def rows(rank: Rank, due: Due, at_random: bool = False) -> Basis:
    """The gradient's rows of largest norm, or any rows; their numbers are all that is stored."""

    def refresh(x: Tensor, state: State, now: Now) -> State:
        norms = x.norm(dim=-1)
        if at_random:
            drawn = torch.rand(norms.shape, generator=now.generator("rows", now.step))
            norms = drawn.to(norms)
        return state | {"rows": _largest(norms, rank(x.shape[-2]))}

    def frame(x: Tensor, state: State, now: Now) -> Frame:
        return Rows(state["rows"], x)

    return Basis(rank, partial(_numbers, "rows", rank), due, refresh, frame, unless(due))


def dct(rank: Rank, due: Due) -> Basis:
    """The cosine vectors along which the gradient is largest; only their numbers are stored."""

    def refresh(x: Tensor, state: State, now: Now) -> State:
        norms = (_cosines(x.shape[-2], x.dtype, x.device).mT @ x).norm(dim=-1)
        return state | {"columns": _largest(norms, rank(x.shape[-2]))}

    def frame(x: Tensor, state: State, now: Now) -> Frame:
        table = _cosines(x.shape[-2], x.dtype, x.device)
        return Columns(table.mT[state["columns"].long()].mT, x)

    def company(state: State, now: Now) -> Hashable:
        return now.step == 1 or due(state, now)

    return Basis(rank, partial(_numbers, "columns", rank), due, refresh, frame, company)


def _numbers(name: str, rank: Rank, like: Tensor) -> State:
    shape = (*like.shape[:-2], rank(like.shape[-2]))
    return {name: torch.zeros(shape, dtype=torch.int32, device=like.device)}


def _largest(norms: Tensor, count: int) -> Tensor:
    return norms.topk(count, dim=-1).indices.sort(dim=-1).values.int()


@lru_cache(maxsize=64)
def _cosines(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal DCT-II as columns (side, side), one per width for all parameters."""
    place = torch.arange(side, dtype=torch.float64)
    table = torch.cos(math.pi / side * (place + 0.5)[:, None] * place[None, :])
    table *= math.sqrt(2 / side)
    table[:, 0] /= math.sqrt(2)
    return table.to(device=device, dtype=dtype)


BASES: dict[str, Callable[[Rank, Due], Basis]] = {
    "svd": svd,
    "randomized": randomized,
    "dct": dct,
    "random": random,
    "seeded": seeded,
    "rows": rows,
    "random_rows": partial(rows, at_random=True),
    "identity": identity,
}
