"""Reading a site's weight, putting an operator in its place, and the plain module back."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from ..errors import SiteError
from ..layers.convolution import Convolution
from ..layers.embedding import Embedding
from ..layers.experts import Experts
from ..layers.linear import Linear
from ..operators.dense import Dense
from ..operators.foreign import Foreign
from ..operators.operator import Operator
from .foreign import is_foreign
from .kinds import Layer, RefusedModule, is_layer, kind_of
from .refusing import require_finite_leaves, require_one_matrix
from .site import Site
from .standins import dense_parameters, experts_over, foreign_over, layer_over, plain_over, swap
from .ties import rename_ties


def read(model: nn.Module, site: Site) -> Operator:
    """The operator at a site: the one installed, or a Dense over the detached canonical matrix.

    The Dense shares memory with the model where the layout allows, and its `requires_grad` is the
    parameter's. Raises SiteError where the site is no longer what it was found to be.
    """
    module = module_at(model, site)
    if is_layer(module):
        return operator_in(module, site)
    if is_foreign(module):
        return Foreign(module, site.shape)
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


def read_bias(model: nn.Module, site: Site) -> Tensor | None:
    """The bias at a site, (out,), or (in,) for an embedding; None where there is none."""
    return module_at(model, site)._parameters.get("bias") if site.kind != "expert" else None


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
    if bias is not None and (site.kind == "expert" or site.tied):
        raise SiteError(
            site.where,
            "an expert or a tied weight can be given no bias",
            "Use a method, or an option of this one, that makes none.",
        )
    module = module_at(model, site)
    if site.kind == "expert":
        _install_expert(model, site, module, op)
        return
    places = (site.name, *site.tied)
    old = [*_weight_names(module), "weight"]
    replaced: dict[int, nn.Module] = {}
    for path in places:
        there = model.get_submodule(path)
        layer = replaced.get(id(there))
        if layer is None:
            layer = swap(there, partial(layer_over, op, bias))
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
    require_one_matrix(site.where, module)
    places = (site.path, *site.tied)
    old = [*_weight_names(module), "weight"]
    weights: dict[str, nn.Parameter] = {}
    restored: dict[int, nn.Module] = {}
    for path in places:
        layer = model.get_submodule(path)
        if id(layer) not in restored:
            if not is_layer(layer) or layer.origin is None:
                raise SiteError(
                    site.where,
                    "nobody recorded which module this layer replaced",
                    "Install operators with corank.models.install.",
                )
            weights = weights or dense_parameters(layer, layer.origin)
            restored[id(layer)] = swap(layer, partial(plain_over, weights))
        _put(model, path, restored[id(layer)])
    if site.tied:
        rename_ties(model, places, old, _weight_names(model.get_submodule(site.path)))


def give_back(model: nn.Module, site: Site) -> None:
    """Put the module of another library's back where a bare `Foreign` stands for it."""
    for path in (site.name, *site.tied):
        layer = model.get_submodule(path)
        if isinstance(layer, Linear) and isinstance(layer.operator, Foreign):
            _put(model, path, swap(layer, foreign_over))


def require_finite(model: nn.Module, site: Site) -> None:
    """Refuse a weight that cannot be computed with.

    Raises SiteError for NaN or infinite values, for integer weights and for the meta device,
    naming the site and the remedy.
    """
    require_finite_leaves(read(model, site), site)


def module_at(model: nn.Module, site: Site) -> nn.Module:
    """The module that holds a site's weight. Raises SiteError where it is gone or has changed."""
    try:
        module = model.get_submodule(site.path)
        kind = kind_of(module, site.foreign)
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


def operator_in(layer: Layer, site: Site) -> Operator:
    """The operator that a layer holds for a site."""
    if isinstance(layer, Experts):
        _, projection, number = site.expert
        return (layer.gate_up_proj if projection == "gate_up_proj" else layer.down_proj)[number]
    return layer.operator


def _weight_names(module: nn.Module) -> list[str]:
    if isinstance(module, (Linear, Convolution, Embedding)):
        return [f"operator.{name}" for name in module.operator.state_dict()]
    return ["weight"]


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    if not path:
        raise SiteError("the model", "is itself the layer to replace", "Wrap it in a module.")
    model.get_submodule(parent)._modules[name] = module


def _install_expert(model: nn.Module, site: Site, module: nn.Module, op: Operator) -> None:
    if not isinstance(module, Experts):
        fused: nn.Module = module
        module = swap(fused, experts_over)
        for path in (site.path, *site.tied):
            _put(model, path, module)
    _, projection, number = site.expert
    operators = module.gate_up_proj if projection == "gate_up_proj" else module.down_proj
    operators[number] = op
    module.rewritten.add(_key(site))
