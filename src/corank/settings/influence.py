"""How much each block of a model changes what passes through it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..calibration.data import to_device
from ..calibration.outputs import main_output
from ..calibration.rows import Masks, first_input, flat_rows
from ..calibration.running import call, device_of, untouched
from ..models import blocks


@torch.no_grad()
def block_influence(model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    """Path of each block -> 1 - the mean over tokens of the cosine of its input and its output.

    batches: model inputs; padding does not count. This is ShortGPT's Block Influence
    (arXiv 2403.03853). Raises ValueError where no batch was given.
    """
    cosines: dict[str, list[float]] = {path: [] for path, _ in blocks(model)}
    masks: list[Masks] = []

    def watch(path: str) -> Any:
        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            mask = masks[-1].main
            x = flat_rows(first_input(args, kwargs), mask)
            y = flat_rows(main_output(output), mask)
            cosines[path] += F.cosine_similarity(x.double(), y.double(), dim=-1).tolist()

        return after

    handles = [m.register_forward_hook(watch(p), with_kwargs=True) for p, m in blocks(model)]
    try:
        with untouched(model):
            for batch in batches:
                masks.append(Masks.of(model, batch))
                call(model, to_device(batch, device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    if not masks:
        raise ValueError("no batch was given to measure the blocks' influence with")
    return {path: 1 - sum(values) / len(values) for path, values in cosines.items() if values}
