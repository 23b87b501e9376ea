"""Walking a model: its sites in order, and the weights that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from ..layers.convolution import Convolution
from ..layers.experts import Experts
from .blocks import layer_indices, layer_of
from .foreign import is_foreign
from .heads import heads_of
from .kinds import PROJECTIONS, Refused, RefusedModule, is_layer, kind_of
from .mixers import mixer_of
from .roles import Place, infer_role
from .site import Site


def survey(
    model: nn.Module, seed: int = 0, foreign: bool = False
) -> tuple[list[Site], list[Refused]]:
    """Every weight of a model that corank can handle, in model order, and every one it cannot.

    Needs shapes only: a model on the meta device will do. A weight used in several places is one
    site under its first name, the other places in `site.tied`. foreign: quantised linear layers of
    other libraries are sites too, for adapters to stand beside; otherwise they are refused.
    """
    found, refused = _weights(model, foreign)
    sites: list[Site] = []
    pool: dict[str, Any] = {}
    indices, ends, owners = layer_indices(model), _ends(model), _owners(model)
    for group in _groups(found):
        first, others = group[0], tuple(weight.path for weight in group[1:])
        reason = _broken_tie(group, owners)
        if reason is not None:
            refused += [Refused(weight.path, reason) for weight in group]
            continue
        layer = layer_of(first.path, indices)
        for name, shape in _matrices(first):
            place = Place(
                name,
                _site_kind(first.kind),
                shape,
                layer is not None,
                is_input=any(w.module is ends[0] for w in group),
                is_output=any(w.module is ends[1] for w in group),
            )
            role = infer_role(place)
            sites.append(
                Site(
                    name,
                    role,
                    layer,
                    shape,
                    _has_bias(first.module),
                    place.kind,
                    others,
                    seed,
                    pool=pool,
                    kernel=_kernel(first.module, first.kind),
                    foreign=is_foreign(first.module),
                    heads=heads_of(model, name) if role in ("q", "k", "v") else None,
                    mixer=mixer_of(model, name) if role == "in_proj" else None,
                )
            )
    return sites, refused


@dataclass(frozen=True)
class _Weight:
    path: str
    module: Any
    kind: str
    identity: tuple[int, ...]  # of what makes two places one weight


def _weights(model: nn.Module, foreign: bool) -> tuple[list[_Weight], list[Refused]]:
    found: list[_Weight] = []
    refused: list[Refused] = []
    inside = "."  # what stands in a layer or a refused module is not looked into
    for path, module in model.named_modules(remove_duplicate=False):
        if path.startswith(inside):
            continue
        try:
            kind = kind_of(module, foreign)
        except RefusedModule as refusal:
            refused.append(Refused(path, str(refusal)))
            if refusal.whole:
                inside = path + "."
            continue
        if kind is not None:
            found.append(_Weight(path, module, kind, _identity(module, kind)))
            inside = path + "."
    return found, refused


def _identity(module: Any, kind: str) -> tuple[int, ...]:
    if is_layer(module):
        return (id(module if isinstance(module, Experts) else module.operator),)
    if is_foreign(module):
        return (id(module),)
    names = PROJECTIONS if kind == "experts" else ("weight",)
    return tuple(id(module._parameters[name]) for name in names)


def _groups(found: list[_Weight]) -> Iterator[list[_Weight]]:
    groups: dict[tuple[int, ...], list[_Weight]] = {}
    for weight in found:
        groups.setdefault(weight.identity, []).append(weight)
    for group in groups.values():  # a tied embedding gives its name to the site
        yield sorted(group, key=lambda weight: weight.kind != "embedding")


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Id of each parameter -> the paths of all modules that hold it."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for parameter in module._parameters.values():
            owners.setdefault(id(parameter), []).append(path)
    return owners


def _broken_tie(group: list[_Weight], owners: dict[int, list[str]]) -> str | None:
    """Why the places of one weight cannot go on sharing one operator."""
    if is_layer(group[0].module) or is_foreign(group[0].module):
        return None
    kinds, paths = {weight.kind for weight in group}, [weight.path for weight in group]
    elsewhere = {path for key in group[0].identity for path in owners[key]} - set(paths)
    if elsewhere:
        there = ", ".join(sorted(elsewhere))
        return f"its parameter is also held by {there}, where it cannot be replaced; untie them"
    one_module = len({id(weight.module) for weight in group}) == 1
    if one_module or kinds <= {"linear", "embedding"} or kinds in ({"conv1d_transposed"}, {"conv"}):
        return None
    return (
        f"one parameter is used as {' and '.join(sorted(kinds))} in {', '.join(paths)}; untie them"
    )


def _matrices(weight: _Weight) -> Iterator[tuple[str, tuple[int, int]]]:
    module = weight.module
    if weight.kind != "experts":
        yield weight.path, _shape(module, weight.kind)
        return
    count = len(module.gate_up_proj)
    for projection in PROJECTIONS:
        for expert in range(count):
            part = getattr(module, projection)[expert]
            yield f"{weight.path}.{projection}.{expert}", (part.shape[0], part.shape[1])


def _shape(module: Any, kind: str) -> tuple[int, int]:
    if is_layer(module) and not isinstance(module, Experts):
        return module.operator.shape
    if is_foreign(module):
        return module.out_features, module.in_features
    stored = module.weight.shape
    if kind == "conv1d_transposed":
        return stored[1], stored[0]
    return stored[0], prod(stored[1:])


def _kernel(module: Any, kind: str) -> tuple[int, ...]:
    if kind != "conv":
        return ()
    where = module.geometry if isinstance(module, Convolution) else module
    return tuple(where.kernel_size)


def _site_kind(kind: str) -> str:
    return "expert" if kind == "experts" else kind


def _has_bias(module: nn.Module) -> bool:
    return getattr(module, "bias", None) is not None


def _ends(model: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The input embedding and the output head, where a transformers model names them."""
    ends: list[nn.Module | None] = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        try:
            ends.append(getattr(model, getter)())
        except (AttributeError, NotImplementedError):
            ends.append(None)
    return ends[0], ends[1]
