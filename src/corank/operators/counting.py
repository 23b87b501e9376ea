from __future__ import annotations

from collections.abc import Iterable

from .operator import Operator


def count_each(ops: Iterable[Operator]) -> list[tuple[int, int]]:
    """(numel, bytes) of each operator; a leaf that several share is billed to the first."""
    billed: set[int] = set()
    counts = []
    for op in ops:
        own = [(t, numbers) for t, numbers in op._stored() if id(t) not in billed]
        billed |= {id(t) for t, _ in own}
        bytes_ = sum(t.numel() * t.element_size() for t, _ in own)
        counts.append((sum(numbers for _, numbers in own), bytes_))
    return counts
