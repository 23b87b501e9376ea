"""Rows of unequal length as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .lines import IGNORED


def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right to the longest; what pads is neither seen nor learnt."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])

    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", IGNORED),
        "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
    }
