"""Whole cells for models of one's own, whose maps depend on their input."""

from .autonomous import AutonomousExperts
from .entmax import entmax15
from .multilinear import MultilinearExperts
from .passthrough import LowRankGRUCell, LowRankHighway
from .scatterbrain import scatterbrain

__all__ = [
    "AutonomousExperts",
    "LowRankGRUCell",
    "LowRankHighway",
    "MultilinearExperts",
    "entmax15",
    "scatterbrain",
]
