"""Block by block: statistics of one block at a time, from the already compressed model."""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import DataError, SiteError
from ..models import Site
from .collect import check_needs, share
from .data import Batches, batches
from .experts import fill_up
from .inputs import InputPass
from .running import check_vocabulary, device_of, untouched
from .statistics import LOSS_NEEDS, CrossMoment
from .streams import Stream, capture, only_stack, spill_folder


def cascade(
    model: nn.Module,
    sites: Sequence[Site],
    needs: Iterable[str],
    data: Batches | Iterable[Any],
    *,
    targets: Literal["original", "compressed"] = "original",
    granularity: Literal["block", "input"] = "block",
    spill: str | os.PathLike[str] | None = None,
    notes: list[str] | None = None,
) -> Iterator[list[Site]]:
    """Yield the sites stage by stage, their `stats` filled; rewrite them before the next stage.

        for stage in cascade(model, sites, {"gram"}, data):
            for site in stage:
                install(model, site, rewrite(read(model, site), site))

    The x of the statistics is what a site reads once everything before it has been rewritten:
    each block runs on the outputs of the rewritten blocks before it. Only the statistics of one
    stage exist at a time: a site's are dropped when the loop goes on. A loop that rewrites
    nothing gets what `collect` gives, with less memory.

    needs: as in `collect`, without those of a loss.
    targets: "original" also fills "cross_gram" E[x0 x^T] (n, n), where x0 is what the site reads
        in the original model on the same token, so that a rewrite may aim at W x0. It costs a
        second stream, and a copy of the block at hand. An expert's x0 is taken from the tokens
        that the rewritten model routes to it. "compressed" aims at W x, "gram" alone.
    granularity: "block" makes one stage of a block. "input" makes one of each set of sites that
        share an input, in the order in which they run (q k v, o, gate up, down), and collects
        anew after each.
    spill: a folder for the blocks' inputs, in a temporary folder of it; None keeps them in memory.
    notes: receives notes for the report.

    Raises: SiteError for a model without exactly one plain sequence of blocks (encoder-decoders;
        `collect` takes those), a site outside the blocks, or activations that are not finite;
        ValueError for needs or options that do not exist; DataError as `collect`.
    """
    wanted = _check(needs, targets, granularity)
    held = data if isinstance(data, Batches) else batches(data)
    device, blocks = device_of(model), only_stack(model)
    by_block = _split(sites, [name for name, _ in blocks])
    for index, batch in enumerate(held):
        check_vocabulary(model, batch, index)
    mine = [batch for _, batch in share(held)]
    if dist.is_available() and dist.is_initialized() and len(held) < dist.get_world_size():
        raise DataError(f"{len(held)} batches cannot be divided over {dist.get_world_size()} ranks")
    notes = [] if notes is None else notes
    notes += held.notes
    with spill_folder(spill) as folder:
        with untouched(model), torch.no_grad():
            captured = [capture(model, blocks, batch, device) for batch in mine]
        calls = [calls for _, calls in captured]
        entries = [hidden for hidden, _ in captured]
        del captured
        current = Stream(entries, folder, "current")
        original = Stream(entries, folder, "original") if targets == "original" else None
        entries.clear()
        for index, (name, block) in enumerate(blocks):
            walk = _Block(model, name, [c[index] for c in calls], mine, current, original)
            if by_block[name]:
                if original is not None:
                    walk.reference = copy.deepcopy(block)
                for stage in _stages(walk, by_block[name], granularity, device):
                    before = {id(site): set(site.stats) for site in stage}
                    walk.gather(stage, wanted, device, notes)
                    yield stage
                    for site in stage:
                        for key in set(site.stats) - before[id(site)]:
                            del site.stats[key]
            if index + 1 < len(blocks):
                walk.advance(device)


@final
class _Block:
    """One block, its calls in every batch, and the streams that run into it."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        calls: Sequence[Any],
        held: Sequence[Any],
        current: Stream,
        original: Stream | None,
    ) -> None:
        self.model, self.name, self.calls, self.held = model, name, calls, held
        self.current, self.original = current, original
        self.reference: nn.Module | None = None

    def gather(
        self, sites: list[Site], needs: frozenset[str], device: torch.device, notes: list[str]
    ) -> None:
        """Fill the statistics of `sites` from both streams."""
        alone: frozenset[int] = frozenset()
        while True:
            inputs, cross = self._pass(sites, needs, device, alone)
            if not (diverged := inputs.finish()):
                break
            alone |= diverged
        inputs.store()
        if self.original is not None:
            together = dist.is_available() and dist.is_initialized()
            for index, leader in enumerate(inputs.sharing.leader):
                if leader == index:
                    moment = cross.setdefault(index, CrossMoment(sites[index].shape[1], device))
                    if together:
                        moment.all_reduce()
            results = {i: moment.result() for i, moment in cross.items() if float(moment.rows)}
            for site, leader in zip(sites, inputs.sharing.leader, strict=True):
                if leader in results:
                    site.stats["cross_gram"] = results[leader]
        notes += [note for note in inputs.notes if note not in notes]
        fill_up(sites, notes)

    def order(self, sites: list[Site], device: torch.device) -> list[list[Site]]:
        """The sites that share an input together, in the order in which they run."""
        probe = InputPass(self.model, sites, frozenset(), device)
        with untouched(self.model), probe, torch.no_grad():
            self._run(probe, 0, self.current, device)
        experts = [i for i, site in enumerate(sites) if site.kind == "expert"]
        groups: dict[Any, list[Site]] = {}
        for index in [*probe.order, *experts]:
            leader = probe.sharing.leader[index]
            key = sites[index].expert[:2] if sites[index].kind == "expert" else leader
            groups.setdefault(key, []).append(sites[index])
        left_out = {id(site) for site in sites} - {id(s) for g in groups.values() for s in g}
        groups["never called"] = [site for site in sites if id(site) in left_out]
        return [group for group in groups.values() if group]

    def advance(self, device: torch.device) -> None:
        """Run the block as it now is, and the original one, to the next block's inputs."""
        self._step(self.current, device)
        if self.original is not None:
            block = self.reference or self.model.get_submodule(self.name)
            with swapped(self.model, self.name, block):
                self._step(self.original, device)

    def _step(self, stream: Stream, device: torch.device) -> None:
        block = self.model.get_submodule(self.name)
        with untouched(self.model), torch.no_grad():
            for index, made in enumerate(self.calls):
                stream.put(index, made.run(block, stream.get(index, device)))

    def _pass(
        self, sites: list[Site], needs: frozenset[str], device: torch.device, alone: frozenset[int]
    ) -> tuple[InputPass, dict[int, CrossMoment]]:
        rows: dict[int, deque[Tensor]] = {}
        cross: dict[int, CrossMoment] = {}

        def keep(index: int, x: Tensor) -> None:
            if self.original is not None:
                rows.setdefault(index, deque()).append(x)

        def pair(index: int, original: Tensor) -> None:
            moment = cross.get(index)
            if moment is None:
                moment = cross[index] = CrossMoment(sites[index].shape[1], device)
            if not rows.get(index) or rows[index][0].shape != original.shape:
                raise _unlike(sites[index])
            moment.add(original, rows[index].popleft())

        inputs = InputPass(self.model, sites, needs, device, alone, keep)
        for index in range(len(self.calls)):
            with untouched(self.model), inputs, torch.no_grad():
                self._run(inputs, index, self.current, device)
            if self.original is None:
                continue
            assert self.reference is not None
            with swapped(self.model, self.name, self.reference), untouched(self.model):
                first = InputPass(
                    self.model, sites, frozenset(), device, alone, pair, inputs.routes
                )
                with first, torch.no_grad():
                    self._run(first, index, self.original, device)
            for left, unpaired in rows.items():
                if unpaired:
                    raise _unlike(sites[left])
        return inputs, cross

    def _run(self, inputs: InputPass, index: int, stream: Stream, device: torch.device) -> None:
        inputs.begin(self.held[index])
        self.calls[index].run(self.model.get_submodule(self.name), stream.get(index, device))


def _unlike(site: Site) -> SiteError:
    return SiteError(
        site.where, "the original block and the rewritten one read inputs of different shapes",
        'Use targets="compressed"',
    )  # fmt: skip


@contextmanager
def swapped(model: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    """`module` in the place of the submodule `name`, inside."""
    parent, _, last = name.rpartition(".")
    holder = model.get_submodule(parent)
    there = holder._modules[last]
    holder._modules[last] = module
    try:
        yield
    finally:
        holder._modules[last] = there


def _stages(
    walk: _Block, sites: list[Site], granularity: str, device: torch.device
) -> list[list[Site]]:
    return [sites] if granularity == "block" else walk.order(sites, device)


def _check(needs: Iterable[str], targets: str, granularity: str) -> frozenset[str]:
    wanted = check_needs(frozenset(needs) - {"cross_gram"})
    if lossy := wanted & LOSS_NEEDS:
        raise ValueError(
            f"block by block there is no loss for {', '.join(sorted(lossy))}: use "
            "corank.calibration.collect for these"
        )
    if targets not in ("original", "compressed"):
        raise ValueError(f"targets must be 'original' or 'compressed', got {targets!r}")
    if granularity not in ("block", "input"):
        raise ValueError(f"granularity must be 'block' or 'input', got {granularity!r}")
    return wanted


def _split(sites: Sequence[Site], names: list[str]) -> dict[str, list[Site]]:
    found: dict[str, list[Site]] = {name: [] for name in names}
    for site in sites:
        name = next((n for n in names if site.name.startswith(n + ".")), None)
        if name is None:
            raise SiteError(
                site.where, "it stands outside the blocks that a cascade walks through",
                "Take it out of the targets, or collect it on its own",
            )  # fmt: skip
        found[name].append(site)
    return found
