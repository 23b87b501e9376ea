"""A loaded adapter beside the weights of a model: a new one, or other values of one there."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..adapters import activate
from ..adapters.own import keep, switch
from ..adapters.record import Adapter, adapters, find_adapter
from ..engine.adapting import put
from ..engine.transaction import unchanged_on_error
from ..errors import FormatError, SiteError
from ..models import read
from ..operators import Operator
from .adapter_skeleton import operators_of
from .attach import attach
from .hot_swap import swap_values


def place_adapter(
    model: nn.Module, held: Adapter, made: dict[str, Operator], also: Mapping[str, Tensor]
) -> None:
    """Put a loaded adapter beside the weights, alone active; `also`: values of the model's own."""
    if held.name in adapters(model):
        raise ValueError(
            f"the model already carries an adapter {held.name!r}: give another name=, delete it, "
            "or pass swap=True"
        )
    sites = list(held.sites.values())
    with unchanged_on_error(model, sites):
        put(model, held.name, sites, {site.name: read(model, site) for site in sites}, made)
    model.requires_grad_(False)
    for other in adapters(model).values():
        switch(model, other, on=False)
    adapters(model)[held.name] = held
    keep(model, held)
    for name, value in also.items():
        model.get_parameter(name).copy_(value)
    activate(model, held.name)
    attach(model)


def swap_adapter(
    model: nn.Module, held: Adapter, made: dict[str, Operator], also: Mapping[str, Tensor]
) -> None:
    """Copy a loaded adapter's values into the leaves of the one that has its name already."""
    there = find_adapter(model, held.name)
    weights = operators_of(model, there)
    if set(weights) != set(made) or set(there.also) != set(also):
        other = sorted(set(weights) ^ set(made)) or sorted(set(there.also) ^ set(also))
        raise SiteError(
            other[0],
            f"only one of the two adapters {held.name!r} has it",
            "Load the new one under a name of its own.",
        )
    if any(weight.merged is not None for _, weight, _ in weights.values()):
        raise ValueError("the adapters are merged: unmerge_adapters first")
    swap_values(there.sites, {name: op for name, (_, _, op) in weights.items()}, made)
    for name, value in also.items():
        target = model.get_parameter(name) if there.in_place else there.kept[name]
        target.copy_(value)
    there.method, there.parameters, there.recipe = held.method, held.parameters, held.recipe
    there.targets, there.seed = held.targets, held.seed


def require_parameters(model: nn.Module, also: Mapping[str, Tensor]) -> None:
    """Raise FormatError where the model's own parameters are not those that an adapter trained."""
    known = dict(model.named_parameters(remove_duplicate=False))
    for name, value in also.items():
        if name not in known or known[name].shape != value.shape:
            shape = tuple(known[name].shape) if name in known else "nothing"
            raise FormatError(f"{name} is {tuple(value.shape)} in the folder, {shape} in the model")
