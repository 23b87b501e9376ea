"""What the user sees: progress on stderr, results on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..report import Report

Progress = Callable[[str, float], None]


@contextmanager
def progress() -> Iterator[Progress]:
    """A function (stage, fraction done) that moves one bar per stage on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(stage: str, fraction: float) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bars.update(task, completed=1.0)
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=min(fraction, 1.0))

        yield tell


def show(report: Report, as_json: bool, path: Path | None = None) -> None:
    """Print the report as a table or as JSON, and write it to `path` where one is given."""
    if path is not None:
        report.save(path)
    print_json(report.to_json()) if as_json else print(report.table())


def print_json(value: Any) -> None:
    """The value as JSON on stdout."""
    print(json.dumps(value, indent=2))
