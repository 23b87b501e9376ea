"""Compression of two weights into one matrix."""

from __future__ import annotations

from ..metrics import second_moment
from ..registry import Healing, Paper, Recipe, method
from ..rewrites import transposed_sharing
from .grouping import transposed_pairs


@method(
    Paper(
        "Do deep neural networks utilize the weight space efficiently?",
        "2401.16438",
        "a summary with the equations: FFN(x) = W^T F(W x + b1) + b2; the body was not read",
        "the paper trains its networks from scratch: here W is the best for both projections of a "
        "trained model, on the inputs seen, and `heal_minutes` of distillation follow (two unless "
        "said); a gate beside the up projection keeps its own weight; bottlenecks of convolutions "
        "are not paired",
    ),
    area="compress",
    laws=("pairs", "heals"),
)
def row_column_sharing(ridge: float = 0.0) -> Recipe:
    """The down projection of a feed-forward part is the up projection's transpose."""
    return Recipe(transposed_sharing(second_moment(ridge)), group=transposed_pairs, heal=Healing())
