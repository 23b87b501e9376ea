"""A matrix as sparse combinations of a few rows, the atoms of a dictionary."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..linalg import eigh_clamped
from ..linalg.symmetric import numeric_cut
from ..metrics import Measure
from ..operators import Dense, Operator, Product, RowSparse, column_type
from .adapting import require_rank
from .building import menu_by_building
from .decomposed import wide
from .menu import Menu
from .rewrite import Counts, Family, Unit

#: How many sizes a menu offers.
STEPS = 64

#: (matrix (m, n), atoms k, nonzeros in a row) -> codes (m, k), atoms (k, n).
Fit = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]


def dictionary(measure: Measure, fit: Fit, atoms_per_nonzero: float = 2.0) -> Family:
    """W -> S D, each row of S with k / `atoms_per_nonzero` of the k atoms, for a size of k.

    `fit` is given W L and returns S and D L, in the coordinates of the inputs' moment C = L L^T,
    which is inverted on its numeric range only; rows count as the metric weighs them. Errors of the
    menu are found by building.
    """
    build = partial(_build, measure, atoms_per_nonzero, fit)
    counts = partial(_counts, atoms_per_nonzero)

    def menu(unit: Unit) -> Menu:
        most = min(unit.ops[0].shape)
        sizes = sorted({max(1, round(most * i / STEPS)) for i in range(1, STEPS + 1)})
        return menu_by_building(unit, sizes, counts, build, measure)

    def matrices(unit: Unit, atoms: int) -> list[list[tuple[int, int]]]:
        return [[(atoms, unit.ops[0].shape[1])]]

    return Family(menu, build, counts, measure, measure.needs, matrices=matrices)


def _nonzeros(atoms: int, atoms_per_nonzero: float) -> int:
    return max(1, round(atoms / atoms_per_nonzero))


def _build(
    measure: Measure, atoms_per_nonzero: float, fit: Fit, unit: Unit, atoms: int
) -> list[Operator]:
    (site,), (op,) = unit.sites, unit.ops
    require_rank(atoms, site)
    weight, metric = wide(op), measure(site.stats)
    root, back = _root(metric.right, weight)
    rows = torch.ones(1).to(weight) if metric.left is None else metric.left.to(weight).sqrt()
    kept = _nonzeros(atoms, atoms_per_nonzero)
    inside = min(atoms, root.shape[1])  # more atoms than the inputs have directions say nothing
    codes, d = fit(rows[:, None] * weight @ root, inside, min(kept, inside))
    codes = codes / rows[:, None]
    if inside < atoms:
        codes = torch.cat([codes, codes.new_zeros(len(codes), atoms - inside)], 1)
        d = torch.cat([d, d.new_zeros(atoms - inside, d.shape[1])])
    d = d @ back
    size = (d.norm(dim=1) / codes.norm(dim=0).clamp_min(1e-30)).sqrt().clamp(1e-6, 1e6)
    codes, d = codes * size, d / size[:, None]  # of like size, so that half precision holds both
    columns = codes.abs().topk(kept, dim=1).indices.sort(dim=1).values
    sparse = RowSparse(codes.gather(1, columns).to(op.dtype), columns.to(column_type(atoms)), atoms)
    return [Product(sparse, Dense(d.to(op.dtype)))]


def _root(moment: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
    """L (n, k) with L L^T = C, and its left inverse (k, n), on the range of C."""
    if moment is None:
        eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        return eye, eye
    values, vectors = eigh_clamped(moment.to(weight))
    seen = values > numeric_cut(values, len(values))
    size, basis = values[seen].sqrt(), vectors[:, seen]
    return basis * size, (basis / size).mT


def _counts(atoms_per_nonzero: float, unit: Unit, atoms: int | None) -> list[Counts]:
    (op,) = unit.ops
    if atoms is None:
        return [(op.numel(), op.bytes())]
    out, into = op.shape
    kept = out * _nonzeros(atoms, atoms_per_nonzero)
    numel = kept + atoms * into
    return [(numel, numel * op.dtype.itemsize + kept * column_type(atoms).itemsize)]
