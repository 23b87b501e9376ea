"""What a composition does to one block: its error role by role, cheap enough to try them all."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn

from ..calibration import Batches, collect, save_statistics
from ..metrics import two_sided
from ..models import Site, read, snapshot
from .composing import compose
from .shrinking import Options
from .steps import read_steps

#: Batches that steps after the first are calibrated on.
FEW = 16


@dataclass
class Tried:
    """A composition, and how it did: `errors` and `bytes` by role."""

    steps: Sequence[Any]
    keep: float
    errors: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    failed: str | None = None

    @property
    def label(self) -> str:
        return " + ".join(step.label for step in read_steps(self.steps))

    @property
    def error(self) -> float:
        """The sum over roles."""
        return sum(self.errors.values())

    def to_json(self) -> dict[str, Any]:
        """A row of the section "tried"."""
        return {
            "steps": self.label, "keep": self.keep, "errors": self.errors,
            "seconds": self.seconds, "failed": self.failed,
        }  # fmt: skip


class Profile:
    """One block of a model with all the statistics that the candidates read.

    Errors are those of outputs, weighed by how much the model's loss depends on them: they count
    for all layers of the role, as if those were like this one.
    """

    def __init__(
        self, model: nn.Module, sites: Sequence[Site], listed: Sequence[Sequence[Any]],
        inputs: Batches, options: Options, folder: Path,
    ) -> None:  # fmt: skip
        self.model, self.sites = model, one_of_each(sites)
        self.counts = Counter(site.role for site in sites)
        self.dense = {site.name: read(model, site).dense().detach().float() for site in self.sites}
        self.file = folder / "profile.safetensors"
        every = [step for steps in listed for step in read_steps(steps)]
        needs = frozenset({"mean"}).union(*(step.recipe.needs for step in every))
        collect(model, self.sites, needs | two_sided().needs, inputs, loss=options.loss)
        save_statistics(model, self.sites, self.file)
        names = "|".join(re.escape(site.name) for site in self.sites)
        self.options = replace(
            options, targets=f"re:^({names})$", statistics=self.file, allocate="uniform",
            data=Batches(inputs[:FEW]), heal_minutes=0.0, progress=None, size=None,
        )  # fmt: skip

    def __call__(self, steps: Sequence[Any], keep: float) -> Tried:
        """Do the steps to the block, look, and undo them."""
        tried, started = Tried(steps, keep), perf_counter()
        undo = snapshot(self.model, self.sites)
        try:
            compose(self.model, steps, replace(self.options, keep=keep))
            centred = read_steps(steps)[0].recipe.family
            errors: dict[str, float] = defaultdict(float)
            stored: dict[str, int] = defaultdict(int)
            for site in self.sites:
                op = read(self.model, site)
                measure = two_sided(centred=centred.of(site).measure.centred)
                change = self.dense[site.name] - op.dense().detach().float()
                count = self.counts[site.role]
                errors[site.role] += count * float(measure(site.stats).loss(change))
                stored[site.role] += count * op.bytes()
            tried.errors, tried.bytes = dict(errors), dict(stored)
        except (ValueError, RuntimeError) as error:
            tried.failed = str(error)
        finally:
            undo()
        tried.seconds = perf_counter() - started
        return tried


def one_of_each(sites: Sequence[Site]) -> list[Site]:
    """The sites of the middle block, and one of each role that it does not have."""
    layers = sorted({site.layer for site in sites if site.layer is not None})
    middle = layers[len(layers) // 2] if layers else None
    found = [site for site in sites if middle is not None and site.layer == middle]
    for site in sites:
        if site.role not in {one.role for one in found}:
            found.append(site)
    return found
