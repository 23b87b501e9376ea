"""One block between the streams that run into it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from ..models import Site
from .experts import fill_up
from .inputs import InputPass
from .record import Record
from .residual import Sum, find_sums
from .running import untouched
from .streams import BlockCall, Stream
from .wanted import Wanted


@final
class BlockWalk:
    """One block, its calls in every batch, and the streams that run into it.

    held: the batches. reference: the original block, where there is an original stream and the
    block at hand is about to be rewritten.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        calls: Sequence[BlockCall],
        held: Sequence[Any],
        current: Stream,
        original: Stream | None,
        device: torch.device,
    ) -> None:
        self.model, self.name, self.calls, self.held = model, name, calls, held
        self.current, self.original, self.device = current, original, device
        self.reference: nn.Module | None = None

    def gather(self, sites: list[Site], needs: frozenset[str], notes: list[str]) -> None:
        """Fill the statistics of `sites` from both streams."""
        sums = self._sums(sites)
        alone: frozenset[int] = frozenset()
        while True:
            wanted = Wanted(sites, sums, self.device) if sums else None
            inputs = self._pass(sites, needs, alone, wanted)
            if not (diverged := inputs.finish()):
                break
            alone |= diverged
        inputs.store()
        if wanted is not None:
            wanted.store()
        notes += [note for note in inputs.notes if note not in notes]
        fill_up(sites, notes)
        if wanted is not None:
            with self._original_model():
                wanted.apply_experts(self.model)

    def order(self, sites: list[Site]) -> list[list[Site]]:
        """The sites that share an input together, in the order in which they run."""
        probe = InputPass(self.model, sites, frozenset(), self.device)
        probe.begin(self.held[0])
        with untouched(self.model), probe, torch.no_grad():
            self._run(0, self.current)
        experts = [i for i, site in enumerate(sites) if site.kind == "expert"]
        groups: dict[Any, list[Site]] = {}
        for index in [*probe.order, *experts]:
            leader = probe.sharing.leader[index]
            key = sites[index].expert[:2] if sites[index].kind == "expert" else leader
            groups.setdefault(key, []).append(sites[index])
        left_out = {id(site) for site in sites} - {id(s) for g in groups.values() for s in g}
        groups["never called"] = [site for site in sites if id(site) in left_out]
        return [group for group in groups.values() if group]

    def advance(self) -> None:
        """Run the block as it now is, and the original one, to the next block's inputs."""
        self._step(self.current)
        if self.original is not None:
            with self._original_model():
                self._step(self.original)

    def _step(self, stream: Stream) -> None:
        with untouched(self.model), torch.no_grad():
            for index in range(len(self.calls)):
                stream.put(index, self._run(index, stream))

    def _sums(self, sites: list[Site]) -> list[Sum | None]:
        """Where the sites' outputs are added to; nothing without an original stream."""
        if self.original is None:
            return []
        block = self.model.get_submodule(self.name)
        with untouched(self.model), torch.no_grad():
            sums = find_sums(self.model, block, sites, lambda: self._run(0, self.current))
        for site, place in zip(sites, sums, strict=True):
            found = None if place is None else place.within(self.name)
            site.pool.setdefault("residual_sums", {})[site.name] = found
        return sums

    def _pass(
        self, sites: list[Site], needs: frozenset[str], alone: frozenset[int], wanted: Wanted | None
    ) -> InputPass:
        inputs = InputPass(self.model, sites, needs, self.device, alone)
        for index, batch in enumerate(self.held):
            inputs.begin(batch)
            with untouched(self.model), torch.no_grad():
                if wanted is None:
                    with inputs:
                        self._run(index, self.current)
                    continue
                block = self.model.get_submodule(self.name)
                now = Record(
                    self.model, block, sites, batch,
                    reading=wanted.moments.keys(), giving=wanted.corrected,
                )  # fmt: skip
                with inputs, now:
                    self._run(index, self.current)
            wanted.add(now, self._original_record(index, wanted, now))
        return inputs

    def _original_record(self, index: int, wanted: Wanted, now: Record) -> Record:
        assert self.original is not None
        with self._original_model(), untouched(self.model), torch.no_grad():
            before = Record(
                self.model, self.model.get_submodule(self.name), wanted.sites, self.held[index],
                reading=wanted.experts,
                giving=wanted.moments.keys() - wanted.experts - wanted.corrected,
                routes=now.routes,
            )  # fmt: skip
            with before:
                self._run(index, self.original)
        return before

    def _run(self, index: int, stream: Stream) -> Tensor:
        block = self.model.get_submodule(self.name)
        return self.calls[index].run(block, stream.get(index, self.device))

    @contextmanager
    def _original_model(self) -> Iterator[None]:
        """The original block in its place, inside."""
        if self.reference is None:
            yield
            return
        parent, _, last = self.name.rpartition(".")
        holder = self.model.get_submodule(parent)
        there = holder._modules[last]
        holder._modules[last] = self.reference
        try:
            yield
        finally:
            holder._modules[last] = there
