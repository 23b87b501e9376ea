"""Codes whose rounding is trained until the blocks answer as the original's did."""

from __future__ import annotations

from ..metrics import euclidean
from ..quantizers import learned_scales
from ..registry import Healing, Paper, Recipe, method
from ..rewrites import quantisation
from .bits import Bits, with_bits


@method(
    Paper(
        "LRQ: Optimizing Post-Training Quantization for Large Language Models by Learning Low-Rank "
        "Weight-Scaling Matrices",
        "2407.11534",
        "the published code: quantiser, start and reconstruction loss; asymmetric codes with a "
        "scale for each row",
        "all blocks are trained at once, each on what the blocks before it now give and towards "
        "the original's outputs (relative squared error), for `heal_minutes` (two unless said), "
        "not one block after the other for 5000 steps; the range of a row is searched about one "
        "zero point; activations stay in floats; matrices for which the code takes the full "
        "scaling matrix get the low-rank one",
    ),
    area="quantize",
    laws=("settles", "heals"),
)
def lrq(bits: Bits = 4, rank: int | None = None) -> Recipe:
    """Numbers divided by learned low-rank scales before they are rounded; stored as plain codes.

    rank: of the logarithms of the scales; None: a quarter of the weight's smaller side, which is
    the paper's 1024 of 4096. It costs nothing in the file.
    """
    return with_bits(
        bits, lambda b: quantisation(learned_scales(b, rank), euclidean()), trains="rounding",
        heal=Healing(distillation=1.0, output=0.0),
    )  # fmt: skip
