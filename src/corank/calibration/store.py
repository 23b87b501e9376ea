"""Statistics in a safetensors file, tied to the model that they were collected on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import FormatError
from ..models import Site
from .states import STATE_NEEDS

_FORMAT, _VERSION = "corank-statistics", 1
_SAMPLED = 64  # values of each tensor that enter the fingerprint


def fingerprint(model: nn.Module) -> str:
    """A hash of the names, shapes, dtypes and 64 evenly spread values of all of a model's tensors.

    It is there to notice a mistake, not to withstand an attack.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        flat = tensor.detach().flatten()
        if flat.numel() and not flat.is_meta:
            at = torch.linspace(0, flat.numel() - 1, min(_SAMPLED, flat.numel())).long()
            digest.update(flat[at.to(flat.device)].double().cpu().numpy().tobytes())
    return digest.hexdigest()


def save_statistics(model: nn.Module, sites: Sequence[Site], path: str | os.PathLike[str]) -> None:
    """Write the statistics of `sites`, a shared tensor once. The file appears whole or not at all.

    model: the model they were collected on, as it was then; `load_statistics` checks it.
    """
    tensors: dict[str, Tensor] = {}
    keys: dict[int, str] = {}
    table: dict[str, dict[str, Any]] = {}
    for site in sites:
        entry = table[site.name] = {}
        for name, value in site.stats.items():
            if not isinstance(value, Tensor):
                entry[name] = float(value)
                continue
            key = keys.setdefault(id(value), f"{site.name}:{name}")
            tensors[key] = value.detach().contiguous()
            entry[name] = key
    header = {"format": _FORMAT, "version": str(_VERSION), "model": fingerprint(model)}
    header["sites"] = json.dumps(table)
    target = Path(path)
    fresh = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        save_file(tensors, fresh, metadata=header)
        os.replace(fresh, target)
    finally:
        fresh.unlink(missing_ok=True)


def load_statistics(
    model: nn.Module | None,
    sites: Sequence[Site],
    path: str | os.PathLike[str],
    needs: Iterable[str] | None = None,
) -> None:
    """Fill `site.stats` of every site from a file of `save_statistics`; what was shared is again.

    needs: what must be there, and all that is read besides "tokens"; None reads everything.
    model: the one that they are to be of; None does not check.

    Raises: FormatError for a file that is not one, is damaged or from a newer version, was
        collected on another model, or lacks a site or a need. No site is changed then.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise FormatError(f"{path} does not hold statistics of corank")
            if int(header["version"]) > _VERSION:
                raise FormatError(f"{path} is from a newer version of corank: upgrade to read it")
            if model is not None and header["model"] != fingerprint(model):
                raise FormatError(
                    f"{path} was collected on another model, or before this one was changed: "
                    "collect again"
                )
            table = json.loads(header["sites"])
            if missing := [site.name for site in sites if site.name not in table]:
                raise FormatError(f"{path} has no statistics of {missing[0]}: collect again")
            if needs is not None:
                table = {s.name: _only(set(needs), s, table[s.name]) for s in sites}
            wanted = {v for s in sites for v in table[s.name].values() if isinstance(v, str)}
            tensors = {key: file.get_tensor(key) for key in wanted}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path} cannot be read: {error}") from error
    for site in sites:
        entry = table[site.name].items()
        site.stats.update({n: tensors[v] if isinstance(v, str) else float(v) for n, v in entry})


def _only(needs: set[str], site: Site, entry: dict[str, Any]) -> dict[str, Any]:
    """The needs of a site's entry. Raises FormatError where one is missing."""
    absent = {"gram", "output_gram"} if site.kind == "embedding" else {"row_counts"}
    if site.mixer is None:
        absent |= STATE_NEEDS
    if missing := sorted(needs - absent - entry.keys()):
        raise FormatError(
            f"the statistics lack {missing[0]!r} of {site.where}: collect again for this method, "
            "into another file"
        )
    return {k: v for k, v in entry.items() if k in needs | {"tokens", "row_counts"}}
