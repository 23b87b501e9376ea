"""Rewrites, Operator -> Operator, and families of them indexed by a size."""

from .adapting import plus, split, zero_low_rank
from .compensation import compensation
from .menu import Menu
from .quantisation import round_to_nearest
from .rewrite import Family, Rewrite, Unit, by_site
from .truncation import spectrum, truncation
from .utilised import utilised

__all__ = [
    "Family",
    "Menu",
    "Rewrite",
    "Unit",
    "by_site",
    "compensation",
    "plus",
    "round_to_nearest",
    "spectrum",
    "split",
    "truncation",
    "utilised",
    "zero_low_rank",
]
