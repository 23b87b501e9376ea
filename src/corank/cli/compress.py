"""`corank compress`: a model made smaller by the structure of its weights."""

from __future__ import annotations

import argparse
from typing import Any

from . import options, recipe_file, shrinking


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser("compress", help="make a model smaller, and report what it cost")
    what = parser.add_mutually_exclusive_group()
    shrinking.add_arguments(parser, what)
    what.add_argument(
        "--steps", nargs="+", default=[], metavar="KEY[:NAME=VALUE,...]", action=recipe_file.Steps,
        help="methods in turn under one budget: structure, codes, repair",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compress, save, measure, report."""
    from ..verbs import compress

    if bool(arguments.method) == bool(arguments.steps):
        raise ValueError("say what is to be done by one of --method KEY and --steps KEY ...")
    method = arguments.method or [options.parse_step(step) for step in arguments.steps]
    return shrinking.run(compress, method, arguments, options.parse_parameters(arguments.set))
