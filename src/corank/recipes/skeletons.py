"""Adapters between factors that W is made of entry by entry: its columns, rows and triangles."""

from __future__ import annotations

from torch import Tensor

from ..linalg import ldu as factor_ldu
from ..linalg import pivoted_columns
from ..models import Site
from ..operators import Dense, Diagonal, Kron, Operator, Product, Scaled, Sum
from ..registry import Adaptation, Paper, method
from ..rewrites import between, plus, wide
from ..rewrites.adapting import require_rank, trains, zeros
from .counts import each, low_rank, square


def _pmss(w: Tensor, p: dict[str, Tensor], rank: int = 64, scale: float = 1.0) -> Tensor:
    return w + scale * p["b"] @ p["a"] @ p["weight"]


@method(
    Paper(
        "PMSS: Pretrained Matrices Skeleton Selection for LLM Fine-tuning",
        "2409.16722",
        "the abstract: skeletons of W are kept and a small matrix between them is learned; the "
        "paper's body was not read, and no code was found",
        "how the skeleton is selected is not known from what was read: columns and rows are "
        "chosen by pivoted QR, as usual for skeletons; the scale and the zero start are choices",
    ),
    area="adapt",
    laws=("adapter", "preserves"),
    equation=_pmss,
)
def pmss(rank: int = 64, scale: float = 1.0) -> Adaptation:
    """W + scale * C M R with C columns and R rows of W itself, frozen, and M trained from zero."""

    def delta(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        w = wide(op)
        columns = w[:, pivoted_columns(w, rank)]
        rows = w[pivoted_columns(w.mT, rank)]
        return between(columns, zeros(op, rank, rank), rows, scale)

    return Adaptation(plus(delta), square(rank), low_rank(rank))


def _loldu(w: Tensor, p: dict[str, Tensor], rank: int = 4, alpha: float = 1.0) -> Tensor:
    values = p["weight_1"] * p["diagonal"] - alpha / rank * p["diagonal_1"]
    return w + p["weight"] @ values.flatten().diag() @ p["weight_2"]


@method(
    Paper(
        "LoLDU: Low-Rank Adaptation via Lower-Diag-Upper Decomposition for Parameter-Efficient "
        "Fine-Tuning",
        "2410.13618",
        "the parameterisation started at the weight, as in the authors' code; the paper's "
        "equations were not read",
        "of the code's starts only the exact one; a zero pivot, by which the code divides, is left "
        "in the triangle; the frozen start is held beside W in place of a residual",
    ),
    area="adapt",
    laws=("adapter", "preserves"),
    equation=_loldu,
)
def loldu(rank: int = 4, alpha: float = 1.0) -> Adaptation:
    """The leading diagonal entries of W = P L D U and a factor on them train.

    W - (alpha / rank) P L D0 U + c P L diag(d) U, over the first `rank` columns of L and rows of
    U; d starts at D0 and the factor c at alpha / rank.
    """

    def delta(op: Operator, site: Site) -> Operator:
        require_rank(rank, site)
        lower, d, upper = factor_ldu(wide(op))
        start = d[:rank].clone()
        factor = Dense(trains(start.new_full((1, 1), alpha / rank)))
        moving = Kron(factor, Diagonal(trains(start.clone())))  # a trained number times a diagonal
        return Product(
            Dense(lower[:, :rank].clone()),
            Sum(moving, Scaled(Diagonal(start), -alpha / rank)),
            Dense(upper[:rank].clone()),
        )

    return Adaptation(
        plus(delta),
        each(lambda out, into: rank + 1),
        each(lambda out, into: rank * (out + into + 1)),
    )
