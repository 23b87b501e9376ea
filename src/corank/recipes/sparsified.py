"""Compression that leaves numbers out wherever they are."""

from __future__ import annotations

from ..registry import Paper, Recipe, method
from ..rewrites import sparsification


@method(
    Paper(
        "Neural Network Pruning as Spectrum Preserving Process",
        "2307.08982",
        "the abstract: pruning as a matrix sparsification that preserves the spectrum; the body, "
        "and so its algorithm, was not read",
        "the algorithm is this library's reading, from the literature on matrix sparsification: "
        "the largest numbers are kept, others are drawn without bias, and of five such parts the "
        "one nearest in the spectral norm is taken; no retraining follows",
    ),
    area="compress",
    laws=("sparsifies",),
)
def spectrum_pruning() -> Recipe:
    """The numbers that keep the singular values: the largest, and some that stand for the rest."""
    return Recipe(sparsification())
