"""Adapters whose sites share frozen random matrices, and train little of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, sqrt
from typing import Any

from torch import Tensor

from ..models import Site
from ..operators import (
    Dense,
    Diagonal,
    KhatriRao,
    Kron,
    Mixture,
    Operator,
    Product,
    Sum,
    transpose,
)
from ..registry import Adaptation, Paper, method
from ..rewrites import plus
from ..rewrites.adapting import full, require_rank, zeros
from ..rewrites.factoring import factor_pair
from ..rewrites.frozen import bound, frozen_random
from .counts import each

ADAPTER = ("adapter", "preserves")


def _once(stored: bool, shapes: Callable[[Site], Sequence[tuple[int, int]]]) -> Any:
    """What is stored frozen: every matrix once for all sites that share it, or no number."""

    def count(sites: Sequence[Site]) -> int:
        kinds = {(i, shape) for site in sites for i, shape in enumerate(shapes(site))}
        return stored * sum(shape[0] * shape[1] for _, shape in kinds)

    return count


def _vera(w: Tensor, p: dict[str, Tensor], rank: int = 256, **_: Any) -> Tensor:
    inner = p["diagonal_1"][:, None] * p["matrix_1"].T
    return w + p["diagonal"][:, None] * p["matrix"] @ inner


@method(
    Paper(
        "VeRA: Vector-based Random Matrix Adaptation",
        "2310.11454",
        "equation 2; start of section 3.3 (numbers from PEFT's source and memory, not re-read)",
        "A and B are drawn for each size from one seed, so that a smaller A is the beginning of a "
        "larger one scaled to its own fan-in, where PEFT slices one drawn for the widest layer",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_vera,
)
def vera(rank: int = 256, d_initial: float = 0.1, stored: bool = False) -> Adaptation:
    """W + diag(b) B diag(d) A with B and A frozen and shared by all sites; b and d train.

    d_initial: of d; b starts at zero. stored: keep A and B in the file in place of their seed.
    """

    def delta(op: Operator, site: Site) -> Operator:
        _require_positive(rank)
        out, into = op.shape
        a = frozen_random(op, site, "A", (into, rank), bound(into), stored=stored)
        b = frozen_random(op, site, "B", (out, rank), bound(rank), stored=stored)
        d = full(op, d_initial, rank)
        return Product(Diagonal(zeros(op, out)), b, Diagonal(d), transpose(a))

    shapes = _once(stored, lambda site: [(site.shape[1], rank), (site.shape[0], rank)])
    return Adaptation(plus(delta), each(lambda out, into: out + rank), shapes)


def _nola(w: Tensor, p: dict[str, Tensor], rank: int = 8, alpha: float = 8.0, **_: Any) -> Tensor:
    out, into = w.shape
    b = (p["coefficients"] @ p["matrix"]).view(out, rank)
    a = p["matrix_1"] + (p["coefficients_1"] @ p["matrix_2"]).view(rank, into)
    return w + alpha / rank * b @ a


@method(
    Paper(
        "NOLA: Compressing LoRA using Linear Combination of Random Basis",
        "2310.02556",
        "equation 3 (number from memory); start and 1 / sqrt(k) as in the authors' code",
        "the bases are one per shape and seed, shared by its sites and held in memory once, where "
        "the authors draw them anew for every layer in the forward and in the backward pass; "
        "neither form stores them",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_nola,
)
def nola(rank: int = 8, alpha: float = 8.0, bases: int = 1024, stored: bool = False) -> Adaptation:
    """W + (alpha / rank) b a, each factor a trained mixture of frozen random matrices.

    bases: how many are mixed for each factor: all that trains, whatever the size of W.
    """

    def delta(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        _require_positive(bases, "bases")
        out, into = op.shape

        def mixture(name: str, shape: tuple[int, int]) -> Mixture:
            size = (bases, shape[0] * shape[1])
            bank = frozen_random(op, site, name, size, bound(bases), stored=stored)
            return Mixture(zeros(op, bases), bank, shape)

        start = frozen_random(op, site, "A0", (rank, into), bound(into), stored=stored)
        return Product(mixture("B", (out, rank)), Sum(start, mixture("A", (rank, into))))

    def shapes(site: Site) -> list[tuple[int, int]]:
        out, into = site.shape
        return [(bases, out * rank), (rank, into), (bases, rank * into)]

    count = each(lambda out, into: 2 * bases)
    return Adaptation(plus(delta, alpha / rank), count, _once(stored, shapes))


def _randlora(
    w: Tensor, p: dict[str, Tensor], rank: int = 32, alpha: float = 640.0, **_: Any
) -> Tensor:
    tall = w.shape[0] >= w.shape[1]
    b, a = (p["matrix"], p["matrix_1"]) if tall else (p["matrix_1"], p["matrix"])
    total: Any = 0.0
    for i, gamma in enumerate(p["weight"]):
        part = slice(i * rank, (i + 1) * rank)
        total = total + (b[:, part] * p["diagonal"][part]) @ (a.T * gamma)
    return w + alpha / rank * (total if tall else total.T)


@method(
    Paper(
        "RandLoRA: Full-Rank Parameter-Efficient Fine-Tuning of Large Models",
        "2502.00987",
        "equation 4 (number from memory); start and unit variance as in the authors' code",
        "bases are scaled by their law's deviation, not by the sample's; basis i meets "
        "coefficients i, where the authors' code, which PEFT copies, flattens the two sides in "
        "different orders and so pairs random columns otherwise; bases are drawn for each shape",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_randlora,
)
def randlora(
    rank: int = 32, alpha: float = 640.0, sparse: bool = False, stored: bool = False
) -> Adaptation:
    """W + (alpha / rank) times a full-rank sum of B_i diag(l_i) A diag(g_i); l and g train.

    B_i and A are frozen, random and shared by all sites; as many terms as make the sum of full
    rank, so a smaller rank trains more numbers. sparse: entries -1, 0 and 1, one third of them
    not zero.
    """
    law = "ternary" if sparse else "uniform"

    def sizes(shape: tuple[int, int]) -> tuple[int, int, int]:
        return max(shape), min(shape), ceil(min(shape) / rank)

    def delta(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        large, small, bases = sizes(op.shape)
        unit = sqrt(3)  # both laws have variance 1/3
        b = frozen_random(op, site, "B", (large, bases * rank), unit, law, stored)
        a = frozen_random(op, site, "A", (small, rank), unit, law, stored)
        g = Dense(full(op, 1 / max(bases, small), bases, small))
        total = Product(b, Diagonal(zeros(op, bases * rank)), KhatriRao(g, transpose(a)))
        return total if op.shape[0] >= op.shape[1] else transpose(total)

    def shapes(site: Site) -> list[tuple[int, int]]:
        large, small, bases = sizes(site.shape)
        return [(large, bases * rank), (small, rank)]

    def trained(out: int, into: int) -> int:
        _, small, bases = sizes((out, into))
        return bases * (rank + small)

    return Adaptation(plus(delta, alpha / rank), each(trained), _once(stored, shapes))


def _tera(w: Tensor, p: dict[str, Tensor], **_: Any) -> Tensor:
    out = [p["matrix"] * p["diagonal"], p["matrix_1"] * p["diagonal_1"]]
    into = [p["matrix_3"] * p["diagonal_2"], p["matrix_4"] * p["diagonal_3"]]
    four = p["matrix_2"].view(*(u.shape[1] for u in out), *(v.shape[1] for v in into))
    return w + _mode_products(four, [*out, *into]).reshape(w.shape)


def _mode_products(core: Tensor, factors: list[Tensor]) -> Tensor:
    for mode, factor in enumerate(factors):
        core = (core.movedim(mode, -1) @ factor.T).movedim(-1, mode)
    return core


@method(
    Paper(
        "TeRA: Vector-based Random Tensor Network for High-Rank Adaptation of Large Language "
        "Models",
        "2509.03234",
        "abstract: large random factors frozen and shared across layers, small vectors of each "
        "layer in diagonal factor matrices (no section was read, nor the authors' code)",
        "our reading: a Tucker network of order four, two modes for the rows and two for the "
        "columns, with the trained diagonals between core and factors; the first one starts at "
        "zero and the others at one; uniform random numbers that keep variances",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_tera,
)
def tera(rank: int = 32, stored: bool = False) -> Adaptation:
    """W + a Tucker network of frozen random tensors, of which four diagonals of `rank` train.

    The rank of the change is up to rank^2, whatever is trained.
    """

    def modes(site_shape: tuple[int, int]) -> list[tuple[int, int]]:
        return [(size, rank) for side in site_shape for size in factor_pair(side)]

    def delta(op: Operator, site: Site) -> Operator:
        _require_positive(rank)

        def factor(index: int, shape: tuple[int, int]) -> Product:
            u = frozen_random(op, site, f"U{index}", shape, sqrt(3 / rank), stored=stored)
            return Product(u, Diagonal(full(op, float(index > 0), rank)))

        one, two, three, four = [factor(i, shape) for i, shape in enumerate(modes(op.shape))]
        side = rank * rank
        core = frozen_random(op, site, "G", (side, side), sqrt(3) / rank, stored=stored)
        return Product(Kron(one, two), core, transpose(Kron(three, four)))

    shapes = _once(stored, lambda site: [*modes(site.shape), (rank * rank, rank * rank)])
    return Adaptation(plus(delta), each(lambda out, into: 4 * rank), shapes)


def _require_positive(number: int, name: str = "rank") -> None:
    if number < 1:
        raise ValueError(f"{name}={number}: at least 1")
