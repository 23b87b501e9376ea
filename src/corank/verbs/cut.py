"""`corank.cut`: a model whose weights are in terms, made smaller still."""

from __future__ import annotations

from torch import nn

from ..engine import cutting
from ..io import attach


def cut(model: nn.Module, *, size: str) -> nn.Module:
    """Drop the least important terms of weights held in terms (`bitstack`), in place.

    size: of the whole model in bytes, "40MB", met from below. The result is what compressing the
    original to this size would have made, where no weight then stays dense. `corank.load` takes a
    size too, and does not read what it drops. Returns the model. Raises ValueError, the model as it
    was, for a model without such weights, and for a size that cannot be met.
    """
    cutting.cut(model, size)
    attach(model)
    return model
