"""`method="auto"`: try what there is at a size, and keep what a tuning split finds best."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn

from ..calibration import Batches, batches
from ..engine.budget import budget_bytes
from ..engine.summary import model_sizes
from ..engine.transaction import unchanged_on_error
from ..errors import DataError
from ..models import Site, choose_sites, read, require_sites, snapshot, survey
from ..report import Report
from .candidates import candidates, needs_the_whole, sensed, widest
from .mixing import Part, compose_parts, mix
from .options import Options
from .profiling import Profile, Tried
from .shrinking import heal_towards
from .steps import read_steps, refuse_of_one
from .yardstick import Yardstick

#: What the search takes beside the options of the verb.
OWN = ("tuning", "among", "finalists")
#: Bits of the codes in which structures are stored.
CODES = (8, 4)
#: Sizes of a profile curve, over the wanted one.
CURVE = (0.5, 0.75, 1.4)
#: Every so manieth batch is held out for tuning, where no tuning data is given.
HELD = 8
#: How many structures are tried in codes too, and how many compositions have curves.
SHORT = 6


@dataclass
class Whole:
    """A composition done to the whole model, and how far its outputs then are on tuning data."""

    parts: list[Part]
    method: str = ""
    bytes: int | None = None
    loss: float | None = None
    seconds: float = 0.0
    failed: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A row of the section "tried"."""
        name = self.method or "; ".join(str(part.steps) for part in self.parts)
        return {"steps": name} | {
            k: v for k, v in vars(self).items() if k not in ("parts", "method")
        }


def search(
    model: nn.Module,
    options: Options,
    *,
    tuning: Any = None,
    among: Sequence[Any] | None = None,
    finalists: int = 4,
) -> Report:
    """Compress in place by the composition that is nearest to the original on tuning data.

    Each candidate is first done to one block at the wanted size (`Profile`); the structures that
    do best there are tried in 8 and 4 bits too, and what has one number of bits for all weights
    with the most that fit; the best have curves over sizes, from which roles may get different
    compositions. The `finalists` best, the mixture, the best whose bits the sensitivity of the
    model can spread, and whatever goes from block to block or shares between blocks are done to the
    whole model and judged by the distance of its outputs to the original's on the tuning data: KL
    divergence of logits, else relative squared error. The choice depends on data and seed alone.

    tuning: data like `data` and apart from it; default: every eighth batch of `data`, which is
        then held out from calibration. among: keys of methods, or compositions; default: every
        method of areas compress and quantize that applies. The report's section "tried" has all.
    """
    started = perf_counter()
    refuse_of_one(options)
    if options.statistics is not None:
        raise ValueError("statistics= is of one method, and 'auto' gathers for many: leave it out")
    if finalists < 1:
        raise ValueError(f"finalists={finalists}: at least one composition is done to the whole")
    inputs, held = _split(options, tuning)
    every, left_out = survey(model, options.seed)
    found = require_sites(choose_sites(every, left_out, options.targets), left_out)
    ops = [read(model, site) for site in found]
    targeted = sum(op.bytes() for op in ops)
    most = budget_bytes(model, ops, keep=options.keep, size=options.size)
    keep = min(1.0, most / targeted)
    common = replace(options, data=inputs, tokenizer=None, keep=keep, size=None).unhealed()
    told = options.progress or (lambda stage, fraction: None)
    original = copy.deepcopy(model)
    yardstick = Yardstick(original, held)
    with unchanged_on_error(model, found), tempfile.TemporaryDirectory() as folder:
        told("profiling", 0.0)
        listed = [widest(steps, found, ops, most) for steps in candidates(among)]
        profiled = [steps for steps in listed if not needs_the_whole(steps, found)]
        profile = Profile(model, found, profiled, inputs, held, common, Path(folder))
        tried = _profile(profile, profiled, keep, among is None, told)
        chosen = _apart([t for t in _best(tried) if t.keep == keep])[:finalists]
        if not chosen and len(profiled) == len(listed):
            reasons = "; ".join(f"{t.label}: {t.failed}" for t in tried[:3])
            raise ValueError(f"no candidate applies at this size: {reasons}")
        finals = [t.steps for t in chosen] + [s for s in listed if needs_the_whole(s, found)]
        finals += [steps for t in chosen if (steps := sensed(t.steps))][:1]
        whole = [Whole([Part(steps, keep, options.targets)]) for steps in finals]
        if parts := mix(model, found, [t for t in _best(tried) if t.errors], most):
            whole.append(Whole(parts))
        whole_most = most + model_sizes(model)["bytes"] - targeted
        common = replace(common, progress=None)
        report = _choose(model, found, whole, whole_most, common, yardstick, told)
        heal_towards(model, original, inputs, options.healing(), options, report)
    report.method = f"auto: {report.method}"
    report.sections["tried"] = {
        "profile": [t.to_json() for t in tried], "whole": [t.to_json() for t in whole],
    }  # fmt: skip
    report.seconds["search"] = perf_counter() - started
    return report


def _choose(
    model: nn.Module, sites: Sequence[Site], whole: Sequence[Whole], most: int, options: Options,
    yardstick: Yardstick, told: Callable[[str, float], None],
) -> Report:  # fmt: skip
    """Do each to the whole model, and leave the nearest of those within `most` bytes of it."""
    best: tuple[float, Report, Callable[[], None]] | None = None
    undo = snapshot(model, sites)
    for number, one in enumerate(whole):
        told("trying", number / len(whole))
        started = perf_counter()
        try:
            report = compose_parts(model, one.parts, options)
            one.method, one.bytes = report.method, report.totals["model_bytes_after"]
            if one.bytes > most:
                raise ValueError(f"{one.bytes:,} bytes are over the budget of {most:,}")
            one.loss = yardstick(model)
            if not isfinite(one.loss):
                raise ValueError(f"the outputs' distance is {one.loss}")
            if best is None or one.loss < best[0]:
                best = one.loss, report, snapshot(model, sites)
        except (ValueError, RuntimeError) as error:
            one.failed = str(error)
        one.seconds = perf_counter() - started
        undo()
    if best is None:
        raise ValueError(f"no finalist could be done: {whole[0].failed}")
    best[2]()
    return best[1]


def _split(options: Options, tuning: Any) -> tuple[Batches, Batches]:
    if options.data is None:
        raise DataError("'auto' compares compositions on data: give data=")
    how = {
        "tokenizer": options.tokenizer, "count": options.count,
        "sequence_length": options.sequence_length, "batch_size": options.batch_size,
    }  # fmt: skip
    inputs = batches(options.data, **how)
    if tuning is not None:
        return inputs, batches(tuning, **how)
    if len(inputs) < 2:
        raise DataError("one batch cannot be split: give tuning=, or a smaller batch_size=")
    every = min(HELD, len(inputs))
    held = [batch for i, batch in enumerate(inputs) if i % every == every - 1]
    rest = [batch for i, batch in enumerate(inputs) if i % every != every - 1]
    return Batches(rest, inputs.notes), Batches(held)


def _profile(
    profile: Profile,
    listed: Sequence[Sequence[Any]],
    keep: float,
    in_codes: bool,
    told: Callable[[str, float], None],
) -> list[Tried]:
    """All candidates at the wanted size, the best structures `in_codes` too, the best on curves."""
    tried = []
    for number, steps in enumerate(listed):
        told("profiling", number / len(listed))
        tried.append(profile(steps, keep))
    last = [(one, read_steps(one.steps)[-1]) for one in _best(tried)]
    structures = [t for t, s in last if s.method.area == "compress" and not s.repairs]
    for one in structures[:SHORT] if in_codes else ():
        tried += [profile([*one.steps, {"gptq": {"bits": bits}}], keep) for bits in CODES]
    for one in _best(tried)[:SHORT]:
        tried += [profile(one.steps, size * keep) for size in CURVE if size * keep < 1]
    return tried


def _best(tried: Sequence[Tried]) -> list[Tried]:
    """The nearest first, and of equally near ones the simplest."""
    done = (t for t in tried if not t.failed)
    return sorted(done, key=lambda t: (t.distance, len(read_steps(t.steps))))


def _apart(tried: Sequence[Tried]) -> list[Tried]:
    """Without those that do the same as one before, such as a structure that had to cut nothing."""
    return [t for i, t in enumerate(tried) if t.distance not in {o.distance for o in tried[:i]}]
