"""Leaves that FSDP2 has sharded, where a penalty needs all of them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def whole(leaf: Tensor) -> Tensor:
    """The leaf itself, or all of a sharded one, gathered; its gradient is sharded again.

    Every process then computes the same penalty, so no gradient is counted twice.
    """
    gather: Callable[[], Tensor] | None = getattr(leaf, "full_tensor", None)
    return leaf if gather is None else gather()
