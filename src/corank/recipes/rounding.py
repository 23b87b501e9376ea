"""Quantisation alone: every number to a code, with what is lost made good by other codes or not."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..calibration import Batches, Loss
from ..metrics import euclidean, second_moment
from ..models import Site
from ..quantizers import as_tuned, error_feedback, greedy_paths, tune_rounding
from ..quantizers import round_to_nearest as nearest
from ..quantizers.tuning import CLIP, SHIFT
from ..registry import Healing, Look, Paper, Recipe, method
from ..rewrites import quantisation
from ..rewrites.outlier_columns import outlier_columns
from .bits import Bits, with_bits

WHOLE_ROW = 2**30  # a group longer than any row


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


@method(
    Paper(
        "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs",
        "2309.05516",
        "the abstract, and AutoRound's published code: V within half a step, factors of both ends "
        "of a group's range, signs of gradients with a linear decay, the block's output error, "
        "each block on what the quantised ones before it give, the best kept",
        "best is relative to plain rounding on the step's batch; every token of a batch counts; "
        "codes have zero points always; what stands in no block is rounded to nearest; the "
        "library itself is not called: it takes language models with their tokenizer only",
    ),
    area="quantize",
    laws=("quantises",),
)
def signround(bits: int = 4, group: int = 64, steps: int = 200) -> Recipe:
    """Which way to round, and how far groups reach, learnt block after block.

    steps: batches seen by each block, at least 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")

    def find(model: nn.Module, sites: Sequence[Site], data: Batches, loss: Loss | None) -> None:
        tune_rounding(model, sites, data, bits, group, steps)

    return Recipe(quantisation(as_tuned(bits, group)), look=Look(find, frozenset({SHIFT, CLIP})))


@method(
    Paper(
        "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale",
        "2208.07339",
        "the abstract and bitsandbytes, whose codes ours equal: a scale for each row of the "
        "inputs and each output, input columns with outliers above 6 in 16 bits",
        "the outliers are those that calibration saw, not each batch's own; rows' scales leave "
        "them out; the codes are multiplied as whole numbers in floats, on every device, not by "
        "bitsandbytes' kernels",
    ),
    area="quantize",
    laws=("rounds_inputs",),
)
def llm_int8(threshold: float = 6.0) -> Recipe:
    """Codes of 8 bits for weights and inputs, but floats for inputs above `threshold` > 0.

    A dry run, which sees no inputs, counts no columns of floats.
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be above 0, got {threshold}")
    rows = nearest(8, WHOLE_ROW, symmetric=True)
    return Recipe(outlier_columns(rows, 8, threshold, euclidean()))


@method(
    Paper(
        "Norm Tweaking: High-performance Low-bit Quantization of Large Language Models",
        "2309.02784",
        "the abstract and a review: after GPTQ, norms are tuned by the distance of channels' means "
        "and variances; the body was not read",
        "all norms at once for `heal_minutes` (two unless said), not layer by layer for an "
        "iteration; the data are those given, not generated by the model",
    ),
    area="quantize",
    laws=("quantises", "beats_rounding", "heals"),
)
def norm_tweaking(
    bits: Bits = 4, group: int = 64, symmetric: bool = False, ridge: float = 0.01
) -> Recipe:
    """GPTQ, and then norms tuned so that channels are distributed as in the original."""
    error = second_moment()
    return with_bits(
        bits, lambda b: quantisation(error_feedback(b, group, symmetric, ridge), error),
        trains="norms", heal=Healing(distillation=0.0, output=0.0, channels=1.0),
    )  # fmt: skip
