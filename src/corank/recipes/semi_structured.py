"""Sparse in a pattern that hardware multiplies by, and something dense beside it."""

from __future__ import annotations

from ..registry import Paper, Recipe, method
from ..rewrites import wrapped


@method(
    Paper(
        "ARMOR: High-Performance Semi-Structured Pruning via Adaptive Matrix Factorization",
        "",
        "the authors' code (LawrenceRLiu/ARMOR): the start at identities, the loss weighted by the "
        "inputs' second moments on a weight with unit columns and rows, Adam on the continuous "
        "part, a group of four in each block drawn by its gradient, the six masks in closed form",
        "300 steps at 3e-3, where the code takes 3000 at 1e-4; Adam moves the core's numbers too; "
        "of all steps the best is kept, where the code keeps the last",
    ),
    area="compress",
    laws=("two_of_four",),
)
def armor(block: int = 32, steps: int = 300) -> Recipe:
    """Two of every four numbers, between block diagonal matrices that make good for the others.

    block: the side of a block, a multiple of 4 that divides the weight's sides.
    steps: of the descent, at least 0; for 0 the blocks are diagonal.
    """
    if block < 4 or block % 4 or steps < 0:
        raise ValueError(f"block={block} must be a multiple of 4, and steps={steps} at least 0")
    return Recipe(wrapped(block, steps))
