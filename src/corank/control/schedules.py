"""How a number goes from one value to another over the steps of a training."""

from __future__ import annotations


def linear(step: int, start: float, end: float, first: int, last: int) -> float:
    """`start` until step `first`, `end` from step `last` on, a straight line between."""
    return end + (start - end) * _left(step, first, last)


def cubic(step: int, start: float, end: float, first: int, last: int) -> float:
    """`start` until step `first`, `end` from step `last` on, the cube of what is left between."""
    return end + (start - end) * _left(step, first, last) ** 3


def _left(step: int, first: int, last: int) -> float:
    if step >= last:
        return 0.0
    return 1.0 if step <= first else 1 - (step - first) / (last - first)
