"""A whole model's operators without their values, and a plain model made to hold them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.factorized import factorized
from ..adapters.record import adapters
from ..errors import FormatError
from ..layers import Convolution, Embedding, Experts, Linear
from ..models import Site, install, read
from ..models.kinds import PROJECTIONS, is_layer
from ..operators import Adapted, Operator, Seeded, build, describe, materialise
from .adapter_record import describe_adapter
from .held_record import describe_held
from .record import FORMAT

#: Where a module path of a skeleton is in a model; None if it is not there.
Places = Callable[[str], str | None]
#: The dtype that was saved, and the one asked for in its place.
Dtypes = tuple[torch.dtype, torch.dtype] | None


def describe_model(model: nn.Module) -> dict[str, Any]:
    """The skeleton of every layer of ours in `model`, and what they share, as JSON values.

    `modules`: module path -> kind, bias and operator(s). `shared`: the name of a tensor that is
    stored under another name -> that name. `joined`: the path of an operator that is another
    one's very object -> that one's path. `transient`: values that the state dict leaves out.
    `adapters` and `factorized`, where there are any: what the model remembers of them.
    """
    # imported here: corank/__init__.py defines it and imports this module
    from ..version import __version__

    records = {
        "adapters": [describe_adapter(held) for held in adapters(model).values()],
        "factorized": [describe_held(held) for held in factorized(model).values()],
    }
    return {key: held for key, held in records.items() if held} | {
        "quant_method": "corank",
        "format": FORMAT,
        "corank": __version__,
        "modules": {path: _describe_layer(layer) for path, layer in layers(model)},
        "shared": _aliases(_all_tensors(model)),
        "joined": _joined(model),
        "transient": dict(_transient(model)),
    }


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, layer) of every layer of ours; a module that stands in several places, in each."""
    for path, module in model.named_modules(remove_duplicate=False):
        if is_layer(module):
            yield path, module


def unshared_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, each tensor once, under the name that `describe_model` stores it by."""
    shared = _aliases(_all_tensors(model))
    merged = _merged(model)
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in shared and not name.startswith(merged)
    }


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
            value = torch.tensor(stored["value"], dtype=_dtype(stored["dtype"]), device=device)
            set_tensor(model, here, value)
    for path, entry in skeleton["modules"].items():
        if (here := place(path)) is not None:
            for op_path, op_skeleton in _operator_skeletons(entry):
                op = model.get_submodule(f"{here}.{op_path}")
                assert isinstance(op, Operator)
                materialise(op, op.device)
                for mine, theirs in zip(_leaves(op), _leaves(build(op_skeleton)), strict=True):
                    mine.requires_grad_(theirs.requires_grad)


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


def _describe_layer(layer: nn.Module) -> dict[str, Any]:
    if isinstance(layer, Experts):
        operators = {name: [describe(op) for op in getattr(layer, name)] for name in PROJECTIONS}
        rewritten = [list(key) for key in sorted(layer.rewritten)]
        return {"kind": "expert", "rewritten": rewritten} | operators
    if isinstance(layer, Linear):
        kind = "conv1d_transposed" if layer.transposed else "linear"
    else:
        kind = "embedding" if isinstance(layer, Embedding) else "conv"
    assert isinstance(layer, (Linear, Embedding, Convolution))
    bias = layer.bias
    described = None if bias is None else str(bias.dtype).removeprefix("torch.")
    return {"kind": kind, "bias": described, "operator": describe(layer.operator)}


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
        kept = _dtype(entry["bias"])
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


def _all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The persistent tensors by every name they have, but for what adapters are merged into."""
    state, merged = model.state_dict(keep_vars=True), _merged(model)
    return {name: tensor for name, tensor in state.items() if not name.startswith(merged)}


def _merged(model: nn.Module) -> tuple[str, ...]:
    """The prefixes of matrices that stand in for active adapters, and that nobody stores."""
    return tuple(
        f"{path}.merged."
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, Adapted) and module.merged is not None
    )


def _aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    first: dict[int, str] = {}
    return {
        name: first[id(tensor)]
        for name, tensor in tensors.items()
        if first.setdefault(id(tensor), name) != name
    }


def _joined(model: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    joined: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, Operator):
            continue
        source = first.setdefault(id(module), path)
        inside = any(path.startswith(f"{alias}.") for alias in joined)
        if source != path and not inside:
            joined[path] = source
    return joined


def _transient(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, layer in layers(model):
        for name, module in layer.named_modules(prefix=path, remove_duplicate=False):
            if isinstance(module, Seeded):
                continue  # drawn again from its seed
            for leaf in sorted(module._non_persistent_buffers_set):
                value = module._buffers.get(leaf)
                if value is not None:
                    dtype = str(value.dtype).removeprefix("torch.")
                    yield f"{name}.{leaf}", {"dtype": dtype, "value": value.tolist()}


def _leaves(op: nn.Module) -> list[nn.Parameter]:
    return [p for _, p in op.named_parameters(remove_duplicate=False)]


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise FormatError(f"unknown dtype {name!r} in a saved model")
    return dtype
