"""An adapter's operators in a folder: a sealed skeleton and one tensor file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..adapters.record import Adapter
from ..errors import FormatError, SiteError
from ..models import Site, read
from ..operators import Adapted, Operator, build, describe
from .adapter_random import draw, with_stored
from .adapter_record import describe_adapter
from .fingerprint import fingerprint, follows_weight
from .record import FORMAT, read_header, record, require_sealed, seal, verify

SKELETON = "corank_adapter.json"
TENSORS = "corank_adapter.safetensors"

_MAX_PARTS = 512  # operators in one list; more would take long to put together
_MAX_JSON_BYTES = 1 << 28
_UNBUILDABLE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


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
        for leaf_name, leaf in _leaves(op)
    }
    shared = {
        key: first[id(leaf)]
        for key, leaf in leaves.items()
        if first.setdefault(id(leaf), key) != key
    }
    sites = {}
    for name, (site, weight, op) in there.items():
        common = {key for pair in shared.items() for key in pair}
        between = {leaf for leaf, _ in _leaves(op) if f"sites/{name}/{leaf}" in common}
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


def read_skeleton(folder: Path) -> dict[str, Any]:
    """The skeleton of an adapter's folder, checked against its seal and against the tensor file.

    After this every leaf that the skeleton speaks of is in the file, with its shape and dtype, or
    shared with one that is. Raises FormatError; allocates nothing.
    """
    file = folder / SKELETON
    skeleton = read_json(file)
    require_sealed(skeleton, str(file))
    entries = {"format", "corank", "adapter", "sites", "shared", "files", "sha256"}
    if set(skeleton) != entries or not all(
        isinstance(skeleton[key], dict) for key in ("adapter", "sites", "shared", "files")
    ):
        raise FormatError(f"{file} is no adapter's skeleton")
    if set(skeleton["files"]) != {TENSORS}:
        raise FormatError(f"{file} names other files than {TENSORS}")
    verify([folder / TENSORS], skeleton["files"])
    header = read_header(folder / TENSORS)
    for name, entry in skeleton["sites"].items():
        _require_site(f"{file}: {name}", entry)
        for path, wanted in _described(entry["operator"], ""):
            leaf = f"sites/{name}/{path}"
            key = skeleton["shared"].get(leaf, leaf)
            stored = header.get(key) if isinstance(key, str) else None
            found = None if stored is None else (stored["shape"], _DTYPES.get(stored["dtype"]))
            if found != (wanted.get("shape"), wanted.get("dtype")):
                raise FormatError(
                    f"{file} wants {wanted} as {leaf}, and the tensor file has {found}"
                )
    return skeleton


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds a dict. Raises FormatError for anything else, and for a huge one."""
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise FormatError(f"{file} is too large to be a description of an adapter")
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"{file} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file} is truncated, or is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{file} does not hold a JSON object")
    return value


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises FormatError for a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        read_header(file)
        return dict(load_file(file))
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{file} is damaged: {error}") from error


def build_operators(
    skeleton: Mapping[str, Any], tensors: Mapping[str, Tensor], bases: Mapping[str, Operator]
) -> dict[str, Operator]:
    """The operators of a checked skeleton over its values, on the devices of their weights.

    Leaves that several sites share are one object again. Raises FormatError.
    """
    made: dict[str, Operator] = {}
    held: dict[str, Tensor] = {}
    for name, base in bases.items():
        try:
            op = build(skeleton["sites"][name]["operator"])
        except _UNBUILDABLE as error:
            raise FormatError(f"the adapter of {name} cannot be rebuilt: {error}") from error
        if op.shape != base.shape:
            raise FormatError(f"the adapter of {name} is of {op.shape}, its weight {base.shape}")
        for leaf, placeholder in list(_leaves(op)):
            key = f"sites/{name}/{leaf}"
            key = skeleton["shared"].get(key, key)
            if key not in tensors:
                raise FormatError(f"{key} is not in the tensor file")
            if key not in held:
                value = tensors[key].to(base.device, copy=True)  # aligned, and not the file
                trains = isinstance(placeholder, nn.Parameter)
                held[key] = nn.Parameter(value, placeholder.requires_grad) if trains else value
            _put_leaf(op, leaf, held[key])
        try:
            draw(op, base.device)
        except ValueError as error:
            raise FormatError(f"the adapter of {name} cannot be drawn again: {error}") from error
        made[name] = op
    return made


def _leaves(op: Operator) -> Iterator[tuple[str, Tensor]]:
    """What a file holds of an operator: no buffer that is made again, as `Seeded`'s matrix is."""
    yield from op.named_parameters(remove_duplicate=False)
    for path, module in op.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield (f"{path}.{name}" if path else name), buffer


def _put_leaf(op: Operator, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = op.get_submodule(path)
    if isinstance(value, nn.Parameter):
        owner._parameters[leaf] = value
    else:
        owner._buffers[leaf] = value


def _described(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The leaves of an operator's skeleton by their names, before anything is built."""
    if isinstance(value, list):
        if any(isinstance(part, dict) for part in value) and len(value) > _MAX_PARTS:
            raise FormatError(f"{path} has {len(value)} parts, more than {_MAX_PARTS}")
        for number, part in enumerate(value):
            yield from _described(part, f"{path}.{number}")
    elif isinstance(value, dict) and "kind" in value:
        for key, part in value.items():
            yield from _described(part, f"{path}.{key}" if path else key)
    elif isinstance(value, dict):
        yield path, value


def _require_site(where: str, entry: Any) -> None:
    wanted = {"kind": str, "shape": list, "operator": dict, "fingerprint": str}
    if not isinstance(entry, dict) or set(entry) != {*wanted, "follows_weight"}:
        raise FormatError(f"{where} lacks an entry, or has one too many")
    if not all(isinstance(entry[key], kind) for key, kind in wanted.items()):
        raise FormatError(f"{where} is damaged")
