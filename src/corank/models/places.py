"""Reading a site's weight, putting an operator in its place, and the plain module back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SiteError
from ..layers.convolution import Convolution
from ..layers.embedding import Embedding
from ..layers.experts import Experts
from ..layers.lazy import dense_of
from ..layers.linear import Linear
from ..layers.origin import Origin, carry
from ..operators.dense import Dense
from ..operators.operator import Operator
from .kinds import PROJECTIONS, RefusedModule, is_layer, kind_of
from .site import Site
from .ties import rename_ties


def read(model: nn.Module, site: Site) -> Operator:
    """The operator at a site: the one installed, or a Dense over the detached canonical matrix.

    The Dense shares memory with the model where the layout allows, and its `requires_grad` is the
    parameter's. Raises SiteError where the site is no longer what it was found to be.
    """
    module = module_at(model, site)
    if is_layer(module):
        return _operator_in(module, site)
    if site.kind == "expert":
        _, projection, number = site.expert
        stored = module.get_parameter(projection)
        matrix = stored.detach()[number]
    else:
        stored = module.get_parameter("weight")
        matrix = stored.detach()
        if site.kind == "conv1d_transposed":
            matrix = matrix.t().contiguous()
        elif site.kind == "conv":
            matrix = matrix.flatten(1)
    return Dense(nn.Parameter(matrix, requires_grad=stored.requires_grad))


def is_rewritten(model: nn.Module, site: Site) -> bool:
    """Whether an operator of corank's stands at the site (a Dense put there counts; an untouched
    expert of a module whose other experts were rewritten does not)."""
    module = module_at(model, site)
    if isinstance(module, Experts):
        return _key(site) in module.rewritten
    return is_layer(module)


def install(model: nn.Module, site: Site, op: Operator, bias: Tensor | None = None) -> None:
    """Put an operator at a site and at every place tied to it, in place.

    op: of the site's shape; which of its leaves train is the caller's choice.
    bias: replaces the bias (out,), or (in,) for an embedding; None keeps the one there.

    Raises SiteError for an operator of another shape, or a bias where there can be none.
    """
    if tuple(op.shape) != tuple(site.shape):
        raise SiteError(
            site.where, f"an operator of shape {tuple(op.shape)} does not fit", "Keep the shape."
        )
    if bias is not None and (site.kind == "expert" or (site.kind == "embedding" and site.tied)):
        raise SiteError(
            site.where,
            "experts and tied embeddings hold no bias",
            "Use a method, or an option of this one, that makes none.",
        )
    module = module_at(model, site)
    if site.kind == "expert":
        _install_expert(model, site, module, op)
        return
    places = (site.name, *site.tied)
    old = _weight_names(module)
    replaced: dict[int, nn.Module] = {}
    for path in places:
        there = model.get_submodule(path)
        layer = replaced.get(id(there))
        if layer is None:
            layer = _swap(there, partial(_layer, op, bias))
            replaced[id(there)] = layer
        _put(model, path, layer)
    if site.tied:
        rename_ties(model, places, old, _weight_names(model.get_submodule(site.name)))


def densify(model: nn.Module, site: Site) -> None:
    """Put the plain module back, over the operator's dense matrix: the same function, its class
    and its trainability what they were. Does nothing where no operator stands.

    The parameters of one expert's module come back all at once. Raises SiteError for a layer that
    `install` did not put there.
    """
    module = module_at(model, site)
    if not is_layer(module):
        return
    places = (site.path, *site.tied)
    old = _weight_names(module)
    weights: dict[str, nn.Parameter] = {}
    restored: dict[int, nn.Module] = {}
    for path in places:
        layer = model.get_submodule(path)
        if id(layer) not in restored:
            if layer.origin is None:
                raise SiteError(
                    site.where,
                    "nobody recorded which module this layer replaced",
                    "Install operators with corank.models.install.",
                )
            if not weights:
                weights = _dense_parameters(layer, site)
            restored[id(layer)] = _swap(layer, partial(_restored, weights))
        _put(model, path, restored[id(layer)])
    if site.tied:
        rename_ties(model, places, old, _weight_names(model.get_submodule(site.path)))


def require_finite(model: nn.Module, site: Site) -> None:
    """Refuse a weight that cannot be computed with.

    Raises SiteError for NaN or infinite values, for integer weights and for the meta device,
    naming the site and the remedy.
    """
    op = read(model, site)
    for name, leaf in (*op.named_parameters(), *op.named_buffers()):
        if leaf.is_meta:
            raise SiteError(
                site.where,
                f"its {name} is on the meta device and has no values",
                "Load the weights first, or offload nothing.",
            )
        if leaf.is_floating_point() and not torch.isfinite(leaf).all():
            count = int((~torch.isfinite(leaf)).sum())
            raise SiteError(
                site.where,
                f"its {name} has {count} NaN or infinite values",
                "Repair the checkpoint, load it in a wider dtype, or leave the site out.",
            )


def module_at(model: nn.Module, site: Site) -> nn.Module:
    """The module that holds a site's weight. Raises SiteError where it is gone or has changed."""
    try:
        module = model.get_submodule(site.path)
        kind = kind_of(module)
    except AttributeError:
        raise SiteError(
            site.where, "the model has no such module", "Find the sites again."
        ) from None
    except RefusedModule as refusal:
        raise SiteError(site.where, str(refusal), "Leave it out of the targets.") from None
    if kind != ("experts" if site.kind == "expert" else site.kind):
        raise SiteError(site.where, f"now holds a {type(module).__name__}", "Find the sites again.")
    return module


def _key(site: Site) -> tuple[str, int]:
    _, projection, number = site.expert
    return projection, number


def _operator_in(module: nn.Module, site: Site) -> Operator:
    if isinstance(module, Experts):
        _, projection, number = site.expert
        op: Operator = getattr(module, projection)[number]
        return op
    return module.operator


def _weight_names(module: nn.Module) -> list[str]:
    if isinstance(module, (Linear, Convolution, Embedding)):
        return [f"operator.{name}" for name in module.operator.state_dict()]
    return ["weight"]


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    if not path:
        raise SiteError("the model", "is itself the layer to replace", "Wrap it in a module.")
    model.get_submodule(parent)._modules[name] = module


def _swap(old: nn.Module, build: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """`build(old)` with the mode, the hooks and accelerate's device placement of `old`."""
    hook: Any = getattr(old, "_hf_hook", None)
    if hook is None:
        return carry(old, build(old))
    from accelerate.hooks import add_hook_to_module, remove_hook_from_module

    remove_hook_from_module(old)
    placed: nn.Module = add_hook_to_module(carry(old, build(old)), hook)
    return placed


def _layer(op: Operator, bias: Tensor | None, module: nn.Module) -> nn.Module:
    """A layer over `op` in place of a plain module, or of another layer."""
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
        layer = Linear(op, there, transposed=kind_of(module) == "conv1d_transposed")
    layer.origin = module.origin if is_layer(module) else Origin(module)
    return layer


def _install_expert(model: nn.Module, site: Site, module: nn.Module, op: Operator) -> None:
    if not isinstance(module, Experts):
        fused = module
        layer = _swap(fused, _experts)
        for path in (site.path, *site.tied):
            _put(model, path, layer)
        assert isinstance(layer, Experts)
        module = layer
    _, projection, number = site.expert
    getattr(module, projection)[number] = op
    module.rewritten.add(_key(site))


def _experts(fused: nn.Module) -> Experts:
    """Fused experts as one operator each, over copies: the fused tensors can go."""
    gate_up, down = (
        [Dense(nn.Parameter(part.clone(), stored.requires_grad)) for part in stored.detach()]
        for stored in (fused.get_parameter(name) for name in PROJECTIONS)
    )
    layer = Experts(gate_up, down, fused.act_fn)
    layer.origin = Origin(fused)
    return layer


def _dense_parameters(layer: nn.Module, site: Site) -> dict[str, nn.Parameter]:
    """The dense weights of a layer as its origin stores them."""
    with torch.no_grad():
        if isinstance(layer, Experts):
            tensors = {
                name: torch.stack([dense_of(op) for op in getattr(layer, name)])
                for name in PROJECTIONS
            }
        else:
            matrix = dense_of(layer.operator)
            if site.kind == "conv1d_transposed":
                matrix = matrix.t()
            elif site.kind == "conv":
                matrix = matrix.reshape(layer.weight.shape)
            tensors = {"weight": matrix.clone(memory_format=torch.contiguous_format)}
    trains = layer.origin.trains
    return {name: nn.Parameter(t, requires_grad=trains) for name, t in tensors.items()}


def _restored(weights: dict[str, nn.Parameter], layer: nn.Module) -> nn.Module:
    parameters: dict[str, nn.Parameter | None] = dict(layer.origin.module._parameters)
    parameters |= weights
    if isinstance(layer, Embedding) and layer.bias is not None:
        table = weights["weight"]
        moved = (table + layer.bias).detach()
        parameters["weight"] = nn.Parameter(moved, requires_grad=table.requires_grad)
    elif not isinstance(layer, (Experts, Embedding)):
        parameters["bias"] = layer.bias
    return layer.origin.restore(parameters, dict(layer._buffers))
