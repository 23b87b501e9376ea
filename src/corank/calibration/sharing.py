"""Which sites read one and the same tensor."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

_REMEMBERED = 8  # inputs kept alive, at most, to be recognised by the modules that follow


@final
class Sharing:
    """Groups sites whose modules are called with the same tensor, such as q, k and v.

    Two calls share when they see the same memory at the same version (nothing was written in
    between), in the same layout, and read it in the same way. The first batch makes the groups. A
    site that later reads something else than its group is put down in `diverged`, and the pass is
    repeated with that site on its own.
    """

    def __init__(self, sites: int, alone: frozenset[int]) -> None:
        self.leader: list[int | None] = [i if i in alone else None for i in range(sites)]
        self.calls = [0] * sites
        self.diverged: set[int] = set()
        self._recent: deque[tuple[Hashable, int, Tensor]] = deque(maxlen=_REMEMBERED)

    def claims(self, site: int, x: Tensor, view: Hashable) -> bool:
        """Whether `site` is the one to accumulate `x`: False if its group has it already."""
        self.calls[site] += 1
        key = (x.data_ptr(), tuple(x.shape), x.stride(), x.dtype, x.device, x._version, view)
        seen = [leader for other, leader, _ in self._recent if other == key]
        if self.leader[site] is None:
            joins = bool(seen) and x.numel() > 0
            self.leader[site] = seen[0] if joins else site
            if joins:
                return False
        elif self.leader[site] in seen:
            return False
        elif self.leader[site] != site:
            self.diverged.add(site)
            return False
        self._recent.append((key, site, x))
        return True

    def forget(self) -> None:
        """Between two forwards: let go of the tensors."""
        self._recent.clear()

    def check(self) -> None:
        """Put down every site that was not called as often as the leader of its group."""
        for site, leader in enumerate(self.leader):
            if leader is not None and any(self.calls) and self.calls[site] != self.calls[leader]:
                self.diverged.add(site)

    def agree(self, device: torch.device) -> None:
        """Make every rank hold rank 0's groups; sites that differ diverge. Collective."""
        mine = [-1 if leader is None else leader for leader in self.leader]
        first = torch.tensor(mine, device=device)
        dist.broadcast(first, src=0)
        leaders = first.tolist()
        ran = any(self.calls)
        differs = {i for i, (a, b) in enumerate(zip(mine, leaders, strict=True)) if ran and a != b}
        marks = torch.zeros(len(mine), device=device)
        marks[list(self.diverged | differs)] = 1
        dist.all_reduce(marks)
        self.diverged = {i for i, mark in enumerate(marks.tolist()) if mark}
        self.leader = [None if leader < 0 else leader for leader in leaders]
