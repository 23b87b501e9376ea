from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..calibration.outputs import main_output
from ..models import blocks


@contextmanager
def block_features(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that each forward pass inside fills anew with the outputs of the model's blocks."""
    features: list[Tensor] = []
    names = [name for name, _ in blocks(model)]
    places = [model.get_submodule(name) for name in names]

    def start(module: nn.Module, args: Any) -> None:
        features.clear()

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        features.append(main_output(output))

    handles = [model.register_forward_pre_hook(start)]
    handles += [place.register_forward_hook(keep) for place in places]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()
