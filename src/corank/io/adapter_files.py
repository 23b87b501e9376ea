"""`corank.save_adapter` and `corank.load_adapter`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ..adapters.record import Adapter, find_adapter, is_json
from ..errors import FormatError
from .adapter_placing import place_adapter, require_parameters, swap_adapter
from .adapter_rebuilding import read_corank
from .adapter_skeleton import (
    SKELETON,
    TENSORS,
    write_skeleton,
)
from .folder import replace_folder
from .peft_export import write_peft
from .peft_import import read_peft
from .peft_names import CONFIG, WEIGHTS

#: What a save of an adapter replaces in its folder, and what marks a folder as one.
_FILES = (SKELETON, TENSORS, CONFIG, WEIGHTS, "adapter_model.bin")
_MARKS = (SKELETON, CONFIG)


@dataclass(frozen=True)
class SavedAdapter:
    """What was written: bytes, and for "peft" each site's rank and relative error of W' - W."""

    bytes: int
    ranks: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def error(self) -> float:
        """The largest of the errors; 0 where nothing was approximated."""
        return max(self.errors.values(), default=0.0)


@dataclass(frozen=True)
class LoadedAdapter:
    """What was loaded: its name on the model, its method, its sites, and what is to be known."""

    name: str
    method: str
    sites: list[str]
    notes: list[str] = field(default_factory=list)


@torch.no_grad()
def save_adapter(
    model: nn.Module,
    path: str | os.PathLike[str],
    name: str = "default",
    format: Literal["corank", "peft"] = "corank",
    *,
    rank: int | None = None,
    base: str | None = None,
    store_random: bool = False,
) -> SavedAdapter:
    """Write one adapter of a model, replacing the folder `path` whole or not at all.

    format: "corank" keeps the operators as they are, for `corank.load_adapter`, bit for bit.
        "peft" writes LoRA matrices that `peft.PeftModel.from_pretrained` and what builds on it
        read; exact wherever the update is of low rank, DoRA as DoRA, and by a truncated SVD of
        W' - W elsewhere.
    rank: of that SVD; None for as many as W' - W has, so that nothing is lost.
    base: what a PEFT folder names as its base model; None for the model's own name.
    store_random: of the "corank" format: store frozen random matrices too. Else their seed is, and
        loading draws them again and checks that they are the same.

    Other files of the folder stay. Raises ValueError for an unknown name or format, FormatError
    for a `path` that holds something else, OSError when the disk is full.
    """
    held = find_adapter(model, name)
    if format not in ("corank", "peft"):
        raise ValueError(f"format must be 'corank' or 'peft', got {format!r}")
    if rank is not None and (format != "peft" or rank < 1):
        raise ValueError(f"rank={rank!r} is for format='peft', and is at least 1")
    with replace_folder(path, _MARKS, _FILES, "an adapter") as folder:
        if format == "peft":
            ranks, errors, notes = write_peft(model, held, folder, rank, base)
        else:
            write_skeleton(model, held, folder, store_random)
            ranks, errors, notes = {}, {}, _left_out(held)
        size = sum(file.stat().st_size for file in folder.iterdir())
    return SavedAdapter(size, ranks, errors, notes)


@torch.no_grad()
def load_adapter(
    model: nn.Module,
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    swap: bool = False,
    force: bool = False,
) -> LoadedAdapter:
    """Put the adapter of a folder, of corank's or of PEFT's, beside the weights of `model`.

    It acts and trains as after `corank.adapt`; nothing is decomposed, and nothing is drawn but the
    frozen random matrices that the file holds a seed and a checksum of.

    name: on this model; None for the name it was saved under ("default" for PEFT's).
    swap: copy the values into the leaves of the adapter of that name, which must be of the same
        structure and of no smaller rank; a compiled model goes on without a new graph.
    force: load an adapter whose meaning depends on the weights that it was made for (an
        orthogonal or normalised one, or one that starts from their singular vectors) onto others.

    The model is unchanged where this raises: FormatError for a folder that is damaged, edited,
    newer, or of another base; SiteError for a weight that it does not fit; ValueError for a name.
    """
    folder = Path(path)
    if (folder / SKELETON).is_file():
        held, made, also, notes = read_corank(model, folder, force)
    elif (folder / CONFIG).is_file():
        held, made, also, notes = read_peft(model, folder)
    else:
        raise FormatError(f"{folder} has neither {SKELETON} nor {CONFIG}: no saved adapter")
    held.name = name if name is not None else held.name
    require_parameters(model, also)
    if swap:
        swap_adapter(model, held, made, also)
    else:
        place_adapter(model, held, made, also)
    return LoadedAdapter(held.name, held.method, list(held.sites), notes)


def _left_out(held: Adapter) -> list[str]:
    lost = [name for name, value in held.parameters.items() if not is_json(value)]
    return [f"parameters that are no JSON values are not in the folder: {lost}"] if lost else []
