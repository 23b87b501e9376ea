"""Weights in codes that learn through a low-rank product, merged into them now and then."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..models import Site
from ..operators import Dense, Operator
from ..rewrites.adapting import trains
from .control import Training
from .replacing import replace

#: (weight, its gradient, site, generator) -> what stands for the weight until the next merge.
Split = Callable[[Tensor, Tensor, Site, torch.Generator], Operator]


def merge_all(training: Training) -> None:
    """Make every weight the one matrix that it stands for, so that it gets a gradient."""
    for site, op in list(training.operators.items()):
        replace(training, site, Dense(trains(op.dense().detach().clone())))


def split_all(training: Training, split: Split) -> None:
    """Before a step: split every merged weight by its gradient; it makes no step itself."""
    for name, op in list(training.operators.items()):
        if isinstance(op, Dense) and op.weight.grad is not None:
            site, weight = training.sites[name], op.weight.detach()
            replace(training, name, split(weight, op.weight.grad, site, training.generator))


def ends_interval(step: int, every: int, growth: float) -> bool:
    """Whether an interval ends at `step`: the first has `every` steps, the i-th after it
    int(growth^i) more."""
    end, i = every, 0
    while end < step:
        i += 1
        end += every + int(growth**i)
    return end == step
