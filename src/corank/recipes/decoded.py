"""Weights as what a small network makes of codes, and a low-rank matrix beside it."""

from __future__ import annotations

from ..metrics import euclidean
from ..quantizers import decoded_latents
from ..registry import Paper, Recipe, method
from ..rewrites import compensation, truncation
from .bits import Bits, with_bits


@method(
    Paper(
        "ReALLM: A general framework for LLM compression and fine-tuning",
        "2405.13155",
        "the abstract, a review, and the published code: the SVD of W first, then a decoder with "
        "pixel shuffles (HNeRV) trained for the rest of the one matrix; vectors by k-means",
        "latents are trained themselves, not made by an encoder, which is not kept; a decoder of "
        "two stages, 8 channels and kernels of 3, for some hundred steps, where the code has five "
        "stages, millions of numbers and 20000 epochs; its kernels are rounded after training, "
        "evenly; a scale for each row, not each 64 numbers; one shape for all matrices; no DoRA "
        "scales, no tuning block by block",
    ),
    area="quantize",
    laws=("decodes",),
)
def realm(
    bits: Bits = 8, length: int = 4, rank: int = 64, width: int = 8, steps: int = 200
) -> Recipe:
    """Vector codes, a decoder trained for each matrix, and factors beside it that train.

    `bits` (1 to 8) for every `length` numbers; the decoder has some thousand numbers of 8 bits for
    `width` channels. Each matrix takes `steps` of training; needs no data.
    """
    truncated = truncation(euclidean())
    return with_bits(
        bits,
        lambda b: compensation(
            decoded_latents(b, length, width, steps=steps), truncated, repair_first=True
        ),
        rank=rank, trains="factors",
    )  # fmt: skip
