"""A smaller twin of a model, without some of its inner channels, that remembers which it kept."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import SiteError
from ..models import Site, channels, find_sites
from ..models.blocks import layer_indices

#: For each pruned weight the rows and the columns that are left; None: all.
Kept = dict[str, tuple[Tensor | None, Tensor | None]]


@dataclass(frozen=True)
class Pruned:
    """The pruned model, and where its weights' rows and columns stood in the large one."""

    model: nn.Module
    kept: Kept


@torch.no_grad()
def prune_channels(
    model: nn.Module,
    ratio: float,
    *,
    select: Literal["random", "weight"] = "random",
    head_size: int | None = None,
    skip_first: int = 0,
    skip_last: int = 0,
    seed: int = 0,
) -> Pruned:
    """A copy of `model` with a share of the inner channels of its feed-forward parts cut out.

    ratio: share to remove (above 0, below 1). select: those to remove, at random or of the least
    weight norm. head_size: cut whole attention heads of this size too, by groups that share keys
    and values. skip_first, skip_last: layers left whole at either end. The model is unchanged.
    Raises ValueError where nothing can be cut, and SiteError for weights of another kind.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio={ratio} is above 0 and below 1")
    sites = [s for s in find_sites(model, seed=seed) if s.layer is not None]
    depth = len(set(layer_indices(model).values()))
    sites = [s for s in sites if skip_first <= (s.layer or 0) < depth - skip_last]
    kept: Kept = {}
    for one in channels(sites):
        if one.part == "mlp" and one.makers and one.readers:
            index = _left(model, one.makers, one.readers, one.width, 1, ratio, select)
            kept |= {site.name: (one.rows(site, index), None) for site in one.makers}
            kept |= {site.name: (None, index) for site in one.readers}
    if head_size is not None:
        for q, k, v, o in _attentions(sites):
            kept |= _heads(model, q, k, v, o, head_size, ratio, select)
    if not kept:
        raise ValueError("no feed-forward part with a known up and down projection was found")
    small = copy.deepcopy(model)
    for name, (rows, columns) in kept.items():
        _cut(small, name, rows, columns)
    return Pruned(small, kept)


def _heads(
    model: nn.Module,
    q: Site,
    k: Site,
    v: Site,
    o: Site,
    size: int,
    ratio: float,
    select: str,
) -> Kept:
    if v.shape[0] % size or o.shape[1] % v.shape[0] or q.shape[0] != o.shape[1]:
        raise SiteError(
            o.where,
            f"heads of {size} do not divide its projections",
            "Give the size of the model's attention heads, or leave attention whole.",
        )
    group = o.shape[1] // v.shape[0]
    few = _left(model, (v,), (), v.shape[0], size, ratio, select)
    heads = few[::size] // size
    queries = heads[:, None] * group * size + torch.arange(group * size)
    many = queries.flatten()
    return {q.name: (many, None), k.name: (few, None), v.name: (few, None), o.name: (None, many)}


def _attentions(sites: Sequence[Site]) -> list[tuple[Site, Site, Site, Site]]:
    found: dict[str, dict[str, Site]] = {}
    for site in sites:
        if site.role in ("q", "k", "v", "o"):
            found.setdefault(site.name.rpartition(".")[0], {})[site.role] = site
    return [(g["q"], g["k"], g["v"], g["o"]) for g in found.values() if len(g) == 4]


def _left(
    model: nn.Module,
    makers: Sequence[Site],
    readers: Sequence[Site],
    width: int,
    size: int,
    ratio: float,
    select: str,
) -> Tensor:
    """The channels that stay, ascending; `size` neighbours go together."""
    count = width // size - int(ratio * (width // size))
    if select == "random":
        first = (*makers, *readers)[0]
        digest = hashlib.sha256(f"{first.seed}:{first.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        order = torch.randperm(width // size, generator=generator)
    else:
        norms = torch.zeros(width, dtype=torch.float64)
        for site in makers:
            squares = _weight(model, site.name).double().square().sum(1).cpu()
            norms += squares.view(-1, width).sum(0)
        for site in readers:
            norms += _weight(model, site.name).double().square().sum(0).cpu()
        order = norms.view(-1, size).sum(1).argsort(descending=True, stable=True)
    units = order[:count].sort().values
    return (units[:, None] * size + torch.arange(size)).flatten()


def _weight(model: nn.Module, name: str) -> Tensor:
    return model.get_submodule(name).get_parameter("weight")


def _cut(small: nn.Module, name: str, rows: Tensor | None, columns: Tensor | None) -> None:
    module = small.get_submodule(name)
    if type(module) is not nn.Linear:
        raise SiteError(name, f"is a {type(module).__name__}", "Prune plain nn.Linear weights.")
    weight, bias = module.weight.data, None if module.bias is None else module.bias.data
    if rows is not None:
        rows = rows.to(weight.device)
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if columns is not None:
        weight = weight[:, columns.to(weight.device)]
    module.weight = nn.Parameter(weight.contiguous(), module.weight.requires_grad)
    if bias is not None:
        module.bias = nn.Parameter(bias, module.bias.requires_grad)
    module.out_features, module.in_features = weight.shape
