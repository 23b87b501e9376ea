"""A matrix as sparse combinations of a few rows, the atoms of a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..linalg import eigh_clamped
from ..linalg.symmetric import numeric_cut
from ..metrics import Measure
from ..operators import Dense, Operator, Product, RowSparse, Sum, column_type, sparsify
from .adapting import require_rank
from .building import Error, error_in, menu_by_building
from .decomposed import wide
from .menu import Menu
from .rewrite import Counts, Family, Unit

#: How many sizes a menu offers.
STEPS = 64


class Held(NamedTuple):
    """How many codes are not zero: so many in every row, and so many more wherever they are."""

    in_row: int
    anywhere: int = 0


#: (atoms k, Held) -> codes (m, k), atoms (k, n).
Solve = Callable[[int, Held], tuple[Tensor, Tensor]]

#: (matrix (m, n), back (n, in)) -> Solve, where atoms times `back` are rows of the weight's kind.
Fit = Callable[[Tensor, Tensor], Solve]


def dictionary(
    measure: Measure,
    fit: Fit,
    held: Callable[[int, int], Held],
    sizes: Callable[[int, int], Iterable[int]] | None = None,
    error: Error | None = None,
) -> Family:
    """W -> S D, with k atoms as rows of D for a size of k, and S of `held(out, k)` codes.

    `fit` is given W L and returns S and D L, in the coordinates of the inputs' moment C = L L^T,
    which is inverted on its numeric range only; rows count as the metric weighs them. Codes without
    a zero are stored dense. The menu offers `sizes(out, in)`, ascending, else steps up to the
    smaller side; each is built for its `error`, which is that in `measure` unless said.
    """

    def build(unit: Unit, atoms: int) -> list[Operator]:
        return _build(measure, held, fit, unit)(atoms)

    counts = partial(_counts, held)

    def menu(unit: Unit) -> Menu:
        out, into = unit.ops[0].shape
        offered = _steps(out, into) if sizes is None else sizes(out, into)
        once = cache(lambda: _build(measure, held, fit, unit))
        found = error or error_in(measure)
        return menu_by_building(unit, offered, counts, lambda _, k: once()(k), found)

    def matrices(unit: Unit, atoms: int) -> list[list[tuple[int, int]]]:
        out, into = unit.ops[0].shape
        return [[(out, held(out, atoms).in_row), (atoms, into)]]

    return Family(menu, build, counts, measure, measure.needs, matrices=matrices)


def evenly(atoms_per_nonzero: float) -> Callable[[int, int], Held]:
    """As many codes in every row, k / `atoms_per_nonzero`."""
    return lambda out, atoms: Held(max(1, round(atoms / atoms_per_nonzero)))


def _steps(out: int, into: int) -> list[int]:
    most = min(out, into)
    return sorted({max(1, round(most * i / STEPS)) for i in range(1, STEPS + 1)})


def _build(
    measure: Measure, held: Callable[[int, int], Held], fit: Fit, unit: Unit
) -> Callable[[int], list[Operator]]:
    (site,), (op,) = unit.sites, unit.ops
    weight, metric = wide(op), measure(site.stats)
    root, back = _root(metric.right, weight)
    rows = torch.ones(1).to(weight) if metric.left is None else metric.left.to(weight).sqrt()
    solve = fit(rows[:, None] * weight @ root, back)

    def of(atoms: int) -> list[Operator]:
        require_rank(atoms, site)
        inside = min(atoms, root.shape[1])  # more atoms than inputs have directions say nothing
        stored = held(len(weight), atoms)
        in_row = min(stored.in_row, inside)
        room = len(weight) * (inside - in_row)
        codes, d = solve(inside, Held(in_row, min(stored.anywhere, room)))
        codes = codes / rows[:, None]
        if inside < atoms:
            codes = torch.cat([codes, codes.new_zeros(len(codes), atoms - inside)], 1)
            d = torch.cat([d, d.new_zeros(atoms - inside, d.shape[1])])
        d = d @ back
        size = (d.norm(dim=1) / codes.norm(dim=0).clamp_min(1e-30)).sqrt().clamp(1e-6, 1e6)
        codes, d = (
            codes * size,
            d / size[:, None],
        )  # of like size, so that half precision holds both
        return [Product(_stored(codes.to(op.dtype), stored), Dense(d.to(op.dtype)))]

    return of


def _stored(codes: Tensor, held: Held) -> Operator:
    atoms = codes.shape[1]
    if held.in_row == atoms:
        return Dense(codes)
    columns = codes.abs().topk(held.in_row, dim=1).indices.sort(dim=1).values
    even = RowSparse(codes.gather(1, columns), columns.to(column_type(atoms)), atoms)
    if not held.anywhere:
        return even
    left = codes.abs().scatter(1, columns, -1.0).flatten()
    kept = torch.zeros_like(left, dtype=torch.bool)
    kept = kept.scatter(0, left.topk(held.anywhere).indices, True)
    return Sum(even, sparsify(codes, kept.view_as(codes)))


def _root(moment: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
    """L (n, k) with L L^T = C, and its left inverse (k, n), on the range of C.

    Where no input was anything but zero, all directions count alike.
    """
    if moment is None or not moment.any():
        eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        return eye, eye
    values, vectors = eigh_clamped(moment.to(weight))
    seen = values > numeric_cut(values, len(values))
    size, basis = values[seen].sqrt(), vectors[:, seen]
    return basis * size, (basis / size).mT


def _counts(held: Callable[[int, int], Held], unit: Unit, atoms: int | None) -> list[Counts]:
    (op,) = unit.ops
    if atoms is None:
        return [(op.numel(), op.bytes())]
    out, into = op.shape
    in_row, anywhere = held(out, atoms)
    if in_row == atoms:
        numel = atoms * (out + into)
        return [(numel, numel * op.dtype.itemsize)]
    numel = out * in_row + anywhere + atoms * into
    places = 4 if out * atoms <= 2**31 else 8  # bytes of a place in the whole matrix
    index = out * in_row * column_type(atoms).itemsize + anywhere * places
    return [(numel, numel * op.dtype.itemsize + index)]
