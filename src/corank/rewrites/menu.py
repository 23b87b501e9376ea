from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


class Menu:
    """What a unit can become: for each value the numbers stored, and the error, found on demand.

    `values` are sizes (ranks); the last may be None, which leaves the unit as it is at no error.
    `costs` are in numel and increase strictly. `spectrum()` gives squared singular values of the
    unit in its metric, descending; the error of a rank is what it leaves out of them.
    """

    def __init__(
        self,
        values: Sequence[int | None],
        costs: Sequence[int],
        spectrum: Callable[[], Tensor],
    ) -> None:
        if not values or len(values) != len(costs):
            raise ValueError(f"a menu needs a cost for each value: {len(values)}, {len(costs)}")
        if any(low >= high for low, high in pairwise(costs)):
            raise ValueError("a menu's costs must increase strictly")
        self.values, self.costs = list(values), list(costs)
        self._find_spectrum = spectrum

    @cached_property
    def spectrum(self) -> Tensor:
        """Squared singular values, descending, fp64 on the CPU."""
        return self._find_spectrum().double().cpu()

    @cached_property
    def total(self) -> float:
        """The error of keeping nothing."""
        return float(self.spectrum.sum())

    @cached_property
    def errors(self) -> list[float]:
        """The error of each value, >= 0 and not increasing."""
        tails = self.spectrum.flip(0).cumsum(0).flip(0)
        tails = torch.cat([tails, tails.new_zeros(1)])
        return [0.0 if v is None else float(tails[min(v, len(tails) - 1)]) for v in self.values]

    def largest_within(self, cost: float) -> int | None:
        """The index of the most expensive value of at most `cost`, or None if all cost more."""
        affordable = [i for i, c in enumerate(self.costs) if c <= cost]
        return affordable[-1] if affordable else None
