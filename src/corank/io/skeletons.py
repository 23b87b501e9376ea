"""A whole model's operators without their values, as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..adapters.factorized import factorized
from ..adapters.record import adapters
from ..layers import Convolution, Embedding, Experts, Linear
from ..models.kinds import PROJECTIONS, is_layer
from ..operators import Adapted, Operator, Seeded, describe
from .adapter_record import describe_adapter
from .held_record import describe_held
from .record import FORMAT


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
        "modules": {path: describe_layer(layer) for path, layer in layers(model)},
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


def describe_layer(layer: nn.Module) -> dict[str, Any]:
    """A layer of ours in `modules`."""
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
