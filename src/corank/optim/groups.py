"""Which parameters of a model are projected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..models import Targets, find_sites
from .sharded import is_sharded
from .state import outline


def groups(
    model: nn.Module, targets: Targets = "all-linear", **options: Any
) -> list[dict[str, Any]]:
    """Parameter groups of a model: the weights of `targets`, fused experts, and all the rest.

    targets: as `corank.adapt`'s; by default linear layers, but no embeddings, norms or heads.
    options: of the projected groups, such as rank.
    Frozen parameters are left out; a tied weight goes where its first name does.
    """
    trained = {id(p): p for p in model.parameters() if p.requires_grad}
    flat: list[nn.Parameter] = []
    stacks: list[nn.Parameter] = []
    with _outlined(model):
        sites = find_sites(model, targets)
    for site in sites:
        if any(isinstance(model.get_submodule(name), nn.Embedding) for name in site.tied):
            continue
        owner = model.get_submodule(site.path)
        for weight in owner.parameters(recurse=False) if site.kind == "expert" else (owner.weight,):
            if isinstance(weight, nn.Parameter) and weight.ndim > 1 and id(weight) in trained:
                (stacks if site.kind == "expert" else flat).append(trained.pop(id(weight)))
    made = [
        {"params": flat, "project": True, **options},
        {"params": stacks, "project": True, "stack": True, **options},
        {"params": list(trained.values()), "project": False},
    ]
    return [group for group in made if group["params"]]


@contextmanager
def _outlined(model: nn.Module) -> Iterator[None]:
    """Mere shapes in place of sharded parameters, to find out what the modules are."""
    held = [
        (module._parameters, name, p)
        for module in model.modules()
        for name, p in module._parameters.items()
        if p is not None and is_sharded(p)
    ]
    shapes = {p: nn.Parameter(outline(p)) for _, _, p in held}
    try:
        for parameters, name, p in held:
            parameters[name] = shapes[p]
        yield
    finally:
        for parameters, name, p in held:
            parameters[name] = p


def sparing_vectors(groups: Iterable[dict[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    """The groups with that decay, their parameters of one dimension in groups that do not decay."""
    made = []
    for group in groups:
        for wide in (True, False):
            if params := [p for p in group["params"] if (p.ndim > 1) == wide]:
                decay = weight_decay if wide else 0.0
                made.append(group | {"params": params, "weight_decay": decay})
    return made
