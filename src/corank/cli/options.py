"""Arguments that several commands take, and how their text is read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

REPORT_ENDINGS = (".html", ".json", ".md")


def add_common(parser: argparse.ArgumentParser) -> None:
    """`--json` and `--debug`."""
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model's folder and the type its weights are held in."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a transformers model's folder")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="type of the weights (default: as they are stored)",
    )


def add_data(parser: argparse.ArgumentParser, use: str) -> None:
    """Calibration text and how it is cut into batches."""
    group = parser.add_argument_group("calibration")
    group.add_argument("--data", metavar="PATH", type=Path, help=f"text file or folder, {use}")
    group.add_argument("--sequence-length", metavar="N", type=int, default=256, help="in tokens")
    group.add_argument("--count", metavar="N", type=int, help="at most so many sequences")
    group.add_argument("--batch-size", metavar="N", type=int, default=8, help="in sequences")


def add_targets(parser: argparse._ActionsContainer) -> None:
    """Which weights."""
    parser.add_argument(
        "--targets",
        nargs="+",
        default=["all-linear"],
        metavar="NAME",
        help="all-linear, attention, mlp, all, endings of names, or re:REGEX (default: all-linear)",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where the resulting model goes."""
    parser.add_argument("--out", metavar="OUT", type=Path, help="folder for the resulting model")
    parser.add_argument("--force", action="store_true", help="replace the model in OUT")


def add_report(parser: argparse._ActionsContainer) -> None:
    """Where the report goes."""
    endings = ", ".join(REPORT_ENDINGS)
    parser.add_argument("--report", metavar="FILE", type=Path, help=f"write a report: {endings}")


def check_report(path: Path | None) -> None:
    """Refuse a report that could not be written, before the work for it is done."""
    if path is not None and path.suffix.lower() not in REPORT_ENDINGS:
        raise ValueError(f"--report {path}: its name must end in {', '.join(REPORT_ENDINGS)}")


def parse_pair(text: str, option: str) -> tuple[str, str]:
    """'name=value' -> (name, value)."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"{option} {text}: write it as NAME=VALUE")
    return name.strip(), value


def parse_parameters(pairs: list[str]) -> dict[str, Any]:
    """`--set name=value ...`: values are read as JSON where they are JSON, else as text."""
    parameters: dict[str, Any] = {}
    for pair in pairs:
        name, value = parse_pair(pair, "the parameter")
        if name in parameters:
            raise ValueError(f"{name}: given twice")
        try:
            parameters[name] = json.loads(value)
        except json.JSONDecodeError:
            parameters[name] = value
    return parameters


def parse_step(step: Any) -> Any:
    """'gptq:bits=4,group=32' -> {"gptq": {"bits": 4, "group": 32}}; a recipe's step is as it is."""
    if not isinstance(step, str):
        return step
    key, _, said = step.partition(":")
    return {key: parse_parameters(said.split(",") if said else [])}


def single(targets: list[str]) -> str | list[str]:
    """One target as a name, several as a list."""
    return targets[0] if len(targets) == 1 else targets
