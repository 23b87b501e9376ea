"""`corank train --dry-run`: the bytes that a step would take."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn

from ..report.quiet import quiet
from ..report.text import draw_table
from ..report.units import show_bytes
from .console import print_json
from .folders import import_quietly
from .starting import check_length
from .training import split_settings

_ABOUT = {
    "weights": "parameters and buffers",
    "gradients": "of what trains",
    "state": "of the optimiser",
    "activations": "kept for the backward pass of one batch",
    "recomputed": "of one block at a time, by checkpointing",
    "total": "",
}


def show_memory(arguments: argparse.Namespace) -> int:
    """Print the bytes as a table or as JSON."""
    from ..training import build_optimizer, objective_of, read_config, training_memory

    own, of_optimizer = split_settings(arguments)
    config = read_config(arguments.folder)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"{arguments.folder} is compressed already: count the original")
    check_length(config, arguments.sequence_length)
    with quiet():
        import_quietly()
        model = _empty(config, arguments.objective or objective_of(config), arguments, own)
        memory = training_memory(
            model,
            lambda: build_optimizer(
                model, arguments.optimizer, arguments.lr, arguments.weight_decay, of_optimizer
            ),
            arguments.batch_size, arguments.sequence_length, arguments.precision,
            arguments.checkpointing,
        )  # fmt: skip
    found: dict[str, Any] = memory.to_json()
    if arguments.json:
        print_json(found)
        return 0
    told = [[n, show_bytes(v), f"{v:,}", _ABOUT[n]] for n, v in found.items() if v or n == "total"]
    print(draw_table(["", "", "bytes", "what"], told))
    return 0


def _empty(config: Any, objective: Any, arguments: argparse.Namespace, own: Any) -> nn.Module:
    """The model on the meta device, with what is to train in place."""
    from ..training import give_values, start_model
    from ..verbs import adapt, factorize

    stored = config.dtype or torch.float32
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else torch.float32
    if arguments.adapt is not None and arguments.dtype is None:
        dtype = stored
    with torch.device("meta"):
        model = start_model(config, objective, arguments.seed, dtype)
    if own:
        give_values(model)
        start = adapt if arguments.adapt is not None else factorize
        start(model, arguments.adapt or arguments.factorize, **own)
        model.to("meta")
    return model
