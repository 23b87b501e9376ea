"""What a method composes, as data: recipes for compression, adapters and factorised training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ..allocation import Allocator
from ..calibration import Batches, Loss
from ..calibration.inputs import Watch
from ..control import Control
from ..models import Site
from ..operators import Operator
from ..rewrites import Family, Rewrite


def _nothing(sites: Sequence[Site]) -> int:
    return 0


Cascade = Literal["original", "compressed"]
Trains = Literal["factors", "norms", "rounding"]
Grouping = Callable[[Sequence[Site]], list[list[Site]]]


@dataclass(frozen=True)
class Paper:
    """Where a method comes from, what of it is implemented, and what differs on purpose."""

    title: str
    arxiv: str
    where: str
    deviations: str = ""


def each_alone(sites: Sequence[Site]) -> list[list[Site]]:
    """Every site is its own unit."""
    return [[site] for site in sites]


@dataclass(frozen=True)
class Healing:
    """How a compressed model is trained back towards the original; see `corank.heal`.

    loss = distillation * relative squared error of the blocks' features
         + channels * distance of their channels' means and variances
         + output * distance of the outputs
         + perturbation * mean over weights of max(0, max|W' - W| - epsilon)^2.
    """

    distillation: float = 1.0
    output: float = 1.0
    channels: float = 0.0
    perturbation: float = 0.0
    epsilon: float = 0.0


@dataclass(frozen=True)
class Look:
    """One more look at the model, after calibration, on the same data.

    `find(model, sites, data, loss)` leaves the statistics `finds` in each site, for the family to
    read, and the model as it was.
    """

    find: Callable[[nn.Module, Sequence[Site], Batches, Loss | None], None]
    finds: frozenset[str]


#: What errors relative to outputs are compared about the mean of.
MOMENTS = frozenset({"gram", "square_mean"})


@dataclass(frozen=True)
class Recipe:
    """One configured method: its parts, empty ones meaning 'as usual'.

    `family` makes the operators; `group` says which sites are rewritten together, and leaves out
    those that the method does not serve, which stay as they are; `allocate` is the default
    allocator or its name, and `rank` a default rank where the method has no budget; `cascade` takes
    each site's inputs from the model compressed so far; `trains` leaves only the low-rank factors
    of the rewritten sites trainable, only the norms, or only what decides how their codes are
    rounded; `heal` is the training that follows; `look` finds the statistics that calibration
    cannot collect. `delta`: the family rewrites W - W0, W0 being the weight of the model that this
    one was fine-tuned from, and the result stands beside W0 as an adapter.
    """

    family: Family
    group: Grouping = each_alone
    allocate: str | Allocator = "uniform"
    rank: int | None = None
    cascade: Cascade | None = None
    trains: Trains | None = None
    heal: Healing | None = None
    look: Look | None = None
    delta: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that calibration collects."""
        compared = MOMENTS & self.family.needs and self.allocate == "relative"
        wanted = self.family.needs | (frozenset({"mean"}) if compared else frozenset())
        return wanted - (self.look.finds if self.look else frozenset())


@dataclass(frozen=True)
class Adaptation:
    """One configured adapter: how each weight is rewritten, and what happens while it trains.

    `rewrite(base, site)` is W' as an operator over the `Base` that it is given; leaves that train
    require grad. `count(sites)` is how many numbers train at the sites by the paper's formula,
    known without weights; `frozen(sites)` how many frozen ones are stored beside them.
    `prepare(sites, ops)` runs once before, over all sites, for choices made between them (ranks,
    which sites): it leaves what it found in `site.pool`, and returns the sites to adapt.
    `watch()` makes what ends a pass over calibration data early, for one such pass.
    `controls` act while training. `also(model, sites)` are parameters of the model itself that
    train too (biases, norms).
    """

    rewrite: Rewrite
    count: Callable[[Sequence[Site]], int]
    frozen: Callable[[Sequence[Site]], int] = _nothing
    prepare: Callable[[Sequence[Site], Sequence[Operator]], Sequence[Site]] | None = None
    needs: frozenset[str] = frozenset()
    watch: Callable[[], Watch] | None = None
    controls: Sequence[Control] = ()
    also: Callable[[nn.Module, Sequence[Site]], list[nn.Parameter]] | None = None


@dataclass(frozen=True)
class Factorization:
    """One configured way to train a structured weight in the place of a dense one.

    `rewrite(op, site)` is the operator that stands in place of the weight; leaves that train
    require grad, and all get the weight's dtype. `count(sites)` is how many numbers train at the
    sites by the paper's formula, known without weights; `frozen(sites)` how many frozen ones are
    stored beside them. `prepare(sites, ops)` runs once before, over all sites, for choices made
    between them: it leaves what it found in `site.pool`, and returns the sites to rewrite.
    `controls` act while training.
    """

    rewrite: Rewrite
    count: Callable[[Sequence[Site]], int]
    frozen: Callable[[Sequence[Site]], int] = _nothing
    prepare: Callable[[Sequence[Site], Sequence[Operator]], Sequence[Site]] | None = None
    controls: Sequence[Control] = ()
