"""A folder's model at a smaller size: terms that are not to stay are left in the files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..engine.cutting import cut
from .named import Places, tensor_place
from .skeletons import describe_layer


def cut_empty(
    model: nn.Module, skeleton: Mapping[str, Any], place: Places, size: str
) -> tuple[dict[str, Any], set[str]]:
    """Cut a rebuilt model that has no values yet to `size`, as `engine.cutting.cut` does.

    Returns the skeleton of what is left, and the names of the tensors that are no more in `model`.
    """
    before = set(model.state_dict())
    cut(model, size, {name for alias in skeleton["shared"] if (name := tensor_place(place, alias))})
    left = {
        path: entry if (here := place(path)) is None else describe_layer(model.get_submodule(here))
        for path, entry in skeleton["modules"].items()
    }
    return {**skeleton, "modules": left}, before - set(model.state_dict())
