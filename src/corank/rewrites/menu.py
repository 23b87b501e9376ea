from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

#: What a unit can become: a rank, (a key, a size) of `any_of`, 0 where there is only one way, or
#: None, as it is.
Size = Hashable


@final
class Menu:
    """What a unit can become: for each size the bytes stored, and the error, found on demand.

    The last of `sizes` may be None, which leaves the unit as it is at no error. `costs` are bytes
    and increase strictly. `errors()` is asked for once, when an allocator compares. `spectrum()`,
    where the sizes are ranks, gives the squared singular values of the unit in its metric.
    """

    def __init__(
        self,
        sizes: Sequence[Size],
        costs: Sequence[int],
        errors: Callable[[], Sequence[float]],
        spectrum: Callable[[], Tensor] | None = None,
    ) -> None:
        if not sizes or len(sizes) != len(costs):
            raise ValueError(f"a menu needs a cost for each size: {len(sizes)}, {len(costs)}")
        if any(low >= high for low, high in pairwise(costs)):
            raise ValueError("a menu's costs must increase strictly")
        self.sizes, self.costs = list(sizes), list(costs)
        self._errors, self._spectrum = errors, spectrum

    @cached_property
    def errors(self) -> list[float]:
        """The error of each size, >= 0."""
        return list(self._errors())

    @property
    def has_spectrum(self) -> bool:
        """Whether the sizes are ranks, and the errors what they leave out of a spectrum."""
        return self._spectrum is not None

    @cached_property
    def spectrum(self) -> Tensor:
        """Squared singular values, descending, fp64, CPU. ValueError where sizes are no ranks."""
        if self._spectrum is None:
            raise ValueError(
                "this method's choices are more than ranks, and the allocator cuts spectra: "
                "allocate by 'uniform', 'greedy' or 'knapsack'"
            )
        return self._spectrum().double().cpu()

    @cached_property
    def total(self) -> float:
        """The error of keeping nothing."""
        return float(self.spectrum.sum())

    def at(self, indices: Sequence[int]) -> Menu:
        """The menu with only the sizes of these indices."""
        return Menu(
            [self.sizes[i] for i in indices],
            [self.costs[i] for i in indices],
            lambda: [self.errors[i] for i in indices],
            self._spectrum and (lambda: self.spectrum),
        )

    def dearer(self, by: int) -> Menu:
        """The menu where all sizes but None cost that much more, those that still pay."""
        costs = [
            c if size is None else c + by for size, c in zip(self.sizes, self.costs, strict=True)
        ]
        whole = self.costs[-1] if self.sizes[-1] is None else costs[-1] + 1
        kept = [i for i, c in enumerate(costs) if c < whole or self.sizes[i] is None]
        menu = self.at(kept)
        menu.costs = [costs[i] for i in kept]
        return menu

    def largest_within(self, cost: float) -> int | None:
        """The index of the most expensive size of at most `cost`, or None if all cost more."""
        affordable = [i for i, c in enumerate(self.costs) if c <= cost]
        return affordable[-1] if affordable else None


def menu_of_ranks(
    ranks: Sequence[int | None], costs: Sequence[int], spectrum: Callable[[], Tensor]
) -> Menu:
    """A menu whose sizes are ranks: the error of one is what it leaves out of the spectrum."""

    def errors() -> list[float]:
        tails = menu.spectrum.flip(0).cumsum(0).flip(0)
        tails = torch.cat([tails, tails.new_zeros(1)])
        return [0.0 if r is None else float(tails[min(r, len(tails) - 1)]) for r in ranks]

    menu = Menu(ranks, costs, errors, spectrum)
    return menu
