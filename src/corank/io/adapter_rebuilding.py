"""An adapter's operators from a folder: what is in it is checked before anything is built."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..adapters.record import Adapter
from ..errors import FormatError, SiteError
from ..operators import Operator, build
from .adapter_random import draw
from .adapter_record import restored_adapter
from .adapter_skeleton import SKELETON, TENSORS, base_at, leaves_of
from .fingerprint import fingerprint
from .record import read_header, require_sealed, verify

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
        for leaf, placeholder in list(leaves_of(op)):
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


Read = tuple[Adapter, dict[str, Operator], dict[str, Tensor], list[str]]


def read_corank(model: nn.Module, folder: Path, force: bool) -> Read:
    """What a folder of ours holds for `model`: its record, operators, own values and notes.

    Raises FormatError for a damaged folder or another base, SiteError for a weight that it does
    not fit. force: other bases pass, and are noted.
    """
    skeleton = read_skeleton(folder)
    held = restored_adapter(model, skeleton["adapter"])
    if set(held.sites) != set(skeleton["sites"]):
        raise FormatError(f"{folder / SKELETON}: its record and its operators name other sites")
    bases = {name: base_at(model, site) for name, site in held.sites.items()}
    notes = []
    for name, site in held.sites.items():
        entry = skeleton["sites"][name]
        if (site.kind, list(site.shape)) != (entry["kind"], entry["shape"]):
            raise SiteError(
                site.where,
                f"the adapter is for a {entry['kind']} weight of {entry['shape']}",
                "Load it onto the model that it was made for.",
            )
        here = fingerprint(bases[name])
        if here != entry["fingerprint"]:
            told = f"made for weight {entry['fingerprint']}, and here is {here}"
            if entry["follows_weight"] is not False and not force:
                raise FormatError(
                    f"{site.where}: the adapter was {told}; it is defined by its weight. Load it "
                    "onto that base, or pass force=True to use it all the same."
                )
            notes.append(f"{name}: {told}")
    tensors = read_tensors(folder / TENSORS)
    made = build_operators(skeleton, tensors, bases)
    also = {name: tensors.get(f"also/{name}") for name in held.also}
    if lost := [name for name, value in also.items() if value is None]:
        raise FormatError(f"{folder / TENSORS} lacks the values of {lost[0]}")
    return held, made, {n: value for n, value in also.items() if value is not None}, notes
