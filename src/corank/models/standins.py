"""Building the layer that stands in for a module, and the module again from the layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..layers.convolution import Convolution
from ..layers.embedding import Embedding
from ..layers.experts import Experts
from ..layers.lazy import dense_of
from ..layers.linear import Linear
from ..layers.origin import Origin, carry
from ..operators.dense import Dense
from ..operators.foreign import Foreign
from ..operators.operator import Operator
from .foreign import is_foreign
from .kinds import PROJECTIONS, Layer, is_layer, kind_of

Old = TypeVar("Old", bound=nn.Module)
New = TypeVar("New", bound=nn.Module)


def swap(old: Old, build: Callable[[Old], New]) -> New:
    """`build(old)` with the mode, the hooks and accelerate's device placement of `old`."""
    hook: Any = getattr(old, "_hf_hook", None)
    if hook is None:
        return cast("New", carry(old, build(old)))
    from accelerate.hooks import (  # type: ignore[import-untyped]
        add_hook_to_module,
        remove_hook_from_module,
    )

    remove_hook_from_module(old)
    placed: New = add_hook_to_module(carry(old, build(old)), hook)
    return placed


def layer_over(op: Operator, bias: Tensor | None, module: nn.Module) -> Layer:
    """A layer over `op` in place of a plain module or of another layer.

    bias: replaces the module's; None keeps that one, as the same parameter.
    """
    there = module._parameters.get("bias")
    if bias is not None:
        trains = there is not None and there.requires_grad
        device = there.device if there is not None else op.device
        there = nn.Parameter(bias.detach().to(device, op.dtype), requires_grad=trains)
    layer: Linear | Convolution | Embedding
    if isinstance(module, (nn.Embedding, Embedding)):
        layer = Embedding(op, module.padding_idx, there, module._buffers.get("embed_scale"))
    elif isinstance(module, Convolution):
        layer = Convolution(op, there, **vars(module.geometry))
    elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
        layer = Convolution(
            op,
            there,
            kernel_size=module.kernel_size,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            padding_mode=module.padding_mode,
        )
    else:
        transposed = not is_foreign(module) and kind_of(module) == "conv1d_transposed"
        layer = Linear(op, there, transposed=transposed)
    if is_foreign(module):
        layer.origin = Origin(_plain_linear(op, there))
    else:
        layer.origin = module.origin if is_layer(module) else Origin(module)
    return layer


def foreign_over(layer: Linear) -> nn.Module:
    """The module of another library's that a bare `Foreign` was made of, with its bias."""
    assert isinstance(layer.operator, Foreign)
    module = copy.copy(layer.operator.module)
    module._parameters = dict(module._parameters)
    if "bias" in module._parameters:
        module._parameters["bias"] = layer.bias
    return module


def _plain_linear(op: Operator, bias: Tensor | None) -> nn.Linear:
    """What merging makes of a quantised layer: an nn.Linear, its weights still to come."""
    plain = nn.Linear(op.shape[1], op.shape[0], bias is not None, device="meta")
    return plain.requires_grad_(False)


def experts_over(fused: nn.Module) -> Experts:
    """Fused experts as one Dense each, over copies, so that the fused tensors can go."""
    gate_up, down = (
        [Dense(nn.Parameter(part.clone(), stored.requires_grad)) for part in stored.detach()]
        for stored in (fused.get_parameter(name) for name in PROJECTIONS)
    )
    act_fn: Any = fused.act_fn
    layer = Experts(gate_up, down, act_fn)
    layer.origin = Origin(fused)
    return layer


def dense_parameters(layer: Layer, origin: Origin) -> dict[str, nn.Parameter]:
    """The dense weights of a layer as its origin stores them, trainable if those were."""
    with torch.no_grad():
        if isinstance(layer, Experts):
            both = zip(PROJECTIONS, (layer.gate_up_proj, layer.down_proj), strict=True)
            tensors = {name: torch.stack([dense_of(op) for op in ops]) for name, ops in both}
        else:
            weight = dense_of(layer.operator)
            if isinstance(layer, Linear) and layer.transposed:
                weight = weight.t()
            elif isinstance(layer, Convolution):
                weight = weight.reshape(layer.weight.shape)
            tensors = {"weight": weight.clone(memory_format=torch.contiguous_format)}
    return {name: nn.Parameter(t, requires_grad=origin.trains) for name, t in tensors.items()}


def plain_over(weights: dict[str, nn.Parameter], layer: Layer) -> nn.Module:
    """The module that `layer` replaced, over these weights and the layer's bias."""
    assert layer.origin is not None
    parameters = dict(layer.origin.module._parameters) | weights
    if isinstance(layer, Embedding) and layer.bias is not None:  # goes into every row
        table = weights["weight"]
        moved = (table + layer.bias).detach()
        parameters["weight"] = nn.Parameter(moved, requires_grad=table.requires_grad)
    elif isinstance(layer, (Linear, Convolution)):
        parameters["bias"] = layer.bias
    return layer.origin.restore(parameters, dict(layer._buffers))
