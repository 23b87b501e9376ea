"""Recipes: every method as a short composition, one file per family."""

from . import (
    analysis,
    bases,
    convolution,
    cores,
    data_driven,
    lora,
    low_rank,
    orthogonal,
    orthonormal,
    singular_mixing,
    singular_values,
    skeletons,
    spectral,
    structured,
    unlearning,
)

__all__ = [
    "analysis",
    "bases",
    "convolution",
    "cores",
    "data_driven",
    "lora",
    "low_rank",
    "orthogonal",
    "orthonormal",
    "singular_mixing",
    "singular_values",
    "skeletons",
    "spectral",
    "structured",
    "unlearning",
]
