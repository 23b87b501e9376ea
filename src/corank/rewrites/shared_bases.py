"""Weights of like shape, each a factor of its own times a mixture of bases that all share."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from ..errors import SiteError
from ..linalg import shared_bases
from ..metrics import euclidean
from ..models import Site
from ..operators import BlockRows, Dense, Entrywise, Mixture, Operator, Product
from ..operators.activated import FUNCTIONS
from .building import error_in, menu_by_building
from .decomposed import wide
from .menu import Menu
from .rewrite import Counts, Family, Unit

#: How many sizes a menu offers; each is trained when errors are asked for.
STEPS = 8


def basis_mixture(per_basis: int, function: str, steps: int) -> Family:
    """W_e -> A_e f(sum over i of w_ei B_i): the size is the width of A_e (out, width).

    A unit's sites share one B_i for each `per_basis` of them, counted with the first. Gate and up
    in one weight, one after the other, are two matrices with bases of their own. f is a name of
    `operators.activated.FUNCTIONS`. Errors of the menu are found by building.
    """
    build, counts = partial(_build, per_basis, function, steps), partial(_counts, per_basis)

    def menu(unit: Unit) -> Menu:
        most = _widest(unit)
        sizes = sorted({max(1, round(most * i / STEPS)) for i in range(1, STEPS + 1)})
        return menu_by_building(unit, sizes, counts, build, error_in(euclidean()))

    return Family(menu, build, counts)


def _parts(site: Site) -> int:
    """How many matrices stand in the weight, one on another."""
    return 2 if site.role in ("gate_up", "expert_gate_up") else 1


def _widest(unit: Unit) -> int:
    out, into = unit.sites[0].shape
    return min(out // _parts(unit.sites[0]), into)


def _bases(per_basis: int, unit: Unit) -> int:
    return -(-len(unit.sites) // per_basis)


def _build(per_basis: int, function: str, steps: int, unit: Unit, width: int) -> list[Operator]:
    if not 1 <= width <= _widest(unit):
        raise SiteError(
            unit.sites[0].where, f"width {width} is outside 1 to {_widest(unit)}",
            "Ask for a rank in that range, or exclude the site",
        )  # fmt: skip
    dtype, bases = unit.ops[0].dtype, _bases(per_basis, unit)
    halves: list[list[Operator]] = [[] for _ in unit.sites]
    weights = torch.stack([wide(op) for op in unit.ops])
    for part in weights.chunk(_parts(unit.sites[0]), dim=1):
        fit = shared_bases(part, bases, width, FUNCTIONS[function], steps)
        bank = nn.Parameter(fit.bases.flatten(1).to(dtype).contiguous(), requires_grad=False)
        shape = (width, part.shape[2])
        for own, left, mix in zip(halves, fit.left.to(dtype), fit.weights.to(dtype), strict=True):
            mixed = Entrywise(Mixture(mix.clone(), Dense(bank), shape), function)
            own.append(Product(Dense(left.clone()), mixed))
    return [own[0] if len(own) == 1 else BlockRows(*own) for own in halves]


def _counts(per_basis: int, unit: Unit, width: int | None) -> list[Counts]:
    if width is None:
        return [(op.numel(), op.bytes()) for op in unit.ops]
    bases, parts = _bases(per_basis, unit), _parts(unit.sites[0])
    found = []
    for i, (site, op) in enumerate(zip(unit.sites, unit.ops, strict=True)):
        shared = parts * bases * width * site.shape[1] if i == 0 else 0
        numel = site.shape[0] * width + parts * bases + shared
        found.append((numel, numel * op.dtype.itemsize))
    return found
