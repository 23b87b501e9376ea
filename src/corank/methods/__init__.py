"""Recipes: every method as a short composition, one file per family."""

from . import analysis, lora, low_rank, spectral

__all__ = ["analysis", "lora", "low_rank", "spectral"]
