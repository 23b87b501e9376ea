"""Modules that no library but ours knows how to save: tensors, and a skeleton beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import FormatError
from .adapter_record import restore_records
from .cutting import cut_empty
from .factorized_record import restore_factorized
from .rebuilding import join, rebuild
from .record import read_header, require_sealed, seal, verify
from .shards import ShardWriter
from .skeletons import describe_model, unshared_state

SKELETON = "corank.json"


def save_plain(model: nn.Module, folder: Path, shard_bytes: int) -> None:
    """Write the tensors, each once, and the skeleton into an empty folder."""
    writer = ShardWriter(folder, shard_bytes)
    for name, tensor in unshared_state(model).items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} in the state dict is a {type(tensor).__name__}, not a tensor")
        writer.add(name, tensor)
    skeleton = seal(describe_model(model) | {"files": writer.finish()})
    text = json.dumps(skeleton, indent=2, sort_keys=True) + "\n"
    (folder / SKELETON).write_text(text, encoding="utf-8")


def load_plain(
    folder: Path, builder: Callable[[], nn.Module], size: str | None = None
) -> nn.Module:
    """The module that `builder` makes, with the operators and values of the folder.

    size: of the whole, for weights saved in terms; those that are dropped are not read.
    """
    skeleton = read_skeleton(folder)
    files = [folder / name for name in skeleton["files"]]
    verify(files, skeleton["files"])
    model = builder()
    if not isinstance(model, nn.Module):
        raise TypeError(f"builder must return an nn.Module, not a {type(model).__name__}")
    rebuild(model, skeleton, _same)
    dropped: set[str] = set()
    if size is not None:
        skeleton, dropped = cut_empty(model, skeleton, _same, size)
    values = _read(files, dropped)
    _require_fit(model, values, skeleton["shared"])
    for alias, source in skeleton["shared"].items():
        values[alias] = values[source]
    model.load_state_dict(values, strict=True, assign=True)
    join(model, skeleton, _same)
    restore_records(model, skeleton.get("adapters", ()))
    restore_factorized(model, skeleton.get("factorized", ()))
    return model


def read_skeleton(folder: Path) -> dict[str, Any]:
    """The sealed skeleton of a folder. Raises FormatError if it is not ours, edited or newer."""
    file = folder / SKELETON
    try:
        skeleton = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{file} is truncated or is no JSON: {error}") from error
    if not isinstance(skeleton, dict):
        raise FormatError(f"{file} does not hold a skeleton")
    require_sealed(skeleton, str(file))
    return skeleton


def _read(files: list[Path], dropped: Collection[str]) -> dict[str, Tensor]:
    from safetensors import safe_open

    values: dict[str, Tensor] = {}
    for file in files:
        wanted = [name for name in read_header(file) if name not in dropped]
        # In memory of their own: a product's last bits can depend on where its factors lie, and
        # training that goes on from a folder must not.
        with safe_open(file, "pt") as held:
            values |= {name: held.get_tensor(name).clone() for name in wanted}
    return values


def _require_fit(model: nn.Module, values: Mapping[str, Tensor], shared: Mapping[str, str]) -> None:
    wanted = {name: t for name, t in model.state_dict().items() if name not in shared}
    problems = [f"{name} is not in the files" for name in wanted if name not in values]
    problems += [f"{name} is not in the builder's module" for name in values if name not in wanted]
    problems += [
        f"{name} is {tuple(values[name].shape)} in the files and {tuple(t.shape)} in the module"
        for name, t in wanted.items()
        if name in values and t.shape != values[name].shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise FormatError(f"the builder makes another module: {'; '.join(problems[:3])}{more}")


def _same(path: str) -> str:
    return path
