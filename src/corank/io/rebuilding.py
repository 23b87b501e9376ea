"""A plain model made to hold a skeleton's operators again, first without their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import FormatError
from ..layers import Experts
from ..models import Site, install, read
from ..models.kinds import PROJECTIONS
from ..operators import Operator, build, materialise
from .named import Places, get_tensor, named_dtype, pairs, set_tensor, tensor_place

#: The dtype that was saved, and the one asked for in its place.
Dtypes = tuple[torch.dtype, torch.dtype] | None


def rebuild(
    model: nn.Module, skeleton: Mapping[str, Any], place: Places, dtype: Dtypes = None
) -> None:
    """Put empty layers of `skeleton` into a plain `model`, on the meta device.

    Modules without a place are left out. Leaves of the saved dtype get the one asked for.
    Nothing is shared yet: see `join`. Raises FormatError if a place does not fit its entry.
    """
    for path, entry in skeleton["modules"].items():
        here = place(path)
        if here is None:
            continue
        try:
            _rebuild_layer(model, here, entry, dtype)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path} cannot be rebuilt in this model: {error}") from error


def join(model: nn.Module, skeleton: Mapping[str, Any], place: Places) -> None:
    """Once the values are there: share what was shared, and set transient values and training."""
    for alias, source in pairs(skeleton["shared"], partial(tensor_place, place)).items():
        set_tensor(model, alias, get_tensor(model, source))
    for alias, source in pairs(skeleton["joined"], place).items():
        parent, _, name = alias.rpartition(".")
        model.get_submodule(parent)._modules[name] = model.get_submodule(source)
    for name, stored in skeleton["transient"].items():
        if (here := tensor_place(place, name)) is not None:
            device = get_tensor(model, here).device
            value = torch.tensor(stored["value"], dtype=named_dtype(stored["dtype"]), device=device)
            set_tensor(model, here, value)
    for path, entry in skeleton["modules"].items():
        if (here := place(path)) is not None:
            for op_path, op_skeleton in _operator_skeletons(entry):
                op = model.get_submodule(f"{here}.{op_path}")
                assert isinstance(op, Operator)
                materialise(op, op.device)
                for mine, theirs in zip(_leaves(op), _leaves(build(op_skeleton)), strict=True):
                    mine.requires_grad_(theirs.requires_grad)


def expected_shapes(skeleton: Mapping[str, Any]) -> dict[str, list[int]]:
    """The shape of each stored leaf of the skeleton's operators, by its name.

    Raises FormatError for an operator that cannot be built.
    """
    found = {}
    for path, entry in skeleton["modules"].items():
        for op_path, op_skeleton in _operator_skeletons(entry):
            try:
                op = build(op_skeleton)
            except (KeyError, TypeError, ValueError) as error:
                raise FormatError(f"{path} cannot be rebuilt: {error}") from error
            for name, leaf in op.state_dict().items():
                full = f"{path}.{op_path}.{name}"
                if full not in skeleton["shared"]:
                    found[full] = list(leaf.shape)
    return found


def _operator_skeletons(entry: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if entry["kind"] != "expert":
        yield "operator", entry["operator"]
        return
    for projection in PROJECTIONS:
        for number, skeleton in enumerate(entry[projection]):
            yield f"{projection}.{number}", skeleton


def _rebuild_layer(model: nn.Module, path: str, entry: Mapping[str, Any], dtype: Dtypes) -> None:
    expert = entry["kind"] == "expert"
    for op_path, skeleton in _operator_skeletons(entry):
        op, name = _cast(build(skeleton), dtype), f"{path}.{op_path}" if expert else path
        site = Site(name, "other", None, op.shape, False, entry["kind"])
        there = read(model, site).shape
        if there != op.shape:
            rows, columns = there
            raise ValueError(f"{site.where} does not fit the {rows}x{columns} that is there")
        install(model, site, op)
    layer = model.get_submodule(path)
    if isinstance(layer, Experts):
        layer.rewritten = {(projection, number) for projection, number in entry["rewritten"]}
        return
    bias = None
    if entry["bias"] is not None:
        size = op.shape[1] if entry["kind"] == "embedding" else op.shape[0]
        kept = named_dtype(entry["bias"])
        asked = dtype[1] if dtype is not None and kept == dtype[0] else kept
        bias = nn.Parameter(torch.empty(size, dtype=asked, device="meta"))
    layer.register_parameter("bias", bias)


def _cast(op: Operator, dtype: Dtypes) -> Operator:
    if dtype is not None and dtype[0] != dtype[1]:
        for module in op.modules():
            for tensors in (module._parameters, module._buffers):
                for leaf in tensors.values():
                    if leaf is not None and leaf.dtype == dtype[0]:
                        leaf.data = leaf.data.to(dtype[1])
    return op


def _leaves(op: nn.Module) -> list[nn.Parameter]:
    return [p for _, p in op.named_parameters(remove_duplicate=False)]
