"""Recipes: every method as a short composition, one file per family."""

from . import analysis, low_rank

__all__ = ["analysis", "low_rank"]
