"""Rewrites, Operator -> Operator, and families of them indexed by a size."""

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
    "round_to_nearest",
    "spectrum",
    "truncation",
    "utilised",
]
