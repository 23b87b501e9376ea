"""Commands, their arguments, and how errors leave."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..version import __version__
from . import (
    adapt,
    analyze,
    bench,
    compress,
    demo,
    merge,
    methods,
    quantize,
    recipe_file,
    train,
)

_COMMANDS = (compress, quantize, adapt, train, analyze, merge, methods, bench, demo)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 2 for what the user can mend, 130 when interrupted."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        if getattr(arguments, "recipe", None) is not None:
            recipe_file.take(arguments.parser, arguments.recipe)
            arguments = parser.parse_args(argv)
        status: int = arguments.run(arguments)
    except KeyboardInterrupt:
        print("corank: interrupted; nothing was written", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        if arguments.debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"corank: error: {message}", file=sys.stderr)
        return 2
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, which takes the parsed arguments."""
    parser = argparse.ArgumentParser(
        prog="corank",
        description="Shrink, train and fine-tune models by low-rank weights, and see what it cost.",
    )
    parser.add_argument("--version", action="version", version=f"corank {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser
