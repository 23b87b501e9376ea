"""Weights cut into a grid whose parts are of low rank: structured matrices, by projection."""

from __future__ import annotations

from ..registry import Paper, Recipe, method
from ..rewrites import block_truncation


@method(
    Paper(
        "Monarch: Expressive Structured Matrices for Efficient and Accurate Training",
        "2204.00595",
        "the abstract and the code of the projection: the SVD of each block gives the nearest",
        "rows keep their order, so that the output's permutation is left out; ranks above 1 are "
        "the code's generalisation; reverse sparsification is `corank.merge` after training",
    ),
    area="compress",
    laws=("block_optimal",),
)
def monarch(blocks: int = 4) -> Recipe:
    """The nearest product of two block diagonal matrices, with a permutation between.

    blocks: at least 2, and a divisor of both sides of every target.
    """
    if blocks < 2:
        raise ValueError(f"blocks={blocks}: a Monarch matrix has at least 2")
    return Recipe(block_truncation(blocks))
