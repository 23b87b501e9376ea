"""Compression that keeps some of a weight's own columns and rows."""

from __future__ import annotations

from ..errors import unknown
from ..linalg import SELECTIONS
from ..metrics import activation_scale, second_moment
from ..registry import Paper, Recipe, method
from ..rewrites import interpolation, skeleton


@method(
    Paper(
        "CURing Large Models: Compression via CUR Decomposition",
        "2501.04211",
        "the abstract and a summary: WANDA's scores |W| |x|, DEIM on their singular vectors, and "
        "U = C^+ W R^+; the body was not read",
        "ranks come from the budget, not from the largest power of two that pays, and layers from "
        "the targets, not from angular distances; healing is `heal_minutes`, for all factors",
    ),
    area="compress",
    laws=("selects",),
)
def curing(select: str = "deim") -> Recipe:
    """Columns, rows and a link between them, chosen by weight times input size.

    select: "deim", "leverage" (the longest rows of the singular vectors) or "volume" (pivoted QR).
    """
    if select not in SELECTIONS:
        raise unknown("selection", select, SELECTIONS)
    return Recipe(skeleton(activation_scale(1.0, of="rms"), SELECTIONS[select]))


@method(
    Paper(
        "On the compression of low rank matrices",
        "",
        "doi 10.1137/030602678: the interpolative decomposition, with the columns and coefficients "
        "of SciPy's interp_decomp without sampling; the paper itself was not read",
        "of the outputs that calibration saw, (W C^(1/2))^T with C the inputs' second moment, so "
        "that what is kept are rows of W; found by a pivoted Cholesky factor of W C W^T",
    ),
    area="compress",
    laws=("interpolates",),
)
def interpolative(ridge: float = 0.0) -> Recipe:
    """Some outputs as they are, and the others made of them: no number is stored twice.

    ridge: of the inputs' second moment, over its mean diagonal.
    """
    return Recipe(interpolation(second_moment(ridge)))
