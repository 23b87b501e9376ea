"""Quantisation alone: every number to a code, with what is lost made good by other codes or not."""

from __future__ import annotations

from ..metrics import second_moment
from ..quantizers import error_feedback, greedy_paths
from ..quantizers import round_to_nearest as nearest
from ..registry import Paper, Recipe, method
from ..rewrites import quantisation
from .bits import Bits, with_bits


@method(
    Paper("Rounding to nearest", "", "the baseline of the field: groups with a scale and a zero"),
    area="quantize",
    laws=("quantises",),
)
def round_to_nearest(bits: Bits = 4, group: int = 64, symmetric: bool = False) -> Recipe:
    """The nearest of 2**bits evenly spaced values per group; needs no data."""
    return with_bits(bits, lambda b: quantisation(nearest(b, group, symmetric)))


@method(
    Paper(
        "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
        "2210.17323",
        "section 4, in the form of LDLQ (arXiv 2307.13304), which computes the same",
        "columns go in their own order; damping is `ridge` times the moment's mean diagonal",
    ),
    area="quantize",
    laws=("quantises", "beats_rounding"),
)
def gptq(bits: Bits = 4, group: int = 64, symmetric: bool = False, ridge: float = 0.01) -> Recipe:
    """Column after column, each rounded after taking over what those before it lost."""
    error = second_moment()
    return with_bits(
        bits, lambda b: quantisation(error_feedback(b, group, symmetric, ridge), error)
    )


@method(
    Paper(
        "Post-training Quantization for Neural Networks with Provable Guarantees (GPFQ)",
        "2201.11113",
        "the recursion of q_t and u_t, on the inputs of the original model",
        "the alphabet is the group's own grid of evenly spaced values, not one scaled by a "
        "neuron's range; the variants that make weights sparse are left out; the inputs are those "
        "of the model so far where cascade='compressed', without the original's beside them",
    ),
    area="quantize",
    laws=("quantises", "beats_rounding"),
)
def gpfq(bits: Bits = 4, group: int = 64, symmetric: bool = False) -> Recipe:
    """Column after column, each rounded after the path of errors so far is projected on it."""
    error = second_moment()
    return with_bits(bits, lambda b: quantisation(greedy_paths(b, group, symmetric), error))
