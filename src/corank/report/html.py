"""A report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .columns import measured_columns
from .page import STYLE
from .plots import SPEED_PLOT, Plot, capitalise, list_plots
from .report import Report
from .sections import FIDELITY, SPEED, TRAINING, list_sections
from .units import list_sizes, show_bytes, show_count


def render_html(report: Report) -> str:
    """The whole report with its plots: inline CSS and SVG, no scripts, no requests."""
    title = f"corank {report.verb} {report.method}".rstrip()
    plots = {plot.title: plot for plot in list_plots(report)}
    sections = [
        _summary(report),
        _warnings(report),
        _sizes(report),
        *_measured(report, plots),
        *(_figure(plot) for plot in plots.values()),
        _sites(report),
        _left_alone(report),
        _details(report),
    ]
    body = "\n".join(part for part in sections if part)
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _summary(report: Report) -> str:
    facts: list[tuple[str, str]] = []
    for size in list_sizes(report.totals):
        facts.append(
            (size.what, f"{show_bytes(size.bytes_before)} → {show_bytes(size.bytes_after)}")
        )
    if report.sites:
        facts.append(("sites", show_count(len(report.sites))))
    spent = sum(report.seconds.values())
    if spent:
        facts.append(("time", f"{spent:.1f} s"))
    if not facts:
        return ""
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    return f'<dl class="facts">{items}</dl>'


def _warnings(report: Report) -> str:
    found = [w for section in list_sections(report.sections) for w in section.warnings]
    warnings = "".join(f'<p class="warning" role="note">{escape(w)}</p>' for w in found)
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return warnings + (f'<ul class="notes" aria-label="Notes">{notes}</ul>' if notes else "")


def _sizes(report: Report) -> str:
    rows = [
        [s.what, show_count(s.numel_before), show_count(s.numel_after), show_bytes(s.bytes_before),
         show_bytes(s.bytes_after), f"{s.keep:.1%}"]
        for s in list_sizes(report.totals)
    ]  # fmt: skip
    header = ["", "numbers before", "after", "bytes before", "after", "of the bytes"]
    return _part("Sizes in memory", _table("Sizes before and after", header, rows)) if rows else ""


def _measured(report: Report, plots: dict[str, Plot]) -> list[str]:
    """The measured tables, each followed by its own plots, which are taken out of `plots`."""
    parts = []
    measures = {row["measure"] for row in report.sections.get("fidelity") or []}
    names = {
        FIDELITY: {capitalise(measure) for measure in measures},
        SPEED: {SPEED_PLOT},
        TRAINING: {TRAINING},
    }
    for section in list_sections(report.sections):
        text = _table(section.title, section.header, section.rows)
        mine = [name for name in list(plots) if name in names.get(section.title, ())]
        drawn = "".join(_figure(plots.pop(name), level=3) for name in mine)
        parts.append(_part(section.title, f"<p>{escape(section.about)}</p>{text}{drawn}"))
    return parts


def _figure(plot: Plot, level: int = 2) -> str:
    head = f"<h{level}>{escape(plot.title)}</h{level}>"
    caption = f"<figcaption>{escape(plot.about)}</figcaption>"
    return f"<section>{head}<figure>{plot.svg}{caption}</figure></section>"


def _sites(report: Report) -> str:
    named, measured = measured_columns(report.sites)
    header = ["site", "role", "layer", "shape", "operator", "rank", *named]
    rows = [
        [r.name, r.role, "-" if r.layer is None else str(r.layer), f"{r.shape[0]} x {r.shape[1]}",
         r.operator, "-" if r.rank is None else str(r.rank), *cells]
        for r, cells in zip(report.sites, measured, strict=True)
    ]  # fmt: skip
    return _part("Sites", _table("Every targeted weight", header, rows)) if rows else ""


def _left_alone(report: Report) -> str:
    rows = [[name, reason] for name, reason in report.refused.items()]
    table = _table("Weights left as they are", ["weight", "reason"], rows, numbers=False)
    return _part("Left alone", table) if rows else ""


def _details(report: Report) -> str:
    rows = [[k, str(v)] for k, v in report.parameters.items() if v is not None]
    rows += [[f"seconds: {k}", f"{v:.2f}"] for k, v in report.seconds.items()]
    rows += [[f"version: {k}", v] for k, v in report.versions.items()]
    table = _table("Parameters, time and versions", ["what", "value"], rows, numbers=False)
    return _part("How it was made", table) if rows else ""


def _part(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>"


def _table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True
) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = ""
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    kind = "numbers" if numbers else "words"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="{kind}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
