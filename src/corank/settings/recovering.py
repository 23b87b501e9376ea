"""Adapters of a pruned model put beside the large one's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..adapters.record import Adapter, adapted, find_adapter
from ..engine.adapting import add_adapter
from ..errors import SiteError
from ..io import attach
from ..models import Site, find_sites, read
from ..operators import (
    LowRank,
    Operator,
    Product,
    Scaled,
    Select,
    Sum,
    additions,
    build,
    describe,
    transpose,
)
from ..registry import Adaptation
from ..rewrites import Rewrite
from .pruning import Pruned


@torch.no_grad()
def loram(large: nn.Module, small: Pruned, name: str = "default") -> None:
    """Recover an adapter that was trained on a pruned model for the large one: train small, infer
    large.

    Its rows and columns go where the pruned weights' stood, with zeros in between. `small` is from
    corank.settings.prune_channels(large, ...), adapted and trained. The large model gets an
    adapter of that name, and is untouched on an error. Raises ValueError where it already has one,
    and SiteError for adapters that do more than add to a weight.
    """
    held = find_adapter(small.model, name)
    if name in vars(large).get("corank_adapters", {}):
        raise ValueError(f"the large model already carries an adapter {name!r}: delete it first")
    weights = adapted(small.model)
    sites = find_sites(large, list(held.sites), held.seed)
    grown = {site.name: _grown(weights[site.name].adapter(name), site, small) for site in sites}

    def rewrite(op: Operator, site: Site) -> Operator:
        return Sum(op, *grown[site.name])

    def count(sites: Sequence[Site]) -> int:
        return sum(term.numel() for site in sites for term in grown[site.name])

    recipe = Adaptation(Rewrite(rewrite), count)
    record = Adapter(
        name, held.method, dict(held.parameters), list(held.sites), held.seed,
        sites={site.name: site for site in sites}, recipe=recipe,
    )  # fmt: skip
    add_adapter(
        large, record, {s.name: read(large, s) for s in sites}, {s.name: recipe for s in sites}
    )
    attach(large)


def _grown(op: Operator, site: Site, small: Pruned) -> list[Operator]:
    terms = additions(op)
    if terms is None:
        raise SiteError(
            site.where,
            "its adapter does more than add to the weight, so it depends on what was pruned",
            "Train an additive adapter, such as lora, on the pruned model.",
        )
    rows, columns = small.kept.get(site.name, (None, None))
    return [grow(_copied(term), site.shape, rows, columns) for term in terms]


def grow(
    op: Operator, shape: tuple[int, int], rows: Tensor | None, columns: Tensor | None
) -> Operator:
    """`op` with its rows and columns at these places of a larger matrix, the rest of it zero."""
    if isinstance(op, Scaled):
        return Scaled(grow(op.operator, shape, rows, columns), op.scale)
    if isinstance(op, LowRank):
        b, a = _scattered(op.b, rows, shape[0], 0), _scattered(op.a, columns, shape[1], 1)
        return LowRank(b, a, op.gate, op.mask)
    if columns is not None:
        op = Product(op, Select(columns.to(op.device), shape[1]))
    if rows is not None:
        op = Product(transpose(Select(rows.to(op.device), shape[0])), op)
    return op


def _scattered(leaf: nn.Parameter, index: Tensor | None, width: int, axis: int) -> nn.Parameter:
    if index is None:
        return leaf
    size = list(leaf.shape)
    size[axis] = width
    whole = leaf.data.new_zeros(size).index_copy_(axis, index.to(leaf.device), leaf.data)
    return nn.Parameter(whole, leaf.requires_grad)


def _copied(op: Operator) -> Operator:
    again = build(describe(op), op.device)
    again.load_state_dict(op.state_dict())
    return again
