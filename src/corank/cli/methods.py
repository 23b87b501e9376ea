"""`corank methods`: what there is, with its paper and parameters."""

from __future__ import annotations

import argparse
from typing import Any

from .console import print_json
from .options import add_common


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser("methods", help="every method, its paper and its parameters")
    parser.add_argument("--area", metavar="A", help="only methods of this area, such as compress")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List the registered methods."""
    from ..errors import unknown
    from ..registry import methods

    found = methods()
    areas = {method.area for method in found}
    if arguments.area is not None:
        if arguments.area not in areas:
            raise unknown("area", arguments.area, areas)
        found = [method for method in found if method.area == arguments.area]
    if arguments.json:
        print_json([method.to_json() for method in found])
    else:
        _print_table(found)
    return 0


def _print_table(found: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("method", "area", "paper", "parameters", "what it does"):
        table.add_column(column, overflow="fold")
    for method in found:
        entry = method.to_json()
        parameters = ", ".join(f"{k}={v}" for k, v in entry["parameters"].items())
        table.add_row(
            entry["key"], entry["area"], entry["paper"]["arxiv"], parameters, entry["summary"]
        )
    Console().print(table)
