"""Reading the folders that PEFT writes, as operators over the tensors that are in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.record import Adapter
from ..errors import FormatError, SiteError
from ..models import Site, survey
from ..models.kinds import PROJECTIONS
from ..operators import Operator
from ..rewrites.adapting import leaf_dtype
from .adapter_rebuilding import read_json, read_tensors
from .adapter_record import recipe_of
from .adapter_skeleton import base_at
from .peft_kinds import PEFT_TYPES, PeftType
from .peft_names import CONFIG, PREFIX, WEIGHTS, expert_prefixes
from .peft_values import Values

Read = tuple[Adapter, dict[str, Operator], dict[str, Tensor], list[str]]


def read_peft(model: nn.Module, folder: Path) -> Read:
    """The record, operators and own parameters of a PEFT folder, for `model`, and notes.

    Raises FormatError for a kind that corank does not read, an adapter that only makes sense on a
    base that PEFT changed, or a tensor that has no place.
    """
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type")
    if kind not in PEFT_TYPES:
        known = ", ".join(sorted(PEFT_TYPES))
        raise FormatError(f"{folder}: corank reads PEFT adapters of type {known}, not {kind!r}")
    if not (folder / WEIGHTS).is_file():
        raise FormatError(
            f"{folder} has no {WEIGHTS}; corank reads safetensors only: save it again"
        )
    peft = PEFT_TYPES[kind]
    peft.require(config)
    tensors = {key.removeprefix(PREFIX): t for key, t in read_tensors(folder / WEIGHTS).items()}
    shared = {leaf: tensors.pop(f"base_model.{leaf}", None) for leaf in peft.shared}
    values, rest = _by_place(model, peft, tensors)
    sites = {site.name: site for site in survey(model)[0]}
    made: dict[str, Operator] = {}
    for path in values:
        for site, known_as, own in _of_sites(sites, path, values, config):
            base = base_at(model, site)
            if any(not tensor.is_floating_point() for tensor in own.values()):
                raise FormatError(f"{site.where}: a tensor of the adapter is not floating point")
            own = {n: t.to(base.device, leaf_dtype(base), copy=True) for n, t in own.items()}
            made[site.name] = _built(peft, site, Values(own, shared, config, known_as))
    if not made:
        raise FormatError(f"{folder / WEIGHTS} holds no tensor of a {kind} adapter")
    method, parameters = peft.method(config)
    also = _own(model, rest, made)
    held = Adapter(
        "default", method, parameters, sorted(values), 0, {name: sites[name] for name in made},
        recipe_of(method, parameters), also=tuple(also),
        trains={
            name: tuple(n for n, leaf in op.named_parameters() if leaf.requires_grad)
            for name, op in made.items()
        },
    )  # fmt: skip
    return held, made, also, []


def _by_place(
    model: nn.Module, peft: PeftType, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Module path in `model` -> the adapter's leaves there; and the tensors of no adapter."""
    values: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        leaf = next((leaf for leaf in peft.leaves if key.endswith(f".{leaf}")), None)
        if leaf is None:
            rest[key] = tensor
        else:
            values.setdefault(_placed(model, key.removesuffix(f".{leaf}")), {})[leaf] = tensor
    return values, rest


def _placed(model: nn.Module, path: str) -> str:
    """A path in `model`, which may have another head than the one the adapter was made for."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    bare = path.removesuffix(".base_layer")
    for candidate in (bare, bare.removeprefix(prefix), prefix + bare):
        try:
            model.get_submodule(candidate)
        except AttributeError:
            continue
        return candidate + path[len(bare) :]
    raise FormatError(f"the adapter is for {path}, which the model has not")


def _of_sites(
    sites: Mapping[str, Site],
    path: str,
    values: Mapping[str, dict[str, Tensor]],
    config: Mapping[str, Any],
) -> list[tuple[Site, str, dict[str, Tensor]]]:
    """(site, the path that PEFT's patterns match, its leaves): one, or one for each expert."""
    leaves = values[path]
    for site in sites.values():
        if path in (site.name, *site.tied):
            _require_tied(site, values)
            return [(site, path, leaves)] if path == site.name else []
    bare = path.removesuffix(".base_layer")
    asked = [str(name) for name in config.get("target_parameters") or ()]
    wrapped = [
        name
        for name in PROJECTIONS
        if any(f".{bare}.{name}".endswith(f".{target}") for target in asked)
    ]
    inner = {prefix: name for name, prefix in expert_prefixes(bare, wrapped).items()}
    experts = [s for s in sites.values() if s.name.startswith(f"{bare}.{inner.get(path)}.")]
    if not experts or set(leaves) != {"lora_A.weight", "lora_B.weight"}:
        raise FormatError(f"the adapter is for {path}, which is no weight that corank can adapt")
    a, b = leaves["lora_A.weight"], leaves["lora_B.weight"]
    count = len(experts)
    if len(a) % count or b.shape[-1] != len(a):
        raise FormatError(
            f"{path}: matrices {tuple(a.shape)} and {tuple(b.shape)} are not of {count} experts"
        )
    a, b = a.unflatten(0, (count, -1)), b.unflatten(1, (-1, count))
    return [
        (s, f"{bare}.{inner[path]}", {"lora_A.weight": a[i], "lora_B.weight": b[:, :, i]})
        for i, s in enumerate(experts)
    ]


def _require_tied(site: Site, values: Mapping[str, dict[str, Tensor]]) -> None:
    """Refuse an adapter of only one of the places that share a weight: here they share its
    adapter too."""
    nothing = torch.empty(0, 0)
    updates = [
        (
            leaves.get("lora_A.weight", leaves.get("lora_embedding_B", nothing).mT),
            leaves.get("lora_B.weight", leaves.get("lora_embedding_A", nothing).mT),
        )
        for leaves in (values.get(path, {}) for path in (site.name, *site.tied))
    ]
    a, b = updates[0]
    if any(not torch.equal(a, x) or not torch.equal(b, y) for x, y in updates[1:]):
        raise SiteError(
            site.where,
            f"its weight is shared with {', '.join(site.tied)}, and the adapter is not",
            "Untie them before loading.",
        )


def _built(peft: PeftType, site: Site, values: Values) -> Operator:
    try:
        return peft.build(site, values)
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, (FormatError, SiteError)):
            raise
        raise FormatError(f"the adapter of {site.where} cannot be rebuilt: {error}") from error


def _own(
    model: nn.Module, rest: Mapping[str, Tensor], made: Mapping[str, Operator]
) -> dict[str, Tensor]:
    """The tensors of no adapter, by the names of the model's own parameters. A copy of an adapted
    weight (PEFT saves embeddings so) is left out where it is the model's."""
    own: dict[str, Tensor] = {}
    for key, tensor in rest.items():
        path, _, leaf = key.rpartition(".")
        if path.endswith((".modules_to_save", ".original_module")):
            continue  # a second copy, which PEFT writes with biases and does not read
        place = _placed(model, path).removesuffix(".base_layer")
        if place in made and leaf == "weight":
            weight = model.get_submodule(place).get_parameter("weight")
            if weight.shape != tensor.shape or not torch.equal(
                weight.cpu(), tensor.to(weight.dtype)
            ):
                raise FormatError(f"the adapter replaces the weight {place}, which it also adapts")
        else:
            own[f"{place}.{leaf}"] = tensor
    return own
