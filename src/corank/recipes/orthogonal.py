"""Adapters that turn the inputs of the weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..control import orthogonal_krons, reflections_apart
from ..errors import SiteError
from ..linalg import exact_svd
from ..models import Site
from ..operators import (
    Dense,
    Diagonal,
    Entrywise,
    Kron,
    Operator,
    Product,
    Reflections,
    Scaled,
    Sum,
    transpose,
)
from ..registry import Adaptation, Paper, method
from ..rewrites import Rewrite
from ..rewrites.adapting import kaiming, leaf_dtype, trains, zeros
from .counts import each

ADAPTER = ("adapter", "preserves")


def _hra(w: Tensor, p: dict[str, Tensor], **_: object) -> Tensor:
    eye = torch.eye(w.shape[1], dtype=w.dtype)
    for u in p["u"].flip(0):  # u_1 stands next to W and meets x last
        w = w @ (eye - 2 * torch.outer(u, u) / (u @ u))
    return w


@method(
    Paper(
        "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection "
        "Adaptation",
        "2405.17484",
        "equations 3 to 6 by their numbers in notes on the paper; start and penalty as in the "
        "authors' code (the penalty there is the norm, not its square)",
        "odd ranks are refused, as no odd number of reflections is the identity (PEFT starts them "
        "at random); the limit of infinite regularisation, orthonormalised by Gram-Schmidt, is "
        "left out, as it cannot start from pairs of equal vectors",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_hra,
)
def hra(rank: int = 8, regularisation: float = 1e-4) -> Adaptation:
    """W H_1 ... H_r: r Householder reflections of the input, applied to x as two thin products.

    They start as pairs of equal vectors, which undo each other. regularisation: weight of the sum
    over weights of |I - U.T U| for unit vectors U, which draws them apart; 0 is none.
    """
    if rank < 2 or rank % 2:
        raise ValueError(f"rank must be even and at least 2, got {rank}")
    if regularisation < 0:
        raise ValueError(f"regularisation must be at least 0, got {regularisation}")

    def rewrite(op: Operator, site: Site) -> Operator:
        if rank > op.shape[1]:
            raise SiteError(
                site.where,
                f"{rank} reflections are more than its {op.shape[1]} inputs",
                "Ask for a smaller even rank.",
            )
        half = kaiming(op, site, rank // 2, op.shape[1]).detach()
        return Product(op, Reflections(trains(half.repeat_interleave(2, 0))))

    controls = [reflections_apart(regularisation)] if regularisation else []
    return Adaptation(Rewrite(rewrite), each(lambda out, into: rank * into), controls=controls)


#: The authors' sizes of the three rotations for the widths of their models.
SIZES = {640: (8, 8, 10), 768: (6, 8, 16), 1280: (4, 16, 20), 2048: (4, 8, 64)}


def soda_sizes(width: int) -> tuple[int, int, int]:
    """Three numbers of product `width`: the authors' where they give them, else of least sum."""
    if width in SIZES:
        return SIZES[width]
    divisors = [d for d in range(1, width + 1) if width % d == 0]
    triples = [(a, b, width // (a * b)) for a in divisors for b in divisors
               if a <= b and width % (a * b) == 0 and b <= width // (a * b)]  # fmt: skip
    return min(triples, key=sum)


def _soda(w: Tensor, p: dict[str, Tensor], **_: object) -> Tensor:
    values = (p["diagonal"] + p["diagonal_1"]).relu() - p["diagonal"]
    turn = torch.kron(p["weight_2"], torch.kron(p["weight_3"], p["weight_4"]))
    return (w + p["weight"] @ values.diag() @ p["weight_1"]) @ turn.mT


@method(
    Paper(
        "Spectrum-Aware Parameter Efficient Fine-Tuning for Diffusion Models",
        "2405.21050",
        "the SVD variant as in the authors' code; equations not read",
        "the singular values' offsets start at 0, not at the code's 1e-3, so that the function is "
        "unchanged; kept as W + U diag(max(0, s + d) - s) V.T, so nothing is rounded; rotations "
        "move by the user's optimiser, with the gradient along the manifold and a step back to it, "
        "in place of StiefelAdam; widths that the code does not list get the most even sizes",
    ),
    area="adapt",
    laws=ADAPTER,
    equation=_soda,
)
def soda(sizes: tuple[int, int, int] | None = None) -> Adaptation:
    """U diag(max(0, s + d)) V.T (Q1 (x) Q2 (x) Q3).T: singular values shift, the input basis turns.

    sizes: of the three rotations, their product the width of the input; None chooses them.
    """

    def of(width: int) -> tuple[int, ...]:
        return soda_sizes(width) if sizes is None else tuple(sizes)

    def rewrite(op: Operator, site: Site) -> Operator:
        into = op.shape[1]
        a, b, c = of(into)
        if a * b * c != into:
            raise SiteError(
                site.where,
                f"the sizes {a}, {b}, {c} do not multiply to its {into} inputs",
                "Leave sizes= out, or give this target its own.",
            )
        dtype = leaf_dtype(op)
        u, s, vh, _ = exact_svd(op.dense().detach().to(dtype))
        values = nn.Parameter(s, requires_grad=False)
        shifted = Entrywise(Sum(Diagonal(values), Diagonal(zeros(op, s.shape[0]))), "relu")
        change = Product(Dense(u), Sum(shifted, Scaled(Diagonal(values), -1.0)), Dense(vh))
        one, two, three = (
            Dense(trains(torch.eye(side, dtype=dtype, device=op.device))) for side in (a, b, c)
        )
        return Product(Sum(op, change), transpose(Kron(one, Kron(two, three))))

    def count(out: int, into: int) -> int:
        return min(out, into) + sum(side**2 for side in of(into))

    return Adaptation(
        Rewrite(rewrite),
        each(count),
        each(lambda out, into: min(out, into) * (out + into + 1)),
        controls=[orthogonal_krons()],
    )
