"""Weights read as tensors of several modes and replaced by networks of small ones."""

from __future__ import annotations

from ..metrics import euclidean
from ..registry import Paper, Recipe, method
from ..rewrites import any_of, by_site, common_trains, polyadic_sum, truncation
from .grouping import across_layers


@method(
    Paper(
        "Mixed-TD: Efficient Neural Network Accelerator with Layer-Specific Tensor Decomposition",
        "2306.05021",
        "the abstract and the authors' code of both decompositions: SVD or CP for each "
        "convolution, CP as four convolutions",
        "which one, and its rank, is found by an allocator from errors of weights under a budget "
        "of bytes, where the authors search by evolution for an accelerator's throughput; of "
        "their unfoldings only (filters, channels * taps) is offered, without groups; CP is our "
        "alternating least squares with a second, random start",
    ),
    area="compress",
    laws=("compresses", "optimal"),
)
def mixed_td() -> Recipe:
    """The SVD or the canonical polyadic decomposition (CP), for each convolution what errs less.

    Linear layers have two modes, where both are the SVD. Give a budget, not a rank.
    """
    svd = truncation(euclidean())
    either = any_of({"svd": svd, "cp": polyadic_sum()})
    return Recipe(
        by_site(lambda site: either if len(site.modes) > 2 else svd, svd, either),
        allocate="greedy",
    )


@method(
    Paper(
        "Scaling Pre-trained Language Models to Deeper via Parameter-efficient Architecture",
        "2303.16753",
        "the abstract, and five tensors for each weight as in the authors' settings: the central "
        "tensor shared by all layers, auxiliary ones of each layer; the body was not read",
        "fitted to the weights of a model at hand by alternating least squares, where the authors "
        "start from a model that shares whole layers and train; the adapters beside the weights "
        "are `corank.adapt`'s; bonds are capped by one number",
    ),
    area="compress",
    laws=("common_center",),
)
def mpoe(order: int = 5, steps: int = 10) -> Recipe:
    """Matrix product operators whose central tensor is shared by the same weight of all layers.

    order: tensors for each weight, odd and at least 3; a side that has fewer divisors gets tensors
    of size 1. steps: rounds of the fit, at least 1. Sizes are caps on the bonds. Made to be trained
    afterwards (`heal_minutes=`).
    """
    if order < 3 or order % 2 == 0 or steps < 1:
        raise ValueError(f"order={order}, steps={steps}: an odd order of 3 or more, and 1 or more")
    return Recipe(common_trains(order, steps), group=across_layers)
