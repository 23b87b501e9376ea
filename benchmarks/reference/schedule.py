"""Warmup-stable-decay as a function of the fraction of the time budget used."""

from __future__ import annotations

WARMUP = 0.02
DECAY = 0.4
FLOOR = 0.01


def learning_rate_factor(progress: float) -> float:
    """The factor on the peak learning rate at `progress` in [0, 1] of the budget.

    Linear from `FLOOR` to 1 over the first `WARMUP`, then 1, then linear to `FLOOR` over the last
    `DECAY`. Past the budget it stays at `FLOOR`.
    """
    rising = FLOOR + (1 - FLOOR) * progress / WARMUP
    falling = FLOOR + (1 - FLOOR) * (1 - progress) / DECAY
    return max(FLOOR, min(1.0, rising, falling))
