"""Channels that several weights share: where they are, and the weights that keep some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import final

import torch
from torch import Tensor

from ..errors import SiteError
from ..operators import Dense, Operator, Product, Select, Transpose, transpose
from .rewrite import Counts, Unit
from .runs import Run

_ENTRY_BYTES = 4  # of an index


@final
@dataclass(frozen=True)
class Layout:
    """Channels of one or several runs, numbered one run after the other.

    Runs lose the same share of their units. places: for each site of the unit (width, copies), the
    rows of its matrix that a channel has, or the columns where it `reads`, -1 where it has none.
    always: for each site the rows that belong to no channel and stay; empty: none in any.
    """

    runs: Sequence[Run]
    places: Sequence[Tensor]
    reads: Sequence[bool]
    always: Sequence[Tensor] = ()

    @property
    def width(self) -> int:
        """How many channels there are."""
        return sum(run.width for run in self.runs)

    @property
    def step(self) -> int:
        """How many channels go at a time: every head keeps as many."""
        return self.width // self._steps

    @property
    def _steps(self) -> int:
        return gcd(*(len(run.units) for run in self.runs))

    def order(self, scores: Tensor) -> Tensor:
        """The channels (width,), the best units of all heads first; scores (width,)."""
        parts, start = [], 0
        for run in self.runs:
            ranked = run.ranked(scores[start : start + run.width])
            parts.append(start + ranked.reshape(self._steps, -1))
            start += run.width
        return torch.cat(parts, 1).flatten()

    def sizes(self) -> range:
        """How many channels can stay."""
        return range(self.step, self.width + 1, self.step)

    def part(self, i: int, weight: Tensor, kept: Tensor) -> Tensor:
        """What site i of the unit has of the channels `kept`: rows, or columns where it reads."""
        index = self.index(i, kept).to(weight.device)
        return weight[:, index] if self.reads[i] else weight[index]

    def index(self, i: int, kept: Tensor) -> Tensor:
        """The rows or columns that site i keeps: those that always stay, then those of `kept`."""
        places = self.places[i].to(kept.device)[kept].flatten()
        return torch.cat([self._fixed(i).to(kept.device), places[places >= 0]])

    def _fixed(self, i: int) -> Tensor:
        return self.always[i] if self.always else torch.arange(0)

    def _entries(self, i: int, size: int) -> int:
        """How many rows or columns site i has of `size` channels."""
        return (
            len(self._fixed(i))
            + size // self.step * int((self.places[i] >= 0).sum()) // self._steps
        )

    def assemble(self, unit: Unit, kept: Tensor, parts: Sequence[Tensor]) -> list[Operator]:
        """The sites' operators from what `part` is to be; those with equal places share an index.

        What is not kept is a row of zeros, or a column that is not read.
        """
        made: list[Operator] = []
        picks: list[Select] = []
        for i, (op, part) in enumerate(zip(unit.ops, parts, strict=True)):
            index = self.index(i, kept).to(op.device, torch.int32)
            first = self._first_alike(i)
            size = op.shape[1 if self.reads[i] else 0]
            picks.append(Select(index, size) if first == i else picks[first])
            stored = Dense(part.to(op.dtype).contiguous())
            whole = (stored, picks[i]) if self.reads[i] else (transpose(picks[i]), stored)
            made.append(Product(*whole))
        return made

    def kept(self, unit: Unit) -> Tensor | None:
        """The channels that `assemble` kept in all of the unit's operators, None where it did not
        make them, or not together."""
        found = [_narrowed(op, reads) for op, reads in zip(unit.ops, self.reads, strict=True)]
        indices = [None if pair is None else pair[0].index.long() for pair in found]
        every = next(i for i, places in enumerate(self.places) if bool((places >= 0).all()))
        index = indices[every]
        if index is None:
            return None
        kept = self._channels(every, index, unit.ops[every])
        same = all(
            index is not None and torch.equal(index, self.index(i, kept))
            for i, index in enumerate(indices)
        )
        return kept if same else None

    def _channels(self, i: int, index: Tensor, op: Operator) -> Tensor:
        """The channels whose rows or columns `index` says, if it is of this layout."""
        first = self.places[i][:, 0].to(index.device)
        numbers = torch.zeros(
            op.shape[1 if self.reads[i] else 0], dtype=torch.long, device=index.device
        )
        numbers[first] = torch.arange(self.width, device=index.device)
        return numbers[index[len(self._fixed(i)) :: self.places[i].shape[1]]]

    def shortened(self, unit: Unit, kept: Tensor) -> list[Operator]:
        """The unit's operators with the first channels only, `kept`, of those that they keep."""
        parts = []
        for i, op in enumerate(unit.ops):
            found = _narrowed(op, self.reads[i])
            assert found is not None
            entries = self._entries(i, len(kept))
            weight = found[1].weight
            parts.append((weight[:, :entries] if self.reads[i] else weight[:entries]).clone())
        return self.assemble(unit, kept, parts)

    def counts(self, unit: Unit, size: int | None) -> list[Counts]:
        """Numbers and bytes of each site that keeps `size` channels."""
        if size is None:
            return [(op.numel(), op.bytes()) for op in unit.ops]
        found = []
        for i, op in enumerate(unit.ops):
            entries = self._entries(i, size)
            numel = entries * op.shape[0 if self.reads[i] else 1]
            index = _ENTRY_BYTES * entries if self._first_alike(i) == i else 0
            found.append((numel, numel * op.dtype.itemsize + index))
        return found

    def paying(self, unit: Unit) -> dict[int, int]:
        """Those of the sizes that store less than the unit does, and their bytes."""
        fixed, first = (sum(b for _, b in self.counts(unit, size)) for size in (0, self.step))
        costs = {size: fixed + size // self.step * (first - fixed) for size in self.sizes()}
        return {size: cost for size, cost in costs.items() if cost < unit.bytes}

    def require(self, unit: Unit, size: int) -> None:
        """Refuse a number of channels that cannot stay."""
        if size not in self.sizes():
            raise SiteError(
                unit.name,
                f"{size} channels cannot stay: it takes a multiple of {self.step}, at most "
                f"{self.width}",
                "Ask for such a number, or give keep= or size= instead of rank=",
            )

    def _first_alike(self, i: int) -> int:
        """The first site whose channels are in the same places."""
        return next(
            j for j in range(i + 1)
            if torch.equal(self.places[j], self.places[i])
            and torch.equal(self._fixed(j), self._fixed(i))
        )  # fmt: skip


def is_narrowed(op: Operator) -> bool:
    """Whether it is what `Layout.assemble` makes, or that in codes or scaled since."""
    match op:
        case Select():
            return True
        case Transpose():
            return is_narrowed(op.operator)
        case Product():
            return is_narrowed(op.operators[0]) or is_narrowed(op.operators[-1])
    return False


def _narrowed(op: Operator, reads: bool) -> tuple[Select, Dense] | None:
    """The index of the channels that an operator keeps, and its rows, or columns, of them."""
    match list(op.operators) if isinstance(op, Product) else []:
        case [Dense() as stored, Select() as pick] if reads:
            return pick, stored
        case [Transpose(operator=Select() as pick), Dense() as stored] if not reads:
            return pick, stored
    return None
