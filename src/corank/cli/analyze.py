"""`corank analyze`: spectra and ranks of a model's weights."""

from __future__ import annotations

import argparse
from typing import Any

from . import options
from .console import show
from .folders import open_model, require_tokenizer


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser("analyze", help="spectra and ranks of a model's weights")
    options.add_model(parser)
    options.add_targets(parser)
    options.add_data(parser, "to weigh the spectra by the weights' inputs")
    options.add_report(parser)
    options.add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Analyze and report."""
    from ..verbs import analyze

    options.check_report(arguments.report)
    model, tokenizer = open_model(arguments.folder, arguments.dtype)
    reading: dict[str, Any] = {}
    if arguments.data is not None:
        require_tokenizer(tokenizer, arguments.folder, [arguments.data])
        reading = {
            "data": arguments.data,
            "tokenizer": tokenizer,
            "sequence_length": arguments.sequence_length,
            "count": arguments.count,
            "batch_size": arguments.batch_size,
        }
    report = analyze(model, targets=options.single(arguments.targets), **reading)
    show(report, arguments.json, arguments.report)
    return 0
