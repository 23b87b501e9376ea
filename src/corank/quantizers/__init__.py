"""Quantisers behind one face: a matrix in, an operator of few bits out."""

from .clipped import clipped
from .decoded import decoded_latents
from .feedback import error_feedback, greedy_paths, row_feedback
from .learned import learned_scales
from .nearest import as_tuned, round_to_nearest, to_normal_float, to_signs, to_ternary
from .quantizer import Quantizer
from .reading import reading_rounded
from .tuning import tune_rounding
from .vectors import vector_codebooks

__all__ = [
    "Quantizer",
    "as_tuned",
    "clipped",
    "decoded_latents",
    "error_feedback",
    "greedy_paths",
    "learned_scales",
    "reading_rounded",
    "round_to_nearest",
    "row_feedback",
    "to_normal_float",
    "to_signs",
    "to_ternary",
    "tune_rounding",
    "vector_codebooks",
]
