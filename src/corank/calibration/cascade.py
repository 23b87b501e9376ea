"""Block by block: statistics of one block at a time, from the already compressed model."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from ..errors import DataError, SiteError
from ..models import Site
from .collect import check_needs, share
from .data import Batches, batches
from .running import check_vocabulary, device_of, untouched
from .statistics import LOSS_NEEDS
from .streams import Stream, capture, only_stack, spill_folder
from .walk import BlockWalk


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
    targets: "original" also fills "wanted_cross" E[t x^T] (m, n) and "wanted_mean" E[t] (m,),
        where t (m,) is the output that the site is to give, its bias included: its output y0 in
        the original model on the same token, plus what the residual stream that it is added to
        now lacks, r0 - r. With S = r + y the sum after it, t = S0 - (S - y): see `residual`,
        which finds S, and t = y0 where there is none. site.pool["residual_sums"][site.name] says
        what S is. An expert's t = W0 x0, on the tokens that the rewritten model routes to it;
        embeddings have none. It costs a second stream, a copy of the block at hand, and a run
        of one batch per site. "compressed" aims at W x, "gram" alone.
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
            made = [per_batch[index] for per_batch in calls]
            walk = BlockWalk(model, name, made, mine, current, original, device)
            if by_block[name]:
                if original is not None:
                    walk.reference = copy.deepcopy(block)
                whole = granularity == "block"
                for stage in [by_block[name]] if whole else walk.order(by_block[name]):
                    before = {id(site): set(site.stats) for site in stage}
                    walk.gather(stage, wanted, notes)
                    yield stage
                    for site in stage:
                        for key in set(site.stats) - before[id(site)]:
                            del site.stats[key]
            if index + 1 < len(blocks):
                walk.advance()


def _check(needs: Iterable[str], targets: str, granularity: str) -> frozenset[str]:
    wanted = check_needs(needs)
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
