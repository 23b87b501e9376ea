"""Quantisers behind one face: a matrix in, an operator of few bits out."""

from .decoded import decoded_latents
from .feedback import error_feedback, greedy_paths
from .learned import learned_scales
from .nearest import round_to_nearest, to_normal_float, to_signs, to_ternary
from .quantizer import Quantizer
from .vectors import vector_codebooks

__all__ = [
    "Quantizer",
    "decoded_latents",
    "error_feedback",
    "greedy_paths",
    "learned_scales",
    "round_to_nearest",
    "to_normal_float",
    "to_signs",
    "to_ternary",
    "vector_codebooks",
]
