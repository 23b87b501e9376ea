"""Rewrites, Operator -> Operator, and families of them that an allocator chooses from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..metrics import Measure, euclidean
from ..models import Site
from ..operators import Operator
from .menu import Menu, Size

#: Numbers and bytes.
Counts = tuple[int, int]

#: A bias for each site of a unit, None where there is none.
Biases = list[Tensor | None]


@dataclass(frozen=True)
class Rewrite:
    """`rewrite(op, site)` is the operator to put in the place of `op`.

    It may look at the site's role, generator and pool, and at the statistics in `needs` only.
    """

    apply: Callable[[Operator, Site], Operator]
    needs: frozenset[str] = frozenset()

    def __call__(self, op: Operator, site: Site) -> Operator:
        return self.apply(op, site)


@dataclass(frozen=True)
class Unit:
    """Sites that are rewritten together, because they share something; most often one."""

    sites: Sequence[Site]
    ops: Sequence[Operator]

    @property
    def name(self) -> str:
        return " + ".join(site.name for site in self.sites)

    @property
    def bytes(self) -> int:
        return sum(op.bytes() for op in self.ops)


@dataclass(frozen=True)
class Family:
    """Rewrites of units, indexed by a size: a rank, bits, or both.

    `menu(unit)` lists the sizes with their costs and errors; `build(unit, size)` returns an
    operator for each of the unit's sites, and `counts(unit, size)` the numbers and bytes that each
    of them will store, known without weights; what they share is counted with the first. `measure`
    is what the errors are measured in; where it is centred, what the rewrite does to the mean
    output is left to the bias. `matrices(unit, size)` are the shapes of the float matrices that
    each of the operators will be a product of, what they share with the first; None: not known.
    `joint(unit, ops, biases)`, where the sites' inner coordinates have changed, so that none can be
    compared with what it was by itself: the biases that go with `ops`, and the unit's error,
    relative; None where they have not. `biased(unit)`, where a centred measure does not say so: for
    each site whether it is given a bias.
    """

    menu: Callable[[Unit], Menu]
    build: Callable[[Unit, Any], list[Operator]]
    counts: Callable[[Unit, Any], list[Counts]]
    measure: Measure = field(default_factory=euclidean)
    needs: frozenset[str] = frozenset()
    choose: Callable[[Site], Family] | None = None
    matrices: Callable[[Unit, Any], list[list[tuple[int, int]]]] | None = None
    joint: Callable[[Unit, list[Operator], Biases], tuple[Biases, float] | None] | None = None
    biased: Callable[[Unit], list[bool]] | None = None

    def at(self, size: Size) -> Rewrite:
        """The member of that size, as a rewrite of single operators."""
        return Rewrite(lambda op, site: self.build(Unit([site], [op]), size)[0], self.needs)

    def of(self, site: Site) -> Family:
        """The family that serves a site."""
        return self if self.choose is None else self.choose(site)

    def new_biases(self, unit: Unit) -> list[Counts]:
        """Numbers and bytes of the biases that the unit's sites are given and did not have."""
        own = self.of(unit.sites[0]).biased
        given = own(unit) if own else [self.of(site).measure.centred for site in unit.sites]
        return [
            (site.bias_numel, site.bias_numel * op.dtype.itemsize)
            if gains and not site.bias
            else (0, 0)
            for site, op, gains in zip(unit.sites, unit.ops, given, strict=True)
        ]

    def jointly(
        self, unit: Unit, ops: list[Operator], biases: Biases
    ) -> tuple[Biases, float] | None:
        """What `joint` says of a unit and the operators built for it, None where it is silent."""
        joint = self.of(unit.sites[0]).joint
        return None if joint is None else joint(unit, ops, biases)


def by_site(choose: Callable[[Site], Family], *members: Family) -> Family:
    """One of `members` for each unit, chosen by its first site."""
    return Family(
        menu=lambda unit: choose(unit.sites[0]).menu(unit),
        build=lambda unit, size: choose(unit.sites[0]).build(unit, size),
        counts=lambda unit, size: choose(unit.sites[0]).counts(unit, size),
        needs=frozenset().union(*(m.needs for m in members)),
        choose=choose,
    )
