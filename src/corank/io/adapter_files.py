"""`corank.save_adapter` and `corank.load_adapter`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..adapters import activate
from ..adapters.own import keep, switch
from ..adapters.record import Adapter, adapters, find_adapter, is_json
from ..engine.adapting import put
from ..engine.transaction import unchanged_on_error
from ..errors import FormatError, SiteError
from ..models import read
from ..operators import Operator
from .adapter_record import restored_adapter
from .adapter_skeleton import (
    SKELETON,
    TENSORS,
    base_at,
    build_operators,
    operators_of,
    read_skeleton,
    read_tensors,
    write_skeleton,
)
from .attach import attach
from .fingerprint import fingerprint
from .folder import replace_folder
from .hot_swap import swap_values
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
        held, made, also, notes = _read_own(model, folder, force)
    elif (folder / CONFIG).is_file():
        held, made, also, notes = read_peft(model, folder)
    else:
        raise FormatError(f"{folder} has neither {SKELETON} nor {CONFIG}: no saved adapter")
    held.name = name if name is not None else held.name
    _require_parameters(model, also)
    if swap:
        _swap(model, held, made, also)
    else:
        _add(model, held, made, also)
    return LoadedAdapter(held.name, held.method, list(held.sites), notes)


def _left_out(held: Adapter) -> list[str]:
    lost = [name for name, value in held.parameters.items() if not is_json(value)]
    return [f"parameters that are no JSON values are not in the folder: {lost}"] if lost else []


Read = tuple[Adapter, dict[str, Operator], dict[str, Tensor], list[str]]


def _read_own(model: nn.Module, folder: Path, force: bool) -> Read:
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


def _add(
    model: nn.Module, held: Adapter, made: dict[str, Operator], also: Mapping[str, Tensor]
) -> None:
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


def _swap(
    model: nn.Module, held: Adapter, made: dict[str, Operator], also: Mapping[str, Tensor]
) -> None:
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


def _require_parameters(model: nn.Module, also: Mapping[str, Tensor]) -> None:
    known = dict(model.named_parameters(remove_duplicate=False))
    for name, value in also.items():
        if name not in known or known[name].shape != value.shape:
            shape = tuple(known[name].shape) if name in known else "nothing"
            raise FormatError(f"{name} is {tuple(value.shape)} in the folder, {shape} in the model")
