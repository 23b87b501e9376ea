"""Learning rates and weight decays that carry over from a narrow model to a wide one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..models import Targets, find_sites, read
from ..registry import Paper, method
from .groups import groups


@method(
    Paper(
        "Robust Layerwise Scaling Rules by Proper Weight Decay Tuning",
        "2510.15262",
        "the abstract: rate over d and decay times sqrt(d) for matrices, a constant rate and no "
        "decay for the rest; the sections were not read",
        "embeddings and heads count as vectors; the initialisation, which the rule does not depend "
        "on in the steady state, is left to the caller",
    ),
    area="optimize",
)
def wd_scaling(
    model: nn.Module,
    width: int,
    tuned_width: int,
    lr: float,
    weight_decay: float,
    vector_lr: float | None = None,
    targets: Targets = "all-linear",
) -> list[dict[str, Any]]:
    """Parameter groups for AdamW with what was tuned at another width.

    width: the model's hidden size, and tuned_width that of the one where lr and weight_decay were
        found; every inner size grows in proportion.
    vector_lr: of embeddings, norms, biases and heads, at either width; lr by default.

    Matrices get lr * tuned_width / width and weight_decay * sqrt(width / tuned_width). Check it
    with `top_singular_values`: those of a matrix agree over widths in proportion to each other
    once training is in its steady state. Raises ValueError for widths below 1.
    """
    if width < 1 or tuned_width < 1:
        raise ValueError(f"widths must be at least 1, got {width} and {tuned_width}")
    ratio = width / tuned_width
    matrices = {"lr": lr / ratio, "weight_decay": weight_decay * math.sqrt(ratio)}
    others = {"lr": lr if vector_lr is None else vector_lr, "weight_decay": 0.0}
    return [group | (matrices if group["project"] else others) for group in groups(model, targets)]


@torch.no_grad()
def top_singular_values(model: nn.Module, targets: Targets = "all-linear") -> dict[str, float]:
    """Site name -> the largest singular value of its weight, in float32 or wider."""
    return {
        site.name: float(torch.linalg.matrix_norm(_wide(read(model, site).dense()), ord=2))
        for site in find_sites(model, targets)
    }


def _wide(weight: torch.Tensor) -> torch.Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
