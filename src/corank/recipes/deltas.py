"""What fine-tuning changed, in few bytes, beside the model that was fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence

from ..metrics import euclidean
from ..quantizers import Quantizer, error_feedback, round_to_nearest, row_feedback
from ..registry import Paper, Recipe, method
from ..rewrites import banded, truncation


@method(
    Paper(
        "Efficient Storage of Fine-Tuned Models via Low-Rank Approximation of Weight Residuals",
        "2305.18425",
        "the abstract: low-rank residuals, quantised, and ranks allocated layer by layer; the body "
        "was not read",
        "the factors share S by its root, and are rounded to nearest in groups along each singular "
        "vector; ranks go where they lower the squared error most for their bytes",
    ),
    area="compress",
    laws=("encodes",),
)
def ere(bits: int | None = 8, group: int = 64) -> Recipe:
    """Truncated SVDs of what fine-tuning changed, quantised, ranks shared out between the layers.

    bits: 2 to 8, of both factors; None keeps them in the weights' dtype, which is a plain LoRA.
    """
    if bits is None:
        return Recipe(truncation(euclidean()), allocate="greedy", delta=True)

    def nearest(bits: int) -> Quantizer:
        return round_to_nearest(bits, group)

    return Recipe(banded([bits], [], nearest, nearest), allocate="greedy", delta=True)


@method(
    Paper(
        "Delta-CoMe: Training-Free Delta-Compression with Mixed-Precision for Large Language "
        "Models",
        "2406.08903",
        "the published code: 8 bits for 2 singular vectors, 3 for the next 32, 2 for the rest, V "
        "then U by GPTQ, each band by itself",
        "the inputs are those of the fine-tuned model as it was; U has its scales in groups along "
        "each vector, not across vectors, so that a narrow band pays for its bits only; columns "
        "keep their order; scales and zero points are counted, which the paper's ratio is not",
    ),
    area="compress",
    laws=("encodes",),
)
def delta_come(
    bits: Sequence[int] = (8, 3, 2), vectors: Sequence[int] = (2, 32), group: int = 128
) -> Recipe:
    """Singular vectors of what fine-tuning changed, in fewer bits the smaller their value is.

    bits: of each band, 2 to 8. vectors: how many singular vectors each band but the last holds.
    The paper's size is `keep=1/16`.
    """
    family = banded(
        bits, vectors, lambda b: error_feedback(b, group), lambda b: row_feedback(b, group)
    )
    return Recipe(family, delta=True)
