"""The outputs that the sites of a partly rewritten block are to give, beside what they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import SiteError
from ..models import Site
from .record import Record
from .residual import Sum
from .statistics import CrossMoment

_EXPERT = ("original_cross", "original_mean")  # of x0, until the expert's own weight is applied


@final
class Wanted:
    """Sums of t x^T and t over the rows, x (in,) being what a site reads in the rewritten model.

    t (out,) is y0, its output in the original model, plus the error r0 - r of the residual stream
    that it is added to: with S = r + y the sum after it, t = S0 - (S - y). t = y0 for a site with
    no such sum. An expert's t = W0 x0, for the tokens that the rewritten model sends to it.
    Embeddings have no t: they read no stream.
    """

    def __init__(
        self, sites: Sequence[Site], sums: Sequence[Sum | None], device: torch.device
    ) -> None:
        self.sites, self.sums = sites, sums
        self.moments = {
            i: CrossMoment(s.shape[1] if s.kind == "expert" else s.shape[0], s.shape[1], device)
            for i, s in enumerate(sites)
            if s.kind != "embedding"
        }
        self.experts = {i for i in self.moments if sites[i].kind == "expert"}
        self.corrected = {i for i in self.moments if sums[i] is not None}

    def add(self, now: Record, before: Record) -> None:
        """Add one run of the rewritten block, and one of the original, on the same batch."""
        for index, moment in self.moments.items():
            inputs, wanted = now.inputs.get(index, []), self._wanted(index, now, before)
            if [len(x) for x in inputs] != [len(t) for t in wanted]:
                raise _unlike(self.sites[index])
            for x, t in zip(inputs, wanted, strict=True):
                moment.add(t, x)

    def _wanted(self, index: int, now: Record, before: Record) -> list[Tensor]:
        place, site = self.sums[index], self.sites[index]
        if index in self.experts:
            return before.inputs.get(index, [])
        if place is None:
            return before.outputs.get(index, [])
        outputs = now.outputs.get(index, [])
        original, current = before.sum(place, site), now.sum(place, site)
        if not outputs:
            return []
        if len(outputs) > 1 or original is None or current is None:
            raise _unlike(site)
        if not original.shape == current.shape == outputs[0].shape:
            raise _unlike(site)
        wide = torch.promote_types(original.dtype, torch.float32)
        return [original.to(wide) - (current.to(wide) - outputs[0].to(wide))]

    def store(self) -> None:
        """Sum over the ranks, and put the means into the sites. Collective."""
        for index, moment in self.moments.items():
            if dist.is_available() and dist.is_initialized():
                moment.all_reduce()
            if float(moment.rows):
                names = _EXPERT if index in self.experts else ("wanted_cross", "wanted_mean")
                self.sites[index].stats.update(zip(names, moment.results(), strict=True))

    def apply_experts(self, model: nn.Module) -> None:
        """Turn the experts' moments of x0, mixed by now, into those of t: `model` is the original.

        Mixing those of t would aim an expert at the outputs of others.
        """
        for index in self.experts:
            site = self.sites[index]
            path, projection, expert = site.expert
            leaf = getattr(model.get_submodule(path), projection)[expert]
            weight = (leaf if isinstance(leaf, Tensor) else leaf.dense()).detach().float()
            cross, mean = (site.stats.pop(name) for name in _EXPERT)
            site.stats |= {"wanted_cross": weight @ cross, "wanted_mean": weight @ mean}


def _unlike(site: Site) -> SiteError:
    return SiteError(
        site.where, "the original block and the rewritten one run it on different rows",
        'Use targets="compressed"',
    )  # fmt: skip
