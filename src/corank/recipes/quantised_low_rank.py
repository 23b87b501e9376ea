"""A quantised matrix and a low-rank one beside it: W -> Q + b a."""

from __future__ import annotations

from ..metrics import Measure, activation_scale, euclidean, fisher, second_moment
from ..quantizers import round_to_nearest, to_normal_float
from ..registry import Healing, Paper, Recipe, method
from ..rewrites import Family, any_of, compensation, fresh, only, truncation
from .bits import Bits, with_bits

REPAIRED = ("quantises", "compensates")


@method(
    Paper(
        "QLoRA: Efficient Finetuning of Quantized LLMs",
        "2305.14314",
        "section 3: NF4, double quantisation, and LoRA beside it",
        "the scales' second constants are 8-bit integers with a zero point, not 8-bit floats about "
        "their mean; paged optimisers are left to torch; LoRA's alpha is its rank",
    ),
    area="quantize",
    laws=("quantises",),
)
def qlora(bits: Bits = 4, group: int = 64, rank: int = 64, double: bool = True) -> Recipe:
    """NF4 weights, their scales quantised too, and a LoRA pair that trains; needs no data."""
    return with_bits(
        bits, lambda b: compensation(to_normal_float(b, group, double), fresh()), rank=rank,
        trains="factors",
    )  # fmt: skip


@method(
    Paper(
        "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models",
        "2310.08659",
        "algorithm 1",
        "the best of the rounds is kept, not the last",
    ),
    area="quantize",
    laws=REPAIRED,
)
def loftq(bits: Bits = 4, group: int = 64, rank: int = 16, rounds: int = 5) -> Recipe:
    """Quantisation to normal floats and the SVD of what it loses, in turn; the factors train."""
    truncated = truncation(euclidean())
    return with_bits(
        bits, lambda b: compensation(to_normal_float(b, group), truncated, rounds), rank=rank,
        trains="factors",
    )  # fmt: skip


@method(
    Paper(
        "LQ-LoRA: Low-rank Plus Quantized Matrix Decomposition for Efficient Language Model "
        "Finetuning",
        "2311.12023",
        "algorithm 1; section 3.2, the integer program over bits and blocks; section 3.3, Fisher "
        "weights by their rows' and columns' means",
        "the best of the rounds is kept; with a budget the program compares the errors of the "
        "first round; second-level constants are one setting, as in qlora",
    ),
    area="quantize",
    laws=REPAIRED,
)
def lq_lora(
    bits: Bits = 4,
    group: int = 64,
    rank: int = 64,
    rounds: int = 20,
    double: bool = True,
    weighted: bool = True,
) -> Recipe:
    """LoftQ's alternation with errors weighed by the Fisher information; the factors train.

    bits: 2 to 8 at every site; or several, of which each site gets one, with groups of 16, 32 or
    64, by an integer program under `size` or `keep`, at one `rank`.
    """
    truncated = truncation(fisher() if weighted else euclidean())

    def at(bits: int, group: int) -> Family:
        return compensation(to_normal_float(bits, group, double), truncated, rounds)

    if isinstance(bits, int):
        return Recipe(at(bits, group), rank=rank, trains="factors")
    choices = {f"{b} bits by {g}": only(at(b, g), rank) for b in bits for g in (16, 32, 64)}
    return Recipe(any_of(choices), allocate="ilp", trains="factors")


@method(
    Paper(
        "LQER: Low-Rank Quantization Error Reconstruction for LLMs",
        "2402.02446",
        "LQER's and L2QER's decompositions; the scale is that of the published code",
        "integers with a scale and a zero point for each group, not MXINT; activations stay in "
        "floats; the scale is the mean over all tokens, not the largest of the batches' means",
    ),
    area="quantize",
    laws=REPAIRED,
)
def lqer(bits: Bits = 4, group: int = 64, rank: int = 32, scaled: bool = True) -> Recipe:
    """The SVD of what rounding loses, weighed by the inputs' mean magnitudes where `scaled`."""
    measure = activation_scale(1.0) if scaled else euclidean()
    return _repaired(bits, group, rank, measure)


@method(
    Paper(
        "QERA: an Analytical Framework for Quantization Error Reconstruction",
        "2410.06040",
        "QERA-exact and QERA-approx, theorems 1 and 2",
        "integers with a scale and a zero point for each group, not MXINT; the exact minimiser is "
        "found without the square root of the inputs' moment",
    ),
    area="quantize",
    laws=REPAIRED,
)
def qera(bits: Bits = 4, group: int = 64, rank: int = 32, exact: bool = True) -> Recipe:
    """The low-rank matrix that best repairs the outputs; not `exact`: with uncorrelated inputs."""
    measure = second_moment() if exact else activation_scale(1.0, of="rms")
    return _repaired(bits, group, rank, measure)


@method(
    Paper(
        "INT2.1: Towards Fine-Tunable Quantized Large Language Models with Error Correction "
        "through Low-Rank Adaptation",
        "2306.08162",
        "the abstract: low-rank error correction, added factors trained to close the gap between "
        "the quantised model and the original; the body was not read",
        "the gap is the distance of the final outputs; codes are rounded to nearest; its "
        "memory-efficient fine-tuning is any training loop over what trains here",
    ),
    area="quantize",
    laws=("quantises", "heals"),
)
def int21(bits: Bits = 2, group: int = 64, rank: int = 16) -> Recipe:
    """Codes and a fresh low-rank pair, trained until the model answers as the original did."""
    return with_bits(
        bits, lambda b: compensation(round_to_nearest(b, group), fresh()), rank=rank,
        trains="factors", heal=Healing(distillation=0.0, output=1.0),
    )  # fmt: skip


def _repaired(bits: Bits, group: int, rank: int, measure: Measure) -> Recipe:
    truncated = truncation(measure)
    return with_bits(bits, lambda b: compensation(round_to_nearest(b, group), truncated), rank=rank)
