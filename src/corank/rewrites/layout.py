"""Channels that several weights share: where they are, and the weights that keep some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SiteError
from ..operators import Dense, Operator, Product, Select, Transpose, transpose
from .rewrite import Counts, Unit

_ENTRY_BYTES = 4  # of an index


@dataclass(frozen=True)
class Layout:
    """Channels in `heads` equal runs, of which those in one of a head's `units` stay together.

    units: (count, s), numbers within a head. places: for each site of the unit (width, copies),
    the rows of its matrix that a channel has, or the columns where it `reads`.
    """

    heads: int
    units: Tensor
    places: Sequence[Tensor]
    reads: Sequence[bool]

    @property
    def width(self) -> int:
        """How many channels there are."""
        return self.heads * self.units.numel()

    @property
    def step(self) -> int:
        """How many channels go at a time: every head keeps as many."""
        return self.heads * self.units.shape[1]

    def grouped(self, values: Tensor) -> Tensor:
        """values (width, ...) by head, unit and channel of it: (heads, count, s, ...)."""
        return values.unflatten(0, (self.heads, -1))[:, self.units.to(values.device)]

    def order(self, scores: Tensor) -> Tensor:
        """The channels (width,), the best units of all heads first; scores (width,)."""
        best = self.grouped(scores).sum(2).argsort(dim=1, descending=True, stable=True)
        every = self.grouped(torch.arange(self.width, device=scores.device))
        picked = every.gather(1, best[..., None].expand_as(every))  # (heads, count, s)
        return picked.transpose(0, 1).flatten()

    def sizes(self) -> range:
        """How many channels can stay."""
        return range(self.step, self.width + 1, self.step)

    def part(self, i: int, weight: Tensor, kept: Tensor) -> Tensor:
        """What site i of the unit has of the channels `kept`: rows, or columns where it reads."""
        index = self.index(i, kept).to(weight.device)
        return weight[:, index] if self.reads[i] else weight[index]

    def index(self, i: int, kept: Tensor) -> Tensor:
        """The rows or columns of site i that belong to the channels `kept`."""
        return self.places[i].to(kept.device)[kept].flatten()

    def assemble(self, unit: Unit, kept: Tensor, parts: Sequence[Tensor]) -> list[Operator]:
        """The sites' operators from what `part` is to be; those with equal places share an index.

        What is not kept is a row of zeros, or a column that is not read.
        """
        made: list[Operator] = []
        picks: list[Select] = []
        for i, (op, part) in enumerate(zip(unit.ops, parts, strict=True)):
            index = self.index(i, kept).to(op.device, torch.int32)
            first = self._first_alike(i)
            picks.append(Select(index, self.places[i].numel()) if first == i else picks[first])
            stored = Dense(part.to(op.dtype).contiguous())
            whole = (stored, picks[i]) if self.reads[i] else (transpose(picks[i]), stored)
            made.append(Product(*whole))
        return made

    def kept(self, unit: Unit) -> Tensor | None:
        """The channels that `assemble` kept in all of the unit's operators, None where it did not
        make them, or not together."""
        found = [_narrowed(op) for op in unit.ops]
        indices = [None if pair is None else pair[0].index.long() for pair in found]
        once = next(i for i, places in enumerate(self.places) if places.shape[1] == 1)
        kept = indices[once]
        if kept is None:
            return None
        same = all(
            index is not None and torch.equal(index, self.index(i, kept))
            for i, index in enumerate(indices)
        )
        return kept if same else None

    def shortened(self, unit: Unit, kept: Tensor) -> list[Operator]:
        """The unit's operators with the first channels only, `kept`, of those that they keep."""
        parts = []
        for i, op in enumerate(unit.ops):
            found = _narrowed(op)
            assert found is not None
            entries = len(kept) * self.places[i].shape[1]
            weight = found[1].weight
            parts.append((weight[:, :entries] if self.reads[i] else weight[:entries]).clone())
        return self.assemble(unit, kept, parts)

    def counts(self, unit: Unit, size: int | None) -> list[Counts]:
        """Numbers and bytes of each site that keeps `size` channels."""
        if size is None:
            return [(op.numel(), op.bytes()) for op in unit.ops]
        found = []
        for i, op in enumerate(unit.ops):
            entries = size * self.places[i].shape[1]
            numel = entries * op.shape[0 if self.reads[i] else 1]
            index = _ENTRY_BYTES * entries if self._first_alike(i) == i else 0
            found.append((numel, numel * op.dtype.itemsize + index))
        return found

    def paying(self, unit: Unit) -> dict[int, int]:
        """Those of the sizes that store less than the unit does, and their bytes."""
        each = sum(bytes_ for _, bytes_ in self.counts(unit, self.step))
        costs = {size: size // self.step * each for size in self.sizes()}
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
        return next(j for j in range(i + 1) if torch.equal(self.places[j], self.places[i]))


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


def _narrowed(op: Operator) -> tuple[Select, Dense] | None:
    """The index of the channels that an operator keeps, and its rows or columns of them."""
    match list(op.operators) if isinstance(op, Product) else []:
        case [Dense() as stored, Select() as pick]:
            return pick, stored
        case [Transpose(operator=Select() as pick), Dense() as stored]:
            return pick, stored
    return None
