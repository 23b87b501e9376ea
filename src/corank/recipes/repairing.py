"""Compression that is made good afterwards: by a correction beside it, or by healing."""

from __future__ import annotations

from ..metrics import euclidean, second_moment
from ..quantizers import round_to_nearest
from ..registry import Healing, Paper, Recipe, method
from ..rewrites import compensation, truncation


@method(
    Paper(
        "EoRA: Training-free Compensation for Compressed LLM with Eigenspace Low-Rank "
        "Approximation",
        "2410.21271",
        "the projected residual's SVD, in projection form",
        "null directions of the inputs need no special case; the default rank is the paper's 128 "
        "or the layer's smaller side",
    ),
    area="compress",
    laws=("compensates",),
)
def eora(bits: int = 4, group: int = 64) -> Recipe:
    """Low-rank compensation, in the inputs' metric, of what another compression lost.

    Of the model as given where `original=` names the model before; otherwise of rounding to
    `bits` (2 to 8) in groups of `group` numbers.
    """
    repair = compensation(round_to_nearest(bits, group), truncation(second_moment()))
    return Recipe(repair, rank=128)


@method(
    Paper(
        "PELA: Learning Parameter-Efficient Models with Low-Rank Approximation",
        "2310.10700",
        "section 3: feature distillation and the weight perturbation regulariser",
        "the regulariser is zero, not a pull upwards, while the largest change is below epsilon; "
        "features are compared relative to their size; healing reads the calibration data, for two "
        "minutes, not a pre-training set",
    ),
    area="compress",
    laws=("compresses", "heals"),
)
def pela(distillation: float = 1.0, perturbation: float = 1.0, epsilon: float = 1e-3) -> Recipe:
    """Truncated SVD, then healing: block features near the original's, weights near it too."""
    healing = Healing(distillation, 0.0, perturbation, epsilon)
    return Recipe(truncation(euclidean()), heal=healing)
