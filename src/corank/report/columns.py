"""Which columns a table of all sites has: sizes and errors, or what an adapter trains."""

from __future__ import annotations

from collections.abc import Sequence

from .report import SiteRow
from .units import show_bytes, show_count, show_error, show_fraction


def is_adapted(rows: Sequence[SiteRow]) -> bool:
    """Whether the rows are an adapter's."""
    return any(row.trainable is not None for row in rows)


def measured_columns(rows: Sequence[SiteRow]) -> tuple[list[str], list[list[str]]]:
    """The columns after each site's rank: a header, and the cells row by row."""
    if is_adapted(rows):
        return ["trainable", "stored", "stored bytes"], [
            [show_count(r.trainable or 0), show_count(r.numel_after), show_bytes(r.bytes_after)]
            for r in rows
        ]
    return ["keep", "error", "bytes before", "stored bytes"], [
        [show_fraction(r.keep), show_error(r.error), show_count(r.bytes_before),
         show_count(r.bytes_after)]
        for r in rows
    ]  # fmt: skip
