"""Recipes: every method as a short composition, one file per family."""

from . import low_rank

__all__ = ["low_rank"]
