"""Frozen random matrices of an adapter's file: drawn again from their seed, or stored."""

from __future__ import annotations

import copy
from math import prod
from typing import Any

import torch
from torch import nn

from ..operators import Dense, Operator, Seeded, materialise

_MAX_DRAWN = 1 << 28  # numbers of one random matrix


def draw(op: Operator, device: torch.device) -> None:
    """Draw the matrices of `op` that a seed stands for, on the device of its weight."""
    for module in op.modules():
        if isinstance(module, Seeded) and prod(module.shape) > _MAX_DRAWN:
            raise ValueError(f"a random matrix of {module.shape} is larger than any adapter's")
    materialise(op, device)


def with_stored(op: Operator, made: dict[tuple[Any, ...], nn.Parameter]) -> Operator:
    """`op` with every seeded matrix as a leaf, equal ones as one leaf."""
    copied = copy.deepcopy(op)
    for path, module in list(copied.named_modules()):
        if isinstance(module, Seeded):
            key = (module.shape, module.seed, module.law, module.scale, module.precision)
            if key not in made:
                made[key] = nn.Parameter(module.matrix.clone(), requires_grad=False)
            if not path:
                return Dense(made[key])
            parent, _, name = path.rpartition(".")
            copied.get_submodule(parent)._modules[name] = Dense(made[key])
    return copied
