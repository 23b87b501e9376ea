"""How `corank.compress` stores what fine-tuning changed: as an adapter of the model before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import nn

from ..adapters.record import Adapter
from ..engine.budget import budget_bytes
from ..engine.changes import Changes, find_changes, put_before, take_out
from ..errors import DataError
from ..io.adapter_placing import place_adapter
from ..io.adapter_record import recipe_of
from ..models import Site, read
from ..operators import Operator
from ..operators.counting import count_each
from ..report.units import show_bytes

#: The adapter's name on the model, which `corank.save_adapter` takes if none is given.
NAME = "default"


@final
@dataclass
class Delta:
    """A fine-tuned model, the one before, and where they differ."""

    model: nn.Module
    original: nn.Module
    changes: Changes
    bases: dict[str, Operator] | None = None

    def notes(self, sites: Sequence[Site]) -> list[str]:
        """What a report says of targets that did not change, and of what is held in full."""
        same, own = len(sites) - len(self.changes.sites), self.changes.own
        notes = [f"{same} targeted weights are the original's, and are not stored"] if same else []
        if own:
            size = show_bytes(self.changes.own_bytes)
            notes.append(f"not targeted, so stored in full, {size}: {', '.join(own)}")
        return notes

    def take_out(self) -> None:
        """From here to `put_beside`, the changes stand in the place of the changed weights."""
        self.bases = take_out(self.model, self.original, self.changes)

    def put_beside(
        self, method: str, parameters: Mapping[str, Any], targets: Any, seed: int
    ) -> dict[str, int]:
        """Put the original's values in place, and what stands in the model beside them.

        Returns the numbers and the bytes that the delta stores.
        """
        assert self.bases is not None
        sites, own = {site.name: site for site in self.changes.sites}, self.changes.own
        made = put_before(self.model, self.original, self.changes, self.bases)
        held = Adapter(
            NAME, method, dict(parameters), targets, seed, sites, recipe_of(method, parameters),
            also=tuple(own), trains=dict.fromkeys(sites, ()),
        )  # fmt: skip
        for site in self.changes.sites:
            site.stats.clear()
            site.pool.clear()
        place_adapter(self.model, held, made, own)
        counts = count_each(made.values())
        return {
            "numel": sum(numel for numel, _ in counts) + sum(v.numel() for v in own.values()),
            "bytes": sum(bytes_ for _, bytes_ in counts) + self.changes.own_bytes,
        }


def open_delta(
    model: nn.Module, original: nn.Module | None, sites: Sequence[Site], method: str
) -> Delta:
    """Find where the two models differ. Raises DataError where there is no original."""
    if original is None:
        raise DataError(
            f"{method!r} stores what fine-tuning changed: give original=, the model before it"
        )
    return Delta(model, original, find_changes(model, original, sites))


def require_at_once(method: str, **options: Any) -> None:
    """Refuse what runs the model while changes stand in it. ValueError."""
    for name, value in options.items():
        if value:
            raise ValueError(
                f"{method!r} works on what fine-tuning changed, which is no model to run: leave "
                f"{name}= out"
            )


def as_fraction(
    model: nn.Module, sites: Sequence[Site], changes: Changes | None, size: str
) -> float:
    """`size`, of the whole delta, as the fraction of the targeted weights' bytes that is left."""
    ops = [read(model, site) for site in sites]
    own = [] if changes is None else list(changes.own.values())
    whole = nn.ModuleList([*ops, nn.ParameterList(own)])
    return budget_bytes(whole, ops, keep=None, size=size) / sum(op.bytes() for op in ops)
