"""`corank quantize`: a model's weights in few bits, with low-rank factors beside them or not."""

from __future__ import annotations

import argparse
from typing import Any

from . import options, shrinking


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser("quantize", help="store weights in few bits, and report the cost")
    shrinking.add_arguments(parser, parser)
    parser.add_argument(
        "--bits", type=int, nargs="+", metavar="B",
        help="of each code, 2 to 8; several: chosen for each target under --size or --keep",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Quantise, save, measure, report."""
    from ..verbs import quantize

    if arguments.method is None:
        raise ValueError("say how by --method KEY: `corank methods --area quantize` lists them")
    parameters = options.parse_parameters(arguments.set)
    if arguments.bits is not None:
        if "bits" in parameters:
            raise ValueError("--bits and --set bits=: give one of them")
        parameters["bits"] = arguments.bits[0] if len(arguments.bits) == 1 else arguments.bits
    return shrinking.run(quantize, arguments.method, arguments, parameters)
