"""What `corank compress` and `corank quantize` do: a folder in, a smaller one out, and a report."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options, recipe_file
from .console import progress, show
from .folders import check_out, folder_bytes, open_empty, open_model, require_tokenizer

if TYPE_CHECKING:
    from ..report import Report


def add_arguments(parser: argparse.ArgumentParser, what: argparse._ActionsContainer) -> None:
    """The arguments of both commands; `what` takes the method."""
    options.add_model(parser)
    recipe_file.add(parser)
    what.add_argument("--method", metavar="KEY", help="see `corank methods`")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--keep", type=float, metavar="FRACTION", help="of the targeted weights")
    budget.add_argument("--size", metavar="SIZE", help="of the whole model: 1.2GB, or 1.1B numbers")
    budget.add_argument("--rank", type=int, metavar="R", help="of every target")
    options.add_output(parser)
    parser.add_argument(
        "--format", choices=("corank", "compressed-tensors"), default="corank",
        help="of OUT; the second is for codes alone, and is read without corank",
    )  # fmt: skip
    options.add_data(parser, "for methods that need it")
    how = parser.add_argument_group("method")
    options.add_targets(how)
    how.add_argument("--allocate", metavar="NAME", help="how the budget is spread over the targets")
    how.add_argument("--round-to", type=int, default=1, metavar="K", help="ranks: multiples of K")
    how.add_argument("--cascade", choices=("original", "compressed"), help="fit block after block")
    how.add_argument("--heal-minutes", type=float, metavar="M", help="train it back for so long")
    how.add_argument("--heal-steps", type=int, metavar="N", help="or for so many batches")
    how.add_argument("--seed", type=int, default=0, metavar="N")
    how.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE",
                     action=recipe_file.Merged, help="its parameters")  # fmt: skip
    report = parser.add_argument_group("report")
    options.add_report(report)
    report.add_argument(
        "--heldout", nargs="+", default=[], metavar="NAME=PATH",
        help="text to measure fidelity and speed on, beside torchao's int8 and int4",
    )  # fmt: skip
    report.add_argument("--dry-run", action="store_true", help="only say what would be done")
    options.add_common(parser)


def run(
    verb: Callable[..., Report],
    method: Any,
    arguments: argparse.Namespace,
    parameters: dict[str, Any],
) -> int:
    """Do it, save, measure, report. `method` is what the verb takes as such."""
    from ..io import save, save_adapter
    from ..report.comparing import add_measurements

    options.check_report(arguments.report)
    if clash := parameters.keys() & _settings(arguments).keys():
        raise ValueError(f"--set {min(clash)}: not a method's parameter, use the option of its own")
    if arguments.dry_run:
        return _plan(verb, method, arguments, parameters)
    out = check_out(arguments.out, arguments.force)
    heldout = _heldout_paths(arguments.heldout, arguments.data)
    texts = [*heldout.values(), *([arguments.data] if arguments.data else [])]
    model, tokenizer = open_model(arguments.folder, arguments.dtype)
    require_tokenizer(tokenizer, arguments.folder, texts)
    original = copy.deepcopy(model) if heldout else None
    with progress() as tell:
        report = verb(
            model, method, **_settings(arguments), data=arguments.data,
            tokenizer=tokenizer, progress=tell, **parameters,
        )  # fmt: skip
        tell("saving", 0.0)
        if _is_delta(method):
            save_adapter(model, out)
        else:
            save(model, out, tokenizer, source=arguments.folder, format=arguments.format)
        sizes = {"before": folder_bytes(arguments.folder), "after": folder_bytes(out)}
        report.sections["disk"] = sizes
        if original is not None:
            tell("measuring", 0.0)
            held = _read_heldout(heldout, tokenizer, arguments, report.notes)
            sites = [row.name for row in report.sites]
            add_measurements(report, original, model, held, sites=sites)
        else:
            report.notes.append("fidelity and speed not measured: give --heldout NAME=PATH")
    show(report, arguments.json, arguments.report)
    return 0


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("keep", "size", "rank", "allocate", "round_to", "cascade", "heal_minutes",
             "heal_steps", "seed", "sequence_length", "count", "batch_size")  # fmt: skip
    return {name: getattr(arguments, name) for name in names} | {
        "targets": options.single(arguments.targets)
    }


def _is_delta(method: Any) -> bool:
    """Whether it makes an adapter of another model, which is then what is saved."""
    from ..registry import METHODS

    found = METHODS.get(method) if isinstance(method, str) else None
    return found is not None and found.area == "compress" and bool(found.recipe({}).delta)


def _plan(
    verb: Callable[..., Report],
    method: Any,
    arguments: argparse.Namespace,
    parameters: dict[str, Any],
) -> int:
    """Say what would happen, from the shapes in the folder's configuration alone."""
    model = open_empty(arguments.folder, arguments.dtype)
    report = verb(model, method, **_settings(arguments), dry_run=True, **parameters)
    show(report, arguments.json, arguments.report)
    return 0


def _heldout_paths(pairs: list[str], data: Path | None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for pair in pairs:
        name, path = options.parse_pair(pair, "--heldout")
        if name in found:
            raise ValueError(f"--heldout {name}: given twice")
        found[name] = Path(path)
        if data is not None and found[name].resolve() == data.resolve():
            raise ValueError(f"--heldout {pair}: that is the calibration text itself")
    return found


def _read_heldout(
    paths: dict[str, Path], tokenizer: Any, arguments: argparse.Namespace, notes: list[str]
) -> dict[str, Any]:
    from ..calibration import batches

    held = {}
    for name, path in paths.items():
        held[name] = batches(
            path, tokenizer=tokenizer, sequence_length=arguments.sequence_length,
            count=arguments.count, batch_size=arguments.batch_size,
        )  # fmt: skip
        notes += [f"{name}: {note}" for note in held[name].notes]
    return held
