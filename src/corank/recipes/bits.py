"""One number of bits for all sites, or several to choose from under a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..registry import Recipe
from ..rewrites import Family, any_of

#: 2 to 8 at every site; or several, of which each site gets one, by the budget in bytes.
Bits = int | Sequence[int]


def with_bits(bits: Bits, family: Callable[[int], Family], **recipe: Any) -> Recipe:
    """The recipe of `family(bits)`, or one that chooses bits, and ranks where there are any."""
    if isinstance(bits, int):
        return Recipe(family(bits), **recipe)
    if not isinstance(bits, Sequence) or not bits:
        raise ValueError(f"bits={bits!r}: name one number of bits, or several to choose from")
    recipe = {name: value for name, value in recipe.items() if name != "rank"}
    return Recipe(any_of({b: family(b) for b in bits}), allocate="relative", **recipe)
