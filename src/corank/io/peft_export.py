"""Writing an adapter as the LoRA of PEFT's folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.record import Adapter
from ..errors import SiteError
from ..layers import Convolution, Embedding, Experts
from ..linalg import truncated_svd
from ..models import Site, require_one_matrix
from ..models.kinds import is_layer
from ..operators import Operator, RowNormalised, low_rank_update
from .adapter_skeleton import operators_of, own_values
from .peft_config import peft_config
from .peft_names import CONFIG, PREFIX, WEIGHTS, expert_prefixes


@dataclass(frozen=True)
class _Update:
    """W' - W as b a, with the row lengths of W' where it is DoRA's."""

    site: Site
    b: Tensor
    a: Tensor
    m: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]


Written = tuple[dict[str, int], dict[str, float], list[str]]


def write_peft(
    model: nn.Module, held: Adapter, folder: Path, rank: int | None, base: str | None
) -> Written:
    """Write an adapter into an empty folder; returns ranks and errors by site, and notes.

    The scale is in the factors, so alpha is the rank everywhere. Raises SiteError for a weight
    that PEFT cannot adapt as corank does.
    """
    from safetensors.torch import save_file

    there = operators_of(model, held)
    for site, _, op in there.values():
        require_one_matrix(site.where, op)
    dora = all(_is_dora(model, site, op) for site, _, op in there.values())
    updates, errors, notes = {}, {}, []
    for name, (site, weight, op) in there.items():
        inner, m = (op.operator, op.m) if dora and isinstance(op, RowNormalised) else (op, None)
        pair = low_rank_update(inner)
        if pair is None:
            pair, errors[name] = _truncated(site, op, weight.base, rank)
        updates[name] = _Update(site, *pair, m)
    if errors:
        notes.append(f"{len(errors)} updates are not of low rank by structure: taken from an SVD")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    parameters = _write_experts(model, updates, tensors, ranks)
    for update in updates.values():
        if update.site.kind != "expert":
            for path in (update.site.name, *update.site.tied):
                tensors |= _tensors(model, path, update)
                ranks[path] = update.rank
    named = getattr(getattr(model, "config", None), "name_or_path", None)
    config = peft_config(model, ranks, parameters, dora, base or named or None)
    tensors |= _own(model, held, config, notes)
    whole = {key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    return {name: update.rank for name, update in updates.items()}, errors, notes


def _is_dora(model: nn.Module, site: Site, op: Operator) -> bool:
    places = [model.get_submodule(path) for path in (site.path, *site.tied)]
    rows = site.kind in ("linear", "conv1d_transposed", "conv")
    rows = rows and not any(isinstance(place, Embedding) for place in places)
    return rows and isinstance(op, RowNormalised) and low_rank_update(op.operator) is not None


def _truncated(
    site: Site, op: Operator, base: Operator, rank: int | None
) -> tuple[tuple[Tensor, Tensor], float]:
    """The best b a for W' - W, of its numerical rank if none is asked, and its relative error."""
    weight = base.dense().to(op.dtype)
    update = op.dense() - weight
    size = torch.linalg.vector_norm(update)
    if rank is None:
        values = torch.linalg.svdvals(update)
        noise = torch.finfo(update.dtype).eps * torch.linalg.vector_norm(weight)
        rank = int((values > noise).sum())
    rank = max(1, min(rank, *site.shape))
    u, s, vh, _ = truncated_svd(update, rank, generator=site.generator())
    b, a = u * s.sqrt(), s.sqrt()[:, None] * vh
    error = torch.linalg.vector_norm(update - b @ a) / size if size > 0 else size
    return (b, a), float(error)


def _tensors(model: nn.Module, path: str, update: _Update) -> dict[str, Tensor]:
    module, b, a, m = model.get_submodule(path), update.b, update.a, update.m
    key = f"{PREFIX}{path}"
    if isinstance(module, Embedding):
        return {f"{key}.lora_embedding_A": b.mT, f"{key}.lora_embedding_B": a.mT}
    if isinstance(module, Convolution):
        geometry = module.geometry
        if set(geometry.dilation) != {1} or geometry.padding_mode != "zeros":
            raise SiteError(
                update.site.where,
                "PEFT's LoRA of a convolution ignores dilation and padding modes",
                "Save in corank's format, or merge the adapter.",
            )
        ones = [1] * len(geometry.kernel_size)
        a, b = a.reshape(len(a), -1, *geometry.kernel_size), b.reshape(*b.shape, *ones)
        m = None if m is None else m.reshape(1, -1, *ones)
    found = {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    return found if m is None else found | {f"{key}.lora_magnitude_vector": m}


def _write_experts(
    model: nn.Module,
    updates: Mapping[str, _Update],
    tensors: dict[str, Tensor],
    ranks: dict[str, int],
) -> list[str]:
    """The fused experts' tensors, as PEFT's wrapper of a parameter stacks them, and their names.

    A holds the experts one after another, (experts * rank, in); B has them fastest, (out, rank *
    experts). An expert of smaller rank, or without an adapter, is filled up with zeros.
    """
    stacks: dict[str, dict[str, dict[int, _Update]]] = {}
    for update in updates.values():
        if update.site.kind == "expert":
            path, projection, number = update.site.expert
            stacks.setdefault(path, {}).setdefault(projection, {})[number] = update
    names = []
    for path, projections in stacks.items():
        layer = model.get_submodule(path)
        assert isinstance(layer, Experts)
        prefixes = expert_prefixes(path, list(projections))
        for projection, experts in projections.items():
            b, a = _stacked(experts, layer.num_experts)
            key, name = f"{PREFIX}{prefixes[projection]}", f"{path}.{projection}"
            tensors[f"{key}.lora_A.weight"] = a.flatten(0, 1)
            tensors[f"{key}.lora_B.weight"] = b.permute(1, 2, 0).flatten(1)
            names.append(name)
            ranks[name] = a.shape[1]
    return names


def _stacked(experts: Mapping[int, _Update], count: int) -> tuple[Tensor, Tensor]:
    """(experts, out, rank) and (experts, rank, in)."""
    some = next(iter(experts.values()))
    rank = max(update.rank for update in experts.values())
    b = some.b.new_zeros(count, some.b.shape[0], rank)
    a = some.a.new_zeros(count, rank, some.a.shape[1])
    for number, update in experts.items():
        b[number, :, : update.rank], a[number, : update.rank] = update.b, update.a
    return b, a


def _own(
    model: nn.Module, held: Adapter, config: dict[str, Any], notes: list[str]
) -> dict[str, Tensor]:
    """The model's own parameters that train with the adapter: whole modules as modules_to_save,
    biases of adapted weights and others under the names that they have in PEFT's model."""
    values = own_values(model, held)
    tensors: dict[str, Tensor] = {}
    modules: list[str] = []
    for name, value in values.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if is_layer(module):
            path = f"{path}.base_layer"
        elif all(f"{path}.{n}" in values for n, _ in module.named_parameters()):
            modules.append(path)
        tensors[f"{PREFIX}{path}.{leaf}"] = value
    if len(modules) < len(values):
        notes.append("parameters of the model itself are in the folder; PEFT overwrites its own")
    if modules:
        config["modules_to_save"] = sorted(set(modules))
    return tensors
