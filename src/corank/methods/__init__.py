"""Recipes: every method as a short composition, one file per family."""

from . import (
    analysis,
    cores,
    data_driven,
    experts,
    lora,
    low_rank,
    orthonormal,
    settings,
    singular_mixing,
    singular_values,
    skeletons,
    sparse,
    spectral,
    unlearning,
)

__all__ = [
    "analysis",
    "cores",
    "data_driven",
    "experts",
    "lora",
    "low_rank",
    "orthonormal",
    "settings",
    "singular_mixing",
    "singular_values",
    "skeletons",
    "sparse",
    "spectral",
    "unlearning",
]
