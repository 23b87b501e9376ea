"""What a model says: its main output as one tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from .data import to_device
from .running import call, device_of, untouched


def main_output(output: Any) -> Tensor:
    """The logits, the last hidden state, the image or text embedding, or the tensor itself.

    Raises DataError for an output that holds none of these.
    """
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "last_hidden_state", "image_embeds", "prediction"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise DataError(f"the model returns a {type(output).__name__} without a main tensor")


@torch.no_grad()
def outputs(model: nn.Module, data: Iterable[Any]) -> list[Tensor]:
    """The main output of each batch, in float32, without leaving a trace on the model."""
    device = device_of(model)
    with untouched(model):
        return [main_output(call(model, to_device(batch, device))).float() for batch in data]
