"""Weights read as tensors of several modes and replaced by networks of small ones."""

from __future__ import annotations

from ..metrics import euclidean
from ..registry import Paper, Recipe, method
from ..rewrites import any_of, by_site, polyadic_sum, truncation


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
