"""`corank compress`: a model made smaller by the structure of its weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import options, recipe_file, shrinking
from .folders import open_model


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser("compress", help="make a model smaller, and report what it cost")
    what = parser.add_mutually_exclusive_group()
    shrinking.add_arguments(parser, what)
    what.add_argument(
        "--steps", nargs="+", default=[], metavar="KEY[:NAME=VALUE,...]", action=recipe_file.Steps,
        help="methods in turn under one budget: structure, codes, repair",
    )  # fmt: skip
    what.add_argument(
        "--auto",
        action="store_true",
        help="try the methods, and keep what held-out loss finds best",
    )
    parser.add_argument(
        "--tuning",
        metavar="PATH",
        type=Path,
        help="text to judge --auto by (default: part of --data)",
    )
    parser.add_argument(
        "--original", metavar="FOLDER", type=Path,
        help="the model before fine-tuning, or before the compression to repair",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compress, save, measure, report."""
    from ..verbs import compress

    parameters = options.parse_parameters(arguments.set)
    said = [name for name in ("method", "steps", "auto") if getattr(arguments, name)]
    if len(said) != 1:
        raise ValueError(
            "say what is to be done by one of --method KEY, --steps KEY ... and --auto"
        )
    if arguments.tuning is not None:
        if not arguments.auto:
            raise ValueError("--tuning is what --auto judges by: give both or neither")
        parameters["tuning"] = arguments.tuning
    if arguments.original is not None and not arguments.method:
        raise ValueError("--original is for one method: give --method KEY")
    if arguments.original is not None and not arguments.dry_run:
        parameters["original"] = open_model(arguments.original, arguments.dtype)[0]
    steps = [options.parse_step(step) for step in arguments.steps]
    method = "auto" if arguments.auto else arguments.method or steps
    return shrinking.run(compress, method, arguments, parameters)
