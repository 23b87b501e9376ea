"""Refusing weights that cannot be computed with, or that no matrix can stand for."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import SiteError
from ..linalg.checks import all_finite
from ..operators.foreign import Foreign
from ..operators.operator import Operator
from ..operators.quantised import Quantised
from ..operators.vector_quantised import VectorQuantised
from .site import Site


def require_one_matrix(where: str, module: nn.Module) -> None:
    """Refuse a weight that no dense matrix can stand for, because it depends on its input.

    Raises SiteError.
    """
    for part in module.modules():
        if isinstance(part, Operator) and not part.linear:
            raise SiteError(
                where,
                "what it does to an input depends on the input, which is not one matrix",
                "Keep it unmerged; of adapters, activate another, or delete this one first.",
            )


def require_unquantised(op: Operator, site: Site) -> None:
    """Refuse an operator that holds codes already."""
    if any(isinstance(part, (Quantised, VectorQuantised)) for part in op.modules()):
        raise SiteError(
            site.where,
            "it is quantised already, and a method that takes floats adds its error to the codes'",
            "Start from the original model, or call corank.merge(model) first.",
        )


def require_finite_leaves(op: Operator, site: Site) -> None:
    """Refuse an operator whose leaves cannot be computed with; see `places.require_finite`."""
    leaves = [*op.named_parameters(), *op.named_buffers()]
    if isinstance(op, Foreign) and not any(leaf.is_meta for _, leaf in leaves):
        leaves = [("weight", op.dense())]
    for name, leaf in leaves:
        if leaf.is_meta:
            raise SiteError(
                site.where,
                f"its {name} is on the meta device and has no values",
                "Load the weights first, or offload nothing.",
            )
        if leaf.is_floating_point() and not all_finite(leaf):
            count = int((~torch.isfinite(leaf)).sum())
            raise SiteError(
                site.where,
                f"its {name} has {count} NaN or infinite values",
                "Repair the checkpoint, load it in a wider dtype, or leave the site out.",
            )
