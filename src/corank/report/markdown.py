"""A report as Markdown, every site in a row of its own."""

from __future__ import annotations

from collections.abc import Sequence

from .columns import measured_columns
from .report import Report
from .sections import list_sections
from .units import list_sizes, show_bytes, show_count


def render_markdown(report: Report) -> str:
    """The whole report, without its plots."""
    parts = [f"# {report.verb} {report.method}".rstrip()]
    settings = [[k, str(v)] for k, v in report.parameters.items() if v is not None]
    if settings:
        parts.append(_table(["parameter", "value"], settings))
    sizes = [
        [s.what, show_count(s.numel_before), show_count(s.numel_after), show_bytes(s.bytes_before),
         show_bytes(s.bytes_after), f"{s.keep:.1%}"]
        for s in list_sizes(report.totals)
    ]  # fmt: skip
    if sizes:
        header = ["", "numbers before", "after", "bytes before", "after", "of the bytes"]
        parts += ["## Sizes", _table(header, sizes)]
    for section in list_sections(report.sections):
        parts += [f"## {section.title}", section.about, _table(section.header, section.rows)]
        parts += [f"**{warning}**" for warning in section.warnings]
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {_inline(note)}" for note in report.notes)]
    if report.sites:
        named, measured = measured_columns(report.sites)
        header = ["site", "role", "shape", "operator", "rank", *named]
        rows = [
            [f"`{r.name}`", r.role, f"{r.shape[0]} x {r.shape[1]}", r.operator,
             "-" if r.rank is None else str(r.rank), *cells]
            for r, cells in zip(report.sites, measured, strict=True)
        ]  # fmt: skip
        parts += ["## Sites", _table(header, rows)]
    if report.refused:
        rows = [[f"`{name}`", reason] for name, reason in report.refused.items()]
        parts += ["## Left alone", _table(["weight", "reason"], rows)]
    if report.seconds:
        rows = [[name, f"{seconds:.2f}"] for name, seconds in report.seconds.items()]
        parts += ["## Time", _table(["stage", "seconds"], rows)]
    if report.versions:
        parts.append("Made with " + ", ".join(f"{k} {v}" for k, v in report.versions.items()) + ".")
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_inline, line)) + " |" for line in lines)


def _inline(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
