"""An adapter's operators in a folder: a sealed skeleton and one tensor file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..adapters.record import Adapter
from ..errors import SiteError
from ..models import Site, read
from ..operators import Adapted, Operator, describe
from .adapter_random import with_stored
from .adapter_record import describe_adapter
from .fingerprint import fingerprint, follows_weight
from .record import FORMAT, record, seal

SKELETON = "corank_adapter.json"
TENSORS = "corank_adapter.safetensors"


def operators_of(model: nn.Module, held: Adapter) -> dict[str, tuple[Site, Adapted, Operator]]:
    """Site name -> site, the adapted weight there and the adapter's operator."""
    found = {}
    for name, site in held.sites.items():
        weight = read(model, site)
        if isinstance(weight, Adapted) and held.name in weight.names:
            found[name] = (site, weight, weight.adapter(held.name))
    return found


def base_at(model: nn.Module, site: Site) -> Operator:
    """The weight at a site without its adapters. Raises SiteError for one without values."""
    op = read(model, site)
    base = op.base if isinstance(op, Adapted) else op
    if base.device.type == "meta":
        raise SiteError(site.where, "it has no values (meta device)", "Load the weights first.")
    return base


def own_values(model: nn.Module, held: Adapter) -> dict[str, Tensor]:
    """The adapter's values of the model's own parameters, wherever they are kept."""
    if not held.in_place:
        return {name: held.kept[name] for name in held.also}
    return {name: model.get_parameter(name).detach() for name in held.also}


def write_skeleton(
    model: nn.Module, held: Adapter, folder: Path, store_random: bool = False
) -> None:
    """Write an adapter of `model` into an empty folder, each shared leaf once.

    store_random: write the frozen random matrices too, which else are drawn again from their seed.
    """
    from safetensors.torch import save_file

    # imported here: corank/__init__.py defines it and imports this module
    from ..version import __version__

    there = operators_of(model, held)
    if store_random:
        drawn: dict[tuple[Any, ...], nn.Parameter] = {}
        there = {n: (site, w, with_stored(op, drawn)) for n, (site, w, op) in there.items()}
    first: dict[int, str] = {}
    leaves = {
        f"sites/{name}/{leaf_name}": leaf
        for name, (_, _, op) in there.items()
        for leaf_name, leaf in leaves_of(op)
    }
    shared = {
        key: first[id(leaf)]
        for key, leaf in leaves.items()
        if first.setdefault(id(leaf), key) != key
    }
    sites = {}
    for name, (site, weight, op) in there.items():
        common = {key for pair in shared.items() for key in pair}
        between = {leaf for leaf, _ in leaves_of(op) if f"sites/{name}/{leaf}" in common}
        sites[name] = {
            "kind": site.kind,
            "shape": list(site.shape),
            "operator": describe(op),
            "fingerprint": fingerprint(weight.base),
            "follows_weight": follows_weight(op, held.trains.get(name, ()), between),
        }
    tensors = {key: leaf for key, leaf in leaves.items() if key not in shared}
    tensors |= {f"also/{name}": value for name, value in own_values(model, held).items()}
    file = folder / TENSORS
    whole = {key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}
    save_file(whole, file, metadata={"format": "pt"})
    skeleton = {
        "format": FORMAT,
        "corank": __version__,
        "adapter": describe_adapter(held),
        "sites": sites,
        "shared": shared,
        "files": record([file]),
    }
    text = json.dumps(seal(skeleton), indent=1, sort_keys=True) + "\n"
    (folder / SKELETON).write_text(text, encoding="utf-8")


def leaves_of(op: Operator) -> Iterator[tuple[str, Tensor]]:
    """What a file holds of an operator: no buffer that is made again, as `Seeded`'s matrix is."""
    yield from op.named_parameters(remove_duplicate=False)
    for path, module in op.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield (f"{path}.{name}" if path else name), buffer
