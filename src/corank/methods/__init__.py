"""Recipes: every method as a short composition, one file per family."""

from . import analysis, cores, lora, low_rank, orthonormal, singular_values, spectral, svft

__all__ = [
    "analysis",
    "cores",
    "lora",
    "low_rank",
    "orthonormal",
    "singular_values",
    "spectral",
    "svft",
]
