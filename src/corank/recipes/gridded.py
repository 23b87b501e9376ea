"""Weights cut into a grid whose parts are of low rank: structured matrices, by projection."""

from __future__ import annotations

from ..registry import Paper, Recipe, method
from ..rewrites import block_truncation, shared_truncation


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
    _require(blocks)
    return Recipe(block_truncation(blocks))


@method(
    Paper(
        "BLAST: Block-Level Adaptive Structured Matrices for Efficient Deep Neural Network "
        "Inference",
        "2410.21262",
        "the abstract: blocks with factors shared along rows and columns, and diagonals of their "
        "own, fitted by preconditioned gradient descent; the body was not read",
        "four blocks a side, 300 steps, a rate falling from one to zero and a shift of a tenth of "
        "the relative error are this library's choices",
    ),
    area="compress",
    laws=("shared_blocks",),
)
def blast(blocks: int = 4, steps: int = 300) -> Recipe:
    """Blocks of low rank that share their factors, each with a diagonal of its own between them.

    blocks: at least 2, and a divisor of both sides of every target. steps: of the fit, at least 1.
    """
    _require(blocks)
    if steps < 1:
        raise ValueError(f"steps={steps} is below 1")
    return Recipe(shared_truncation(blocks, steps))


def _require(blocks: int) -> None:
    if blocks < 2:
        raise ValueError(f"blocks={blocks}: cut each side into at least 2")
