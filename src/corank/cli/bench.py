"""`corank bench`: the benchmarks of a checkout."""

from __future__ import annotations

import argparse
import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Any

from .options import add_common


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser("bench", help="run a benchmark of a checkout")
    parser.add_argument("name", metavar="NAME", help="a module of benchmarks/, such as compress")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="passed on to the benchmark")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run `benchmarks.NAME` with what follows as its arguments."""
    here = Path.cwd()
    name = f"benchmarks.{arguments.name}"
    if not (here / "benchmarks" / "__init__.py").is_file():
        raise ValueError("the benchmarks are not installed: run this in a checkout of corank")
    sys.path.insert(0, str(here))
    if not arguments.name.isidentifier() or importlib.util.find_spec(name) is None:
        known = sorted(p.stem for p in (here / "benchmarks").glob("[a-z]*.py"))
        raise ValueError(f"no benchmark {arguments.name!r}; there are: {', '.join(known)}")
    sys.argv = [name, *arguments.rest, *(["--json"] if arguments.json else [])]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
    return 0
