"""Starting a small model from some of a larger one's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import unknown
from ..linalg.checks import check_finite
from ..models.kinds import is_layer


@torch.no_grad()
def weight_selection(
    small: nn.Module, large: nn.Module, leave_out: Sequence[str] = ()
) -> dict[str, tuple[int, ...]]:
    """Fill `small`, in place, with evenly spaced elements of `large`, of the same family.

    Layers are those of the same number, so the first ones; of a side of L elements the i-th of n
    is element floor(i L / n), the same ones in all layers. Buffers of numbers (running means) are
    filled too. leave_out: modules or parameters that stay as they are, by their dotted names or
    parts of these, such as a head of other classes.

    Returns the shape that each filled tensor has in `large`, by name. Raises ValueError, and
    changes nothing, where a tensor is missing in `large`, smaller there, or not in floats.
    """
    for model in (small, large):
        if any(is_layer(module) for module in model.modules()):
            raise ValueError("select weights of plain models: merge or compress them afterwards")
    source, wanted = large.state_dict(), _own(small)
    _require_known(leave_out, small)
    picked: dict[str, Tensor] = {}
    for name, tensor in wanted.items():
        if not any(f".{part}." in f".{name}." for part in leave_out):
            picked[name] = _select(name, source.get(name), tensor)
    for name, values in picked.items():
        wanted[name].copy_(values)
    return {name: tuple(source[name].shape) for name in picked}


def _own(model: nn.Module) -> dict[str, Tensor]:
    """The model's floating point tensors, each once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def _require_known(leave_out: Sequence[str], small: nn.Module) -> None:
    names = {name for name, _ in (*small.named_modules(), *small.named_parameters()) if name}
    for part in leave_out:
        if not any(f".{part}." in f".{name}." for name in names):
            raise unknown("module or parameter", part, sorted(names))


def _select(name: str, values: Tensor | None, small: Tensor) -> Tensor:
    if values is None:
        raise ValueError(
            f"the larger model has no {name}: give one of the same family with at least as many "
            f"layers, or leave_out={[name]!r}"
        )
    fits = values.ndim == small.ndim and all(
        n <= whole for n, whole in zip(small.shape, values.shape, strict=False)
    )
    if not fits or not values.is_floating_point():
        raise ValueError(
            f"{name} is {values.dtype} of shape {tuple(values.shape)} in the larger model, from "
            f"which {tuple(small.shape)} cannot be selected: give floats with sides at least as "
            f"large, or leave_out={[name]!r}"
        )
    check_finite(values, f"{name} of the larger model")
    for axis, (n, whole) in enumerate(zip(small.shape, values.shape, strict=True)):
        index = torch.arange(n, device=values.device) * whole // n
        values = values.index_select(axis, index)
    return values
