"""Quantisers behind one face: a matrix in, an operator of few bits out."""

from .feedback import error_feedback, greedy_paths, row_feedback
from .learned import learned_scales
from .nearest import round_to_nearest, to_normal_float, to_signs, to_ternary
from .quantizer import Quantizer

__all__ = [
    "Quantizer",
    "error_feedback",
    "greedy_paths",
    "learned_scales",
    "round_to_nearest",
    "row_feedback",
    "to_normal_float",
    "to_signs",
    "to_ternary",
]
