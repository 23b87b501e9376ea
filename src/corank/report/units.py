"""Numbers as people read them, and the sizes that a report's totals imply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_BYTES = ("B", "kB", "MB", "GB", "TB")


def show_bytes(count: float) -> str:
    """1234567 -> '1.23 MB'; powers of 1000."""
    power = 0
    while abs(count) >= 999.5 and power < len(_BYTES) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.0f} B" if power == 0 else f"{count:.3g} {_BYTES[power]}"


def show_count(count: float) -> str:
    """1234567 -> '1,234,567'."""
    return f"{count:,.0f}"


def show_fraction(value: float | None) -> str:
    """0.4 -> '0.400'; None, for what was not measured, -> '-'."""
    return "-" if value is None else f"{value:.3f}"


def show_error(value: float | None) -> str:
    """A relative error in three digits; None, for what was not measured, -> '-'."""
    if value is None:
        return "-"
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"


def show_value(value: Any, unit: str = "") -> str:
    """A measured value in four digits, or whatever it is as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if unit == "bytes":
        return show_bytes(value)
    return show_count(value) if abs(value) >= 10000 else f"{value:.4g}"


class Sizes(NamedTuple):
    """One row of the totals; None where the report does not say."""

    what: str
    numel_before: int
    numel_after: int
    bytes_before: int
    bytes_after: int

    @property
    def keep(self) -> float:
        """The fraction of the bytes that stayed."""
        return self.bytes_after / self.bytes_before if self.bytes_before else 1.0


def list_sizes(totals: Mapping[str, Any]) -> list[Sizes]:
    """The targeted sites' and the whole model's sizes, as far as the totals give them."""
    names = ("numel_before", "numel_after", "bytes_before", "bytes_after")
    labels = (("targeted sites", ""), ("whole model", "model_"))
    return [
        Sizes(label, *(int(totals[prefix + name]) for name in names))
        for label, prefix in labels
        if all(prefix + name in totals for name in names)
    ]
