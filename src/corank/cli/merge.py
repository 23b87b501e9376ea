"""`corank merge`: a compressed folder as a plain dense one."""

from __future__ import annotations

import argparse
from time import perf_counter
from typing import Any

from . import options
from .console import show
from .folders import check_out, folder_bytes, open_model


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser("merge", help="write the dense equivalent of a compressed model")
    options.add_model(parser)
    options.add_output(parser)
    options.add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Merge and save."""
    from ..io import save
    from ..report import Report, versions
    from ..verbs import merge

    out = check_out(arguments.out, arguments.force)
    started = perf_counter()
    model, tokenizer = open_model(arguments.folder, arguments.dtype)
    save(merge(model), out, tokenizer, source=arguments.folder)
    report = Report("merge", "", parameters={"out": str(out)}, versions=versions())
    report.sections["disk"] = {"before": folder_bytes(arguments.folder), "after": folder_bytes(out)}
    report.seconds["merging"] = perf_counter() - started
    show(report, arguments.json)
    return 0
