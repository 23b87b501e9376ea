"""One bit a number and below: signs with scales, trained towards the original."""

from __future__ import annotations

from ..registry import Healing, Paper, Recipe, method
from ..rewrites import signed, signed_factors


@method(
    Paper(
        "OneBit: Towards Extremely Low-bit Large Language Models",
        "2402.11295",
        "the 1-bit linear layer and its start, sign-value-independent decomposition (SVID)",
        "no layer norm after the layer; training is `heal_minutes` of distillation (two unless "
        "said), gradients passing the signs unchanged, not epochs over a corpus",
    ),
    area="quantize",
    laws=("signs", "settles", "heals"),
)
def onebit() -> Recipe:
    """The sign of every weight, between a scale for each row and each column; then trained."""
    return Recipe(signed(), heal=Healing())


@method(
    Paper(
        "LittleBit: Ultra Low-Bit Quantization via Latent Factorization",
        "2506.13771",
        "Dual-SVID with its residual, the formula of the latent width and the smooth sign, from "
        "the published code",
        "training is `heal_minutes` of distillation (two unless said), not five epochs; scales "
        "take the weight's dtype, the formula counts 16 bits for them; widths stop at a side",
    ),
    area="quantize",
    laws=("signs", "settles", "heals"),
)
def littlebit(bits: float | None = 1.0, residual: bool = True, slope: float = 100.0) -> Recipe:
    """Two factors of signs with scales for rows, columns and between, twice; then trained.

    bits: for each number of the weight, above 0, such as 0.55; None: as the budget has it.
    slope: of the tanh that gradients pass the signs by, at least 0; 0: unchanged.
    """
    if bits is not None and not bits > 0:
        raise ValueError(f"bits={bits}: each number takes more than 0")
    return Recipe(signed_factors(bits, residual, slope), heal=Healing(distillation=10.0))
