"""Optimisers whose state is small: an algebra of gradient transforms, and methods made of it."""

from .bases import BASES
from .conjugate import Basis, Lift, conjugate
from .full_rank import apollo, fira, frugal
from .galore import galore
from .groups import groups
from .inner import INNER
from .stepping import LowRankOptimizer, optimizer, state_bytes
from .transform import Now, State, Transform, chain

APOLLO = optimizer("APOLLO", apollo)
FRUGAL = optimizer("FRUGAL", frugal)
Fira = optimizer("Fira", fira)
GaLore = optimizer("GaLore", galore)

__all__ = [
    "APOLLO",
    "BASES",
    "FRUGAL",
    "INNER",
    "Basis",
    "Fira",
    "GaLore",
    "Lift",
    "LowRankOptimizer",
    "Now",
    "State",
    "Transform",
    "chain",
    "conjugate",
    "groups",
    "optimizer",
    "state_bytes",
]
