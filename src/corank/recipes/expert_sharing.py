"""Experts of a mixture that share weights."""

from __future__ import annotations

from typing import Literal

from ..metrics import second_moment
from ..registry import Paper, Recipe, method
from ..rewrites import basis_mixture, merging
from .grouping import experts_of_a_layer


@method(
    Paper(
        "MoBE: Mixture-of-Basis-Experts for Compressing MoE-based LLMs",
        "2508.05257",
        "the abstract and the authors' code: factorisation, start, loss, rate, best state",
        "500 steps, where the code takes 10,000 and more; bases start with entries of size one and "
        "targets are divided by their size before the SVD, too; experts that its bases' runs do "
        "not divide are split as evenly as can be; mixing weights are stored after the softmax. "
        "Here the size is the bases' rows, in the code those of the weight, or less.",
    ),
    area="compress",
    laws=("shared_bases",),
)
def mobe(
    per_basis: int = 4, activation: Literal["silu", "tanh"] = "silu", steps: int = 500
) -> Recipe:
    """An expert's gate and up are its own factor times an activated mixture of shared bases.

    One basis for each `per_basis` of a layer's experts; gate's and up's are apart. Down projections
    and all other weights are left as they are. Needs no data; slower to run than dense.
    steps: of Adam, per layer.
    """
    if per_basis < 1 or steps < 1 or activation not in ("silu", "tanh"):
        raise ValueError(
            f"per_basis={per_basis} and steps={steps} are at least 1, and activation="
            f"{activation!r} is 'silu' or 'tanh'"
        )
    family = basis_mixture(per_basis, activation, steps)
    return Recipe(family, group=experts_of_a_layer("gate_up_proj"))


@method(
    Paper(
        "Sub-MoE: Efficient Mixture-of-Expert LLMs Compression via Subspace Expert Merging",
        "2506.23266",
        "the abstract and summaries of the two phases; the body was not read, no code was found",
        "k-means starts from the farthest points, drawing nothing. With all of Sigma kept, U Sigma "
        "times the weighted mean of the V's is the weighted mean of the weights, and is computed "
        "so; cut, it is projected on the leading U of the weights whitened each by its own inputs. "
        "How many experts stay in a layer is left to `allocate`, by the outputs' error, where the "
        "paper clusters the layers jointly. A cluster that no token reached is merged with equal "
        "weights. The router stays: merged experts share one weight in storage, and a token sent "
        "to two of them runs it twice.",
    ),
    area="compress",
    laws=("merges",),
)
def submoe(kept: float = 1.0) -> Recipe:
    """Experts with like outputs are merged in the subspace that they span together.

    The size is how many experts stay in a layer. kept: the part of the joint singular directions
    that stays, in (0, 1]; below 1 the merged experts are two factors each.
    """
    if not 0 < kept <= 1:
        raise ValueError(f"kept={kept} is outside (0, 1]: it is the part of the directions kept")
    group = experts_of_a_layer("gate_up_proj", "down_proj")
    return Recipe(merging(second_moment(), kept), group=group, allocate="greedy")
