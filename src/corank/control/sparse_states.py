"""Moving the support of a Sparse while its optimiser remembers what stays in it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..operators import Dense, Sparse


def move_support(active: Sparse, past: Dense, index: Tensor, optimizer: Optimizer | None) -> None:
    """Let `active` hold the flat places `index` (ascending, as many as before).

    active + past stays what it was: values that leave go to `past`, those that come start at zero.
    The optimiser's moments of values that stay go with them, those of new ones start at zero.
    """
    old = active.index.long()
    place = torch.searchsorted(old, index).clamp(max=old.shape[0] - 1)
    stays = old[place] == index
    flat = past.weight.data.view(-1)
    flat.index_add_(0, old, active.values.data.to(flat.dtype))
    values = torch.where(stays, active.values.data[place], 0)
    flat.index_add_(0, index, -values.to(flat.dtype))
    active.values.data.copy_(values)
    active.index.copy_(index)
    state = {} if optimizer is None else optimizer.state.get(active.values, {})
    for moment in state.values():
        if isinstance(moment, Tensor) and moment.shape == values.shape:
            moment.copy_(torch.where(stays, moment[place], 0))
