"""Where in its weights the inner channels of a unit are, and the weights that keep some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SiteError
from ..models import Site, channels
from ..operators import Dense, Operator, Product, Select, transpose
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


def layout_of(unit: Unit) -> Layout | None:
    """The channels that a unit can lose, None for one that has to stay whole.

    gate, up and down share their inner channels; q and k the dimensions of their heads. A lone
    maker loses outputs, any other lone weight inputs.
    """
    sites = list(unit.sites)
    if any(site.kind == "embedding" or site.role == "qkv" for site in sites):
        return None
    if sites[-1].role in ("q", "k"):
        return _of_heads(sites)
    if len(sites) == 1 and sites[0].role == "v":
        site = sites[0]
        heads = 1 if site.heads is None else _count(site, site.heads.size)
        return Layout(heads, _singles(site.shape[0] // heads), [_singles(site.shape[0])], [False])
    (group,) = channels(sites)
    every = torch.arange(group.width)
    made = {s.name: group.rows(s, every).view(-1, group.width).mT for s in group.makers}
    places = [made.get(site.name, every[:, None]) for site in sites]
    return Layout(1, _singles(group.width), places, [site.name not in made for site in sites])


def values_layout(value: Site, reader: Site) -> Layout:
    """The channels of v, one run for each of its heads, and where o reads them."""
    width = value.shape[0]
    group = reader.shape[1] // width  # heads of queries for one of values
    size = width if value.heads is None else value.heads.size
    heads = _count(value, size)
    places = [_singles(width), _repeated(heads, size, group)]
    return Layout(heads, _singles(size), places, [False, True])


def _of_heads(sites: list[Site]) -> Layout | None:
    width = sites[-1].shape[0]
    copies = [site.shape[0] // width for site in sites]
    known = sites[-1].heads
    if known is None:
        if max(copies) > 1:
            return None
        return Layout(1, _singles(width), [_singles(width)] * len(sites), [False] * len(sites))
    if known.units is None:
        return None
    heads = _count(sites[-1], known.size)
    places = [_repeated(heads, known.size, count) for count in copies]
    return Layout(heads, torch.tensor(known.units), places, [False] * len(sites))


def _count(site: Site, size: int) -> int:
    if site.shape[0] % size:
        raise SiteError(
            site.where, f"heads of {size} do not divide its {site.shape[0]} outputs",
            "Leave it out of the targets",
        )  # fmt: skip
    return site.shape[0] // size


def _singles(count: int) -> Tensor:
    return torch.arange(count)[:, None]


def _repeated(heads: int, size: int, copies: int) -> Tensor:
    """Where each dimension of a head is, with every head there `copies` times in a row."""
    every = torch.arange(heads * copies * size).view(heads, copies, size)
    return every.transpose(1, 2).flatten(0, 1)  # (heads * size, copies)
