"""Tensors of a model by their names in a skeleton."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..errors import FormatError

#: Where a module path of a skeleton is in a model; None if it is not there.
Places = Callable[[str], str | None]


def tensor_place(place: Places, name: str) -> str | None:
    """Where the tensor of that name is: in the place of its module."""
    path, _, leaf = name.rpartition(".")
    here = place(path)
    return None if here is None else f"{here}.{leaf}"


def pairs(names: Mapping[str, str], place: Places) -> dict[str, str]:
    """Those alias -> source of which both are in the model, under their names there."""
    found = {place(alias): place(source) for alias, source in names.items()}
    return {alias: source for alias, source in found.items() if alias and source}


def get_tensor(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of that name."""
    tensor = getattr(_owner(model, name), name.rpartition(".")[2])
    if not isinstance(tensor, Tensor):
        raise FormatError(f"{name} is not a tensor of this model")
    return tensor


def set_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor where a parameter or buffer of that name stands or stood."""
    owner, leaf = _owner(model, name), name.rpartition(".")[2]
    if isinstance(tensor, nn.Parameter):
        owner._parameters[leaf] = tensor
    else:
        owner._buffers[leaf] = tensor


def named_dtype(name: str) -> torch.dtype:
    """The dtype of that name. Raises FormatError for an unknown one."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise FormatError(f"unknown dtype {name!r} in a saved model")
    return dtype


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])
