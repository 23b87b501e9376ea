"""A small model for every factorisation: tall, wide and square weights; parameters that fit."""

from __future__ import annotations

import torch

import corank
from corank.adapters import factorized
from corank.models import read

from ..adapters.small import batches as drawn_batches
from ..adapters.small import loss, small_model

#: Parameters that a method needs to fit weights of 16 to 36 rows and columns.
PARAMETERS: dict[str, dict] = {
    "btt": {"rank": 2},
    "condlr": {"rank": 5},
    "cuttlefish": {"every": 1, "window": 3, "slope": 10.0},
    "dlrt": {"rank": 4, "tolerance": 0.2},
    "loqt": {"rank": 4, "every": 3, "group": 8},
    "gblr": {"threshold": 4.0},
    "lost": {"rank": 4, "density": 0.2},
    "maestro": {"every": 3, "threshold": 0.5},
    "slope": {"rank": 3, "share": 0.9},
    "compact": {"ratio": 0.5, "every": 3},
    "rmm_linear": {"ratio": 0.5},
    "sltrain": {"rank": 4, "alpha": 8.0, "density": 0.1},
    "spectral_init": {"rank": 4},
    "sst": {"rank": 4, "every": 6, "warmup": 2},
    "structured_ffn": {"rank": 8},
    "train_rank_increment": {"rank": 6, "every": 3},
    "trp": {"every": 3, "energy": 0.95},
    "tucker_dlrt": {"rank": 4, "tolerance": 0.2},
}
#: Steps planned in the training of every law.
TOTAL = 30


def batches(count=6, dtype=torch.float64):
    return [batch / 4 for batch in drawn_batches(count, dtype=dtype)]


def factorize(method, model=None, dtype=torch.float64, **options):
    """(model, its report) with every weight factorised by `method`."""
    model = small_model(dtype=dtype) if model is None else model
    return model, corank.factorize(model, method.key, **PARAMETERS.get(method.key, {}) | options)


def operators(model):
    """Site name -> what stands there now, of the only group."""
    (group,) = factorized(model).values()
    return {name: read(model, site) for name, site in group.sites.items()}


def begin(model, lr=3e-3, optimizer=torch.optim.Adam):
    """(controller, optimiser) of everything that trains."""
    control = corank.controller(model, total_steps=TOTAL)
    made = optimizer(control.parameter_groups(lr))
    control.attach(made)
    return control, made


def train(model, optimizer, steps):
    """The losses of these steps."""
    losses = []
    for step in steps:
        value = loss(model, batches()[step % 6])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses
