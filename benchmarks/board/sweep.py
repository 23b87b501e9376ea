"""Rows of a board made one after another, and the command that makes them."""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from benchmarks.board.measure import environment
from benchmarks.board.store import Results


class Keyed(Protocol):
    """What a row is known by, among those of its table."""

    @property
    def key(self) -> str: ...


R = TypeVar("R", bound=Keyed)


def tune_and_run(
    results: Results,
    table: str,
    key: str,
    about: Mapping[str, Any],
    *,
    tune: Callable[[], Mapping[float, float]],
    higher: bool,
    run: Callable[[float, int], Mapping[str, Any]],
    seeds: Sequence[int],
) -> None:
    """Choose the row's rate, then run the seeds; what the results have already is left out.

    tune: what each rate of the grid reached on tuning data. run: a row's figures at a rate and a
    seed.
    """
    if results.has(table, f"{key}, rate"):
        lr = results.get(table, f"{key}, rate")["lr"]
    else:
        reached = tune()
        worst = -math.inf if higher else math.inf
        known = {lr: worst if math.isnan(score) else score for lr, score in reached.items()}
        lr = (max if higher else min)(known, key=lambda rate: known[rate])
        results.add(table, {"key": f"{key}, rate", "lr": lr, "tuned": sorted(reached.items())})
    for seed in seeds:
        if not results.has(table, f"{key}, seed {seed}"):
            found = {"key": f"{key}, seed {seed}", "seed": seed, "lr": lr}
            results.add(table, found | dict(about) | dict(run(lr, seed)))


def fill(
    results: Results,
    table: str,
    rows: Iterable[R],
    make: Callable[[R], dict[str, Any]],
    until: float,
    about: Callable[[R], dict[str, Any]] = lambda row: {},
) -> None:
    """Make the rows that are not there yet, until the clock says `until`.

    A row that is not possible is stored with the reason, and with what there is to say `about` it.
    """
    for row in rows:
        if time.monotonic() >= until:
            return
        if results.has(table, row.key):
            continue
        try:
            found = make(row)
        except (ValueError, RuntimeError) as error:
            found = {"key": row.key, "error": f"{type(error).__name__}: {error}"} | about(row)
        results.add(table, found)
        print(table, row.key, found.get("measures") or found.get("error"), flush=True)


def options_of(doc: str, out: Path) -> argparse.ArgumentParser:
    """What every command of a board takes: which rows, for how long, and where to."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression that keys must match")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no row later")
    parser.add_argument("--out", type=Path, default=out)
    return parser


def sweep(
    doc: str,
    out: Path,
    tables: Mapping[str, Callable[[], Iterable[R]]],
    make: Callable[[Results, str, R], None],
) -> None:
    """The command of a board: its rows in turn, on one thread, with those that fail kept as such.

    doc: the command's description. tables: of each, its rows. make: measures one and stores it.
    """
    parser = options_of(doc, out)
    parser.add_argument("--tasks", default=",".join(tables), help="comma-separated names")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.out)
    results.set("environment", environment())
    until = time.monotonic() + 60 * options.minutes
    for table in options.tasks.split(","):
        for row in tables[table]():
            if time.monotonic() >= until:
                return
            if not re.search(options.only, row.key):
                continue
            began = time.process_time()
            try:
                make(results, table, row)
            except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
                reason = f"{type(error).__name__}: {error}"
                results.add(table, {"key": f"{row.key}, error", "error": reason})
                print(table, row.key, reason[:150], flush=True)
            else:
                print(table, row.key, f"{time.process_time() - began:.0f} s", flush=True)
