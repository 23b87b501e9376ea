"""Sites that look alike, summed up in one line for tables that must stay short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .report import SiteRow


@dataclass(frozen=True)
class Group:
    """Sites of one role and one shape."""

    role: str
    shape: tuple[int, int]
    rows: Sequence[SiteRow]

    @property
    def name(self) -> str:
        """The site's name, or how many sites of which role these are."""
        return self.rows[0].name if len(self.rows) == 1 else f"{self.role} x {len(self.rows)}"

    def total(self, pick: Callable[[SiteRow], int]) -> int:
        """The sum of one number over the sites."""
        return sum(pick(row) for row in self.rows)

    @property
    def keep(self) -> float:
        """The fraction of the group's numbers that stayed."""
        return self.total(lambda r: r.numel_after) / self.total(lambda r: r.numel_before)

    def span(
        self, pick: Callable[[SiteRow], float | None], show: Callable[[float | None], str]
    ) -> str:
        """'low..high' of one value over the sites, or the value where there is only one."""
        values = [value for row in self.rows if (value := pick(row)) is not None]
        if not values:
            return show(None)
        low, high = show(min(values)), show(max(values))
        span = low if low == high else f"{low}..{high}"
        missing = len(self.rows) - len(values)
        return f"{span}, {missing} -" if missing else span


def group_sites(rows: Sequence[SiteRow]) -> list[Group]:
    """The sites by role and shape, in the order in which these first occur."""
    found: dict[tuple[str, tuple[int, int]], list[SiteRow]] = {}
    for row in rows:
        found.setdefault((row.role, (row.shape[0], row.shape[1])), []).append(row)
    return [Group(role, shape, members) for (role, shape), members in found.items()]
