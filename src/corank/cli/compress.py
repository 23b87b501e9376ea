"""`corank compress`: a model made smaller by the structure of its weights."""

from __future__ import annotations

import argparse
from typing import Any

from . import options, shrinking


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser("compress", help="make a model smaller, and report what it cost")
    budget = parser.add_mutually_exclusive_group(required=True)
    shrinking.add_arguments(parser, budget)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compress, save, measure, report."""
    from ..verbs import compress

    return shrinking.run(compress, arguments, options.parse_parameters(arguments.set))
