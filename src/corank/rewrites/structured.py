"""Training chosen rows and columns, the same inner channels in all weights that share them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..errors import SiteError
from ..models import Channels, Site, channels
from ..operators import Dense, Operator, Product, Select, transpose
from .adapting import zeros

SelectionRule = Literal["random", "weight", "activation", "gradient"]
#: What each rule reads of a site.
RULES = {"random": None, "weight": None, "activation": "square_mean", "gradient": "gradient"}


def chosen_delta(op: Operator, site: Site) -> Operator:
    """The trainable rows or columns that `choose` left for this site, zero at the start."""
    rows, index = site.pool[f"channels of {site.name}"]
    picks = Select(index.to(op.device), site.shape[0] if rows else site.shape[1])
    if rows:
        return Product(transpose(picks), Dense(zeros(op, len(index), site.shape[1])))
    return Product(Dense(zeros(op, site.shape[0], len(index))), picks)


def choose(
    sites: Sequence[Site],
    ops: Sequence[Operator],
    ratio: float,
    rule: SelectionRule,
    largest: bool,
    head_size: int,
) -> list[Site]:
    """Leave every site's channels in its pool; returns the sites that have any.

    Groups of one kind and width compete: a layer may get more of them than another.
    """
    operators = {site.name: op for site, op in zip(sites, ops, strict=True)}
    for key, group in grouped(sites).items():
        size = unit(group[0], head_size)
        per = group[0].width // size
        if rule == "random":
            digest = hashlib.sha256(f"{group[0].seed}:{key}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            order = torch.randperm(per * len(group), generator=generator)
        else:
            scores = torch.cat([_scores(g, operators, rule) for g in group])
            order = scores.view(-1, size).sum(1).argsort(descending=largest, stable=True).cpu()
        picked = order[: quota(group, ratio, head_size)].sort().values
        for number, one in enumerate(group):
            units = picked[picked // per == number] % per
            index = (units[:, None] * size + torch.arange(size)).flatten()
            for site in one.makers:
                site.pool[f"channels of {site.name}"] = (True, one.rows(site, index))
            for site in one.readers:
                site.pool[f"channels of {site.name}"] = (False, index)
    return [site for site in sites if len(site.pool[f"channels of {site.name}"][1])]


def trained(sites: Sequence[Site], ratio: float, head_size: int) -> int:
    """How many numbers train, from shapes alone where the layers are alike."""
    total = 0
    for group in grouped(sites).values():
        first = group[0]
        each = quota(group, ratio, head_size) * unit(first, head_size)
        made = sum(each * len(first.rows(s, torch.zeros(1))) * s.shape[1] for s in first.makers)
        total += int(made + sum(each * s.shape[0] for s in first.readers))
    return total


def grouped(sites: Sequence[Site]) -> dict[tuple[object, ...], list[Channels]]:
    """Groups of channels that compete: of one part of the model, and of the same shapes."""
    found: dict[tuple[object, ...], list[Channels]] = defaultdict(list)
    for one in channels(sites):
        shapes = tuple((s.role, s.shape) for s in (*one.makers, *one.readers))
        found[one.part, one.width, shapes].append(one)
    return found


def quota(group: Sequence[Channels], ratio: float, head_size: int) -> int:
    """Units to choose among all of a kind: at least one."""
    per = group[0].width // unit(group[0], head_size)
    return max(1, int(per * len(group) * ratio))


def unit(one: Channels, head_size: int) -> int:
    """How many channels are chosen together."""
    if one.part != "attention":
        return 1
    if one.width % head_size:
        where = (*one.makers, *one.readers)[0].where
        raise SiteError(
            where,
            f"head_size={head_size} does not divide its {one.width} channels",
            "Give the size of the model's attention heads.",
        )
    return head_size


def _scores(one: Channels, operators: dict[str, Operator], rule: SelectionRule) -> Tensor:
    """The squared norm of each channel's weights, gradients or activations, (width,)."""
    total = torch.zeros(one.width, dtype=torch.float64)
    if rule == "activation":
        if not one.readers:
            raise SiteError(
                one.makers[0].where,
                "how active its outputs are is measured where they are read",
                "Target the projection that reads them too, or select by weight.",
            )
        return total + one.readers[0].stat("square_mean").cpu()
    for site in (*one.makers, *one.readers):
        matrix = operators[site.name].dense() if rule == "weight" else site.stat("gradient")
        squares = matrix.double().square().cpu()
        if site in one.readers:
            total += squares.sum(0)
        else:
            total += squares.sum(1).view(-1, one.width).sum(0)
    return total
