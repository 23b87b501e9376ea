"""What a composition does to one block, cheap enough to try them all."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn

from ..calibration import Batches, collect, save_statistics
from ..metrics import two_sided
from ..models import Site, read, snapshot
from ..operators.counting import count_each
from .composing import compose
from .options import Options
from .steps import read_steps
from .yardstick import Yardstick

#: Batches that steps after the first are calibrated on.
FEW = 16
#: Tuning batches that candidates are judged on.
JUDGED = 2


@dataclass
class Tried:
    """A composition at a size, and how it did on one block.

    `distance` is that of the model's outputs to the original's; `errors` and `bytes` are by role,
    without errors where the weights of several roles only make sense together.
    """

    steps: Sequence[Any]
    keep: float
    distance: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    failed: str | None = None

    @property
    def label(self) -> str:
        return " + ".join(step.label for step in read_steps(self.steps))

    def to_json(self) -> dict[str, Any]:
        """A row of the section "tried"."""
        return {
            "steps": self.label, "keep": self.keep, "distance": self.distance,
            "errors": self.errors, "seconds": self.seconds, "failed": self.failed,
        }  # fmt: skip


class Profile:
    """One block of a model, and one site of each role that the block lacks.

    Candidates are judged by how far the whole model's outputs move on a few tuning batches when
    only these weights are rewritten. Errors by role are those of the weights' own outputs, weighed
    by how the loss depends on them; they and bytes count for all weights of the role, in proportion
    to their numbers, as if the others were like these.
    """

    def __init__(
        self, model: nn.Module, sites: Sequence[Site], listed: Sequence[Sequence[Any]],
        inputs: Batches, held: Batches, options: Options, folder: Path,
    ) -> None:  # fmt: skip
        self.model, self.sites = model, one_of_each(sites)
        every, here = numbers_by_role(sites), numbers_by_role(self.sites)
        self.scale = {role: every[role] / here[role] for role in here}
        self.dense = {site.name: read(model, site).dense().detach().float() for site in self.sites}
        self.file = folder / "profile.safetensors"
        steps = [step for one in listed for step in read_steps(one)]
        needs = frozenset({"mean"}).union(*(step.recipe.needs for step in steps))
        collect(model, self.sites, needs | two_sided().needs, inputs, loss=options.loss)
        save_statistics(model, self.sites, self.file)
        self.yardstick = Yardstick(model, Batches(held[:JUDGED]), keep=True)
        names = "|".join(re.escape(site.name) for site in self.sites)
        self.options = replace(
            options, targets=f"re:^({names})$", statistics=self.file, allocate="uniform",
            data=Batches(inputs[:FEW]), progress=None, size=None,
        )  # fmt: skip

    def __call__(self, steps: Sequence[Any], keep: float) -> Tried:
        """Do the steps to the block, look, and undo them."""
        tried, started = Tried(steps, keep), perf_counter()
        undo = snapshot(self.model, self.sites)
        try:
            compose(self.model, steps, replace(self.options, keep=keep))
            tried.distance = self.yardstick(self.model)
            if not isfinite(tried.distance):
                raise ValueError(f"the outputs' distance is {tried.distance}")
            self._look(tried)
        except (ValueError, RuntimeError) as error:
            tried.failed = str(error)
        finally:
            undo()
        tried.seconds = perf_counter() - started
        return tried

    def _look(self, tried: Tried) -> None:
        """Bytes by role, and errors where each weight can be held against the one that it was."""
        families = [step.recipe.family for step in read_steps(tried.steps)]
        alone = all(family.joint is None for family in families)
        stored: dict[str, int] = defaultdict(int)
        errors: dict[str, float] = defaultdict(float)
        ops = [read(self.model, site) for site in self.sites]
        for site, op, (_, bytes_) in zip(self.sites, ops, count_each(ops), strict=True):
            stored[site.role] += bytes_
            if alone:
                measure = two_sided(centred=families[0].of(site).measure.centred)
                change = self.dense[site.name] - op.dense().detach().float()
                errors[site.role] += self.scale[site.role] * float(measure(site.stats).loss(change))
        tried.bytes = {role: round(self.scale[role] * held) for role, held in stored.items()}
        tried.errors = dict(errors)


def numbers_by_role(sites: Sequence[Site]) -> dict[str, int]:
    """How many numbers the dense weights of each role have."""
    found: dict[str, int] = defaultdict(int)
    for site in sites:
        found[site.role] += site.shape[0] * site.shape[1]
    return found


def one_of_each(sites: Sequence[Site]) -> list[Site]:
    """The sites of the middle block, and one of each role that it does not have."""
    layers = sorted({site.layer for site in sites if site.layer is not None})
    middle = layers[len(layers) // 2] if layers else None
    found = [site for site in sites if middle is not None and site.layer == middle]
    for site in sites:
        if site.role not in {one.role for one in found}:
            found.append(site)
    return found
