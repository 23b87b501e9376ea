"""Columns scaled so that quantisation hurts less, and scaled back afterwards."""

from __future__ import annotations

from ..metrics import euclidean, second_moment
from ..quantizers import reading_rounded, round_to_nearest
from ..registry import Paper, Recipe, method
from ..rewrites import Family, compensation, quantisation, smoothing, truncation
from ..rewrites.scales import between, by_activations
from .bits import Bits, with_bits


@method(
    Paper(
        "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
        "2306.00978",
        "section 3.2, equations 4 and 5: the exponent of the mean magnitudes by grid search",
        "each layer's output error is searched, not its block's; the inverse scales stay beside "
        "the codes, not folded into the layer before; weights are not clipped",
    ),
    area="quantize",
    laws=("quantises", "beats_rounding"),
)
def awq(bits: Bits = 4, group: int = 64, points: int = 20) -> Recipe:
    """Columns that read large inputs are scaled up before rounding, by the best of `points`."""
    scales, error = by_activations(points), second_moment()

    def family(bits: int) -> Family:
        inner = quantisation(round_to_nearest(bits, group), error)
        return smoothing(inner, scales, error, frozenset({"abs_mean"}))

    return with_bits(bits, family)


@method(
    Paper(
        "SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models",
        "2411.05007",
        "section 4.2: smoothing, then the SVD's leading part in floats and the rest in codes, "
        "refined in turn with the best kept",
        "activations stay in floats but with `activation_bits`, whose codes are multiplied as "
        "floats, by no kernel of 4 bits; the refinement keeps what is nearest as a matrix, and the "
        "smoothing what errs least at the outputs of inputs in floats; the inverse scales stay "
        "beside the codes",
    ),
    area="quantize",
    laws=("quantises", "compensates"),
)
def svdquant(
    bits: Bits = 4,
    group: int = 64,
    rank: int = 32,
    rounds: int = 1,
    points: int = 10,
    activation_bits: int | None = None,
) -> Recipe:
    """Outliers are shifted from inputs to weights, and a low-rank branch takes them from there.

    activation_bits: 2 to 8 (the paper's 4) for the inputs of the codes, of each token and `group`;
    the low-rank branch reads them as they are. None leaves all in floats.
    """
    scales, error = between(points), second_moment()

    def family(bits: int) -> Family:
        codes = round_to_nearest(bits, group)
        if activation_bits is not None:
            codes = reading_rounded(codes, activation_bits, group)
        repaired = compensation(codes, truncation(euclidean()), rounds, repair_first=True)
        return smoothing(repaired, scales, error, frozenset({"abs_max"}))

    return with_bits(bits, family, rank=rank)
