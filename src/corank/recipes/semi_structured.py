"""Sparse in a pattern that hardware multiplies by, and something dense beside it."""

from __future__ import annotations

from ..registry import Healing, Paper, Recipe, method
from ..rewrites import dense_sparse, wrapped


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


@method(
    Paper(
        "DSFormer: Effective Compression of Text-Transformers by Dense-Sparse Weight Factorization",
        "2312.13211",
        "the abstract and a summary: blocks of the weight, a small dense basis for each, sparse "
        "coefficients by rows, trained straight through; the body was not read",
        "16 columns in a block, two rows of the basis for each coefficient and the start by K-SVD "
        "are this library's; the straight-through factoriser trains by `heal_minutes` of "
        "distillation (two unless said), not on a task's labels, and which coefficients stay is "
        "by their size in every step",
    ),
    area="compress",
    laws=("dense_sparse", "heals"),
)
def dsformer(block: int = 16, rows_per_nonzero: float = 2.0, rounds: int = 10) -> Recipe:
    """Each block of columns in a small basis of its own, by few coefficients a row; then trained.

    block: columns in a block, which divide the weight's.
    rows_per_nonzero: at least 1; the rows of a basis over the coefficients that a row has.
    """
    if block < 1 or rows_per_nonzero < 1:
        raise ValueError(
            f"block={block} and rows_per_nonzero={rows_per_nonzero} must both be at least 1"
        )
    return Recipe(dense_sparse(block, rows_per_nonzero, rounds), heal=Healing())
