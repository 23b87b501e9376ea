"""An operator without its values, as JSON: what a file stores beside the tensors."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .operator import Operator

KINDS: dict[str, type[Operator]] = {}


def storable(kind: type[Operator]) -> type[Operator]:
    """Class decorator: let `build` make this operator again by its name."""
    if "kind" in _arguments(kind):
        raise TypeError(f"{kind.__name__}: 'kind' is the skeleton's own key, rename the argument")
    KINDS[kind.__name__] = kind
    return kind


def describe(op: Operator) -> dict[str, Any]:
    """The skeleton of `op`: class, shapes, dtypes and options, as plain JSON values."""
    if op.not_stored is not None:
        raise ValueError(f"a {type(op).__name__} is not stored: {op.not_stored}")
    if type(op).__name__ not in KINDS:
        raise TypeError(f"{type(op).__name__} is not storable: decorate it with @storable")
    return {"kind": type(op).__name__} | {
        name: _describe_value(getattr(op, name)) for name in _arguments(type(op))
    }


def build(skeleton: dict[str, Any], device: torch.device | str = "meta") -> Operator:
    """The operator of a skeleton, its leaves uninitialised on `device`.

    Raises ValueError for a skeleton that names no known operator or lacks an argument.
    """
    name = skeleton.get("kind")
    if name not in KINDS:
        raise ValueError(f"unknown operator {name!r}: written by a newer corank, or edited")
    arguments = _arguments(KINDS[name])
    if set(skeleton) - {"kind"} != set(arguments):
        raise ValueError(
            f"the skeleton of {name} has {sorted(set(skeleton) - {'kind'})}, "
            f"not the arguments {sorted(arguments)}"
        )
    values = {key: _build_value(skeleton[key], device) for key in arguments}
    several = [key for key, starred in arguments.items() if starred]
    positional = values.pop(several[0]) if several else ()
    with torch.device(device):  # for what a constructor draws itself
        return KINDS[name](*positional, **values)


def _arguments(kind: type[Operator]) -> dict[str, bool]:  # name -> is it *several
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return {p.name: p.kind is p.VAR_POSITIONAL for p in parameters}


def _describe_value(value: Any) -> Any:
    if isinstance(value, Operator):
        return describe(value)
    if isinstance(value, Tensor):
        text = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        return text if value.requires_grad else text | {"frozen": True}
    if isinstance(value, nn.ModuleList):
        return [_describe_value(v) for v in value]
    if isinstance(value, (tuple, torch.Size)):
        return list(value)
    return value


def _build_value(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, dict) and "kind" in value:
        return build(value, device)
    if isinstance(value, dict) and "shape" in value:
        dtype = getattr(torch, value["dtype"], None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"unknown dtype {value['dtype']!r} in an operator's skeleton")
        empty = torch.empty(value["shape"], dtype=dtype, device=device)
        trains = dtype.is_floating_point and not value.get("frozen", False)
        return nn.Parameter(empty) if trains else empty
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_build_value(v, device) for v in value]
    if isinstance(value, list):
        return tuple(value)
    return value
