"""Methods as data: what a method composes, where its paper says so, and which laws it obeys."""

from .parts import (
    Adaptation,
    Cascade,
    Factorization,
    Grouping,
    Healing,
    Look,
    Paper,
    Recipe,
    Trains,
    each_alone,
)
from .table import METHODS, Method, find_factorization, find_method, method, methods

__all__ = [
    "METHODS",
    "Adaptation",
    "Cascade",
    "Factorization",
    "Grouping",
    "Healing",
    "Look",
    "Method",
    "Paper",
    "Recipe",
    "Trains",
    "each_alone",
    "find_factorization",
    "find_method",
    "method",
    "methods",
]
