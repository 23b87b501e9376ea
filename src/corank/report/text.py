"""A report as plain text, for terminals and logs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from .columns import is_adapted
from .grouping import Group, group_sites
from .report import Report
from .sections import TRAINING, Section, list_sections
from .units import list_sizes, show_bytes, show_count, show_error, show_fraction

WIDTH = 100
#: Up to this many sites each get a line of their own.
_EACH = 12


def render_text(report: Report) -> str:
    """The report's sites, totals, measurements and notes, in lines of at most 100 columns.

    Up to 12 sites are listed one by one, more of them by role and shape.
    """
    parts = [_title(report)]
    if report.sites:
        if len(report.sites) <= _EACH:
            groups = [Group(row.role, row.shape, [row]) for row in report.sites]
        else:
            groups = group_sites(report.sites)
        parts.append(_sites(groups))
    sizes = [
        [s.what, show_count(s.numel_before), show_count(s.numel_after), show_bytes(s.bytes_before),
         show_bytes(s.bytes_after), f"{s.keep:.1%}"]
        for s in list_sizes(report.totals)
    ]  # fmt: skip
    if sizes:
        header = ["", "numbers before", "after", "bytes before", "after", "of the bytes"]
        parts.append(draw_table(header, sizes))
    parts += [_section(section) for section in list_sections(report.sections)]
    spent = ", ".join(f"{name} {s:.1f} s" for name, s in report.seconds.items() if s >= 0.05)
    if spent:
        parts.append(_wrap(f"time: {spent}"))
    if report.refused:
        lines = [f"left alone: {name}: {reason}" for name, reason in report.refused.items()]
        parts.append("\n".join(_wrap(line) for line in lines))
    if report.notes:
        parts.append("\n".join(_wrap(f"note: {note}") for note in report.notes))
    return "\n\n".join(parts)


def draw_table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = WIDTH) -> str:
    """Rows under a header: the first column left, the others right; the first is cut to fit."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    room = width - sum(widths[1:]) - 2 * (len(widths) - 1)
    widths[0] = max(min(widths[0], room), 8)

    def draw(cells: Sequence[str]) -> str:
        first = shorten(cells[0], widths[0]).ljust(widths[0])
        rest = [cell.rjust(w) for cell, w in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join([first, *rest]).rstrip()

    rule = "  ".join("-" * w for w in widths)
    return "\n".join([draw(header), rule, *map(draw, rows)])


def shorten(text: str, width: int) -> str:
    """The text with its middle left out where it is longer than `width` columns."""
    if len(text) <= width:
        return text
    tail = (width - 3) * 2 // 3
    return text[: width - 3 - tail] + "..." + text[len(text) - tail :]


def _title(report: Report) -> str:
    told = {k: v for k, v in report.parameters.items() if v is not None}
    settings = ", ".join(f"{k}={v}" for k, v in told.items())
    return _wrap(f"{report.verb} {report.method}".rstrip() + (f": {settings}" if settings else ""))


def _sites(groups: Sequence[Group]) -> str:
    if is_adapted([row for g in groups for row in g.rows]):
        return _adapted(groups)
    rows = [
        [g.name, f"{g.shape[0]}x{g.shape[1]}",
         g.span(lambda r: r.rank, lambda v: "-" if v is None else f"{v:.0f}"),
         show_fraction(g.keep), g.span(lambda r: r.error, show_error),
         show_bytes(g.total(lambda r: r.bytes_before)),
         show_bytes(g.total(lambda r: r.bytes_after))]
        for g in groups
    ]  # fmt: skip
    return draw_table(["site", "shape", "rank", "keep", "error", "before", "after"], rows)


def _adapted(groups: Sequence[Group]) -> str:
    rows = [
        [g.name, f"{g.shape[0]}x{g.shape[1]}",
         g.span(lambda r: r.rank, lambda v: "-" if v is None else f"{v:.0f}"),
         show_count(g.total(lambda r: r.trainable or 0)),
         show_count(g.total(lambda r: r.numel_after)),
         show_bytes(g.total(lambda r: r.bytes_after))]
        for g in groups
    ]  # fmt: skip
    return draw_table(["site", "shape", "rank", "trainable", "stored", "bytes"], rows)


def _section(section: Section) -> str:
    table = draw_table(section.header, section.rows)
    warnings = "".join("\n" + _wrap(f"! {warning}") for warning in section.warnings)
    about = f"\n{_wrap(section.about)}" if section.title == TRAINING else ""
    return f"{section.title}{about}\n{table}{warnings}"


def _wrap(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ")
