from __future__ import annotations

from torch import nn


def find_norms(model: nn.Module) -> list[nn.Module]:
    """The layer norms and RMS norms of a model, in its order, by the names of their classes."""
    return [m for m in model.modules() if type(m).__name__.endswith(("LayerNorm", "RMSNorm"))]
