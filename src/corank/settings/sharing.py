"""Blocks that take other blocks' weights, with low-rank adapters for the difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.record import Adapter, adapters
from ..engine.adapting import add_adapter
from ..engine.transaction import unchanged_on_error
from ..errors import SiteError
from ..io import attach
from ..linalg import truncated_svd
from ..models import Site, find_sites, install, read, stacks
from ..operators import Dense, LowRank, Operator, Standardised, Sum
from ..registry import Adaptation
from ..rewrites import Rewrite
from ..rewrites.adapting import leaf_dtype, trains
from .influence import block_influence

Factors = tuple[Tensor, Tensor]  # u s (out, r), vh (r, in)


@torch.no_grad()
def flexigpt(
    model: nn.Module,
    batches: Iterable[Any],
    count: int,
    *,
    rank: int = 256,
    gamma: float = 1e-2,
    name: str = "default",
    seed: int = 0,
) -> dict[str, str]:
    """Replace the `count` blocks of least influence by others' weights and low-rank adapters.

    Each takes all parameters of the remaining block that is nearest to it after a rank reduction,
    shared with it, an adapter that starts as the difference of their weights to `rank`, and a norm
    of its attention's and feed-forward's outputs whose scale starts at `gamma`. batches: model
    inputs that influence is measured on. The adapter `name` is what trains. Returns the path of
    each replaced block -> that of the block it shares. Raises ValueError where there are not so
    many blocks, and SiteError for weights that cannot be shared.
    """
    if name in adapters(model):
        raise ValueError(f"the model already carries an adapter {name!r}: delete it first")
    if len(stacks(model)) != 1:
        raise ValueError(f"blocks are shared within one stack; the model has {len(stacks(model))}")
    influence = block_influence(model, batches)
    if not 1 <= count < len(influence):
        raise ValueError(f"count={count} is outside 1 to {len(influence) - 1}")
    replaced = sorted(influence, key=lambda path: influence[path])[:count]
    kept = [path for path in influence if path not in replaced]
    sites = {site.name: site for site in find_sites(model, seed=seed)}
    within = {path: _within(sites.values(), path) for path in influence}
    _require_alike(within)
    reduced = {
        path: {end: _reduced(model, site, rank) for end, site in parts.items()}
        for path, parts in within.items()
    }
    partners = {
        path: min(kept, key=lambda other: distance(reduced[path], reduced[other], rank))
        for path in sorted(replaced, key=list(influence).index)
    }
    with unchanged_on_error(model, list(sites.values())):
        starts: dict[str, LowRank] = {}
        for path, other in partners.items():
            for end, site in within[path].items():
                starts[site.name] = _difference(model, site, within[other][end], rank)
        own = [site for path in partners for site in within[path].values()]
        for path, other in partners.items():
            _share(model, within[path], within[other])
        _adapt(model, own, starts, gamma, rank, name, seed)
        for path, other in partners.items():
            _share_rest(model.get_submodule(path), model.get_submodule(other), within[path])
    attach(model)
    return partners


def distance(one: Mapping[str, Factors], two: Mapping[str, Factors], rank: int) -> float:
    """How far two blocks' weights, of rank `rank` each, are from differing by that rank: the root
    of the sum over weights of the squared Frobenius norm that is left."""
    total = 0.0
    for end, (left, right) in one.items():
        other_left, other_right = two[end]
        _, r_left = torch.linalg.qr(torch.cat([left, -other_left], 1))
        _, r_right = torch.linalg.qr(torch.cat([right, other_right]).mT)
        values = torch.linalg.svdvals(r_left @ r_right.mT)
        total += float(values[rank:].square().sum())
    return total**0.5


def _adapt(
    model: nn.Module,
    sites: Sequence[Site],
    starts: Mapping[str, LowRank],
    gamma: float,
    rank: int,
    name: str,
    seed: int,
) -> None:
    def rewrite(op: Operator, site: Site) -> Operator:
        weight = Sum(op, starts[site.name])
        if site.role not in ("o", "down"):
            return weight
        start = torch.full((site.shape[0],), gamma, dtype=leaf_dtype(op), device=op.device)
        return Standardised(weight, trains(start))

    def count(sites: Sequence[Site]) -> int:
        normed = sum(s.shape[0] for s in sites if s.role in ("o", "down"))
        return normed + sum(min(rank, *s.shape) * sum(s.shape) for s in sites)

    recipe = Adaptation(Rewrite(rewrite), count)
    held = Adapter(
        name, "flexigpt", {"rank": rank, "gamma": gamma}, [s.name for s in sites], seed,
        sites={s.name: s for s in sites}, recipe=recipe,
    )  # fmt: skip
    names = [site.name for site in sites]
    add_adapter(model, held, {s.name: read(model, s) for s in sites}, dict.fromkeys(names, recipe))


def _share(model: nn.Module, own: Mapping[str, Site], others: Mapping[str, Site]) -> None:
    """One Dense for both blocks' weights: the other's, which stays where it is."""
    for end, site in own.items():
        shared = read(model, others[end])
        install(model, others[end], shared)
        install(model, site, shared)


def _share_rest(block: nn.Module, other: nn.Module, within: Mapping[str, Site]) -> None:
    """The other block's norms and biases too, the same parameters."""
    theirs = dict(other.named_modules())
    for path, module in block.named_modules():
        if any(path.startswith(f"{end}.") for end in within):
            continue  # operators have been shared already
        for leaf in module._parameters:
            module._parameters[leaf] = theirs[path]._parameters[leaf]


def _within(sites: Iterable[Site], path: str) -> dict[str, Site]:
    start = path + "."
    return {s.name.removeprefix(start): s for s in sites if s.name.startswith(start)}


def _require_alike(within: Mapping[str, Mapping[str, Site]]) -> None:
    first = next(iter(within.values()))
    for path, parts in within.items():
        shapes = {end: site.shape for end, site in parts.items()}
        if not shapes or shapes != {end: site.shape for end, site in first.items()}:
            raise SiteError(path, "is not like the other blocks", "Share among equal blocks only.")


def _reduced(model: nn.Module, site: Site, rank: int) -> Factors:
    op = read(model, site)
    if type(op) is not Dense or site.tied:
        raise SiteError(site.where, "is no plain weight of its own", "Share plain weights only.")
    u, s, vh, _ = truncated_svd(op.weight.float(), min(rank, *site.shape))
    return u * s, vh


def _difference(model: nn.Module, site: Site, other: Site, rank: int) -> LowRank:
    op = read(model, site)
    dtype = leaf_dtype(op)
    apart = op.dense().to(dtype) - read(model, other).dense().to(dtype)
    u, s, vh, _ = truncated_svd(apart, min(rank, *site.shape), generator=site.generator())
    return LowRank(trains(u * s), trains(vh))
