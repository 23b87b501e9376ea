"""`corank adapt`: which adapters there are, what one would cost, and a model with one to train."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

from ..models import Site
from ..registry import Adaptation, Method
from ..report.units import show_count
from . import options
from .console import print_json, progress, show
from .folders import check_out, open_empty, open_model, require_tokenizer


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "adapt", help="list adapters, count what one trains, or start one and save it"
    )
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, nargs="?",
        help="a transformers model's folder, or for --dry-run a bare config.json",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                        help="type of the weights (default: as they are stored)")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="every method in a line")
    parser.add_argument("--method", metavar="KEY", help="see --list")
    options.add_targets(parser)
    parser.add_argument("--rank", type=int, metavar="R", help="of every target")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="its parameters")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--format", choices=("corank", "peft"), default="corank", help="of --out")
    options.add_output(parser)
    options.add_data(parser, "for methods that start from statistics")
    parser.add_argument("--dry-run", action="store_true", help="only count, without weights")
    options.add_report(parser)
    options.add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List, count, or start."""
    if arguments.list:
        return _list(arguments.json)
    if arguments.folder is None or arguments.method is None:
        raise ValueError("name a FOLDER and a --method, or ask for --list")
    options.check_report(arguments.report)
    from ..io import save_adapter
    from ..verbs import adapt

    settings = parameters(arguments)
    if arguments.dry_run:
        model = open_empty(arguments.folder, arguments.dtype)
        report = adapt(model, arguments.method, dry_run=True, **settings)
    else:
        out = check_out(arguments.out, arguments.force)
        model, tokenizer = open_model(arguments.folder, arguments.dtype)
        require_tokenizer(tokenizer, arguments.folder, [arguments.data] if arguments.data else [])
        with progress() as tell:
            tell("starting", 0.0)
            report = adapt(model, arguments.method, **settings, **reading(arguments, tokenizer))
            tell("saving", 0.0)
            save_adapter(model, out, format=arguments.format)
    show(report, arguments.json, arguments.report)
    return 0


def parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of the adapter itself."""
    found = options.parse_parameters(arguments.set)
    for name in ("targets", "seed"):
        if name in found:
            raise ValueError(f"--set {name}: not a method's parameter, use the option of its own")
    if arguments.rank is not None:
        found["rank"] = arguments.rank
    return found | {"targets": options.single(arguments.targets), "seed": arguments.seed}


def reading(arguments: argparse.Namespace, tokenizer: Any) -> dict[str, Any]:
    """What it says of the calibration text."""
    if arguments.data is None:
        return {}
    return {
        "data": arguments.data, "tokenizer": tokenizer, "count": arguments.count,
        "sequence_length": arguments.sequence_length, "batch_size": arguments.batch_size,
    }  # fmt: skip


def _list(as_json: bool) -> int:
    from ..registry import methods

    found = methods("adapt")
    if as_json:
        print_json([method.to_json() for method in found])
        return 0
    width = max(len(method.key) for method in found)
    print(f"{'method':<{width}}  {'trains':>9}  (numbers at one weight of 4096 x 4096, by default)")
    for method in found:
        cost = _cost(method)
        print(f"{method.key:<{width}}  {cost:>9}  {method.summary}")
    return 0


def _cost(method: Method) -> str:
    """What trains at one 4096 x 4096 weight with the method's defaults."""
    if any(value is inspect.Parameter.empty for value in method.parameters.values()):
        return "-"
    made = method.recipe({})
    site = Site("q_proj", "q", 0, (4096, 4096), False, "linear")
    return show_count(made.count([site])) if isinstance(made, Adaptation) else "-"
