"""Adapters that let go of what a model has learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..calibration import load_statistics
from ..errors import SiteError
from ..linalg import truncated_svd
from ..models import Site
from ..operators import LowRank, Operator
from ..registry import Adaptation, Paper, method
from ..rewrites import Triples, rooted, split, wide
from ..rewrites.adapting import require_rank, trains
from .counts import low_rank


def _loku(w: Tensor, p: dict[str, Tensor], rank: int = 16, alpha: float = 32.0) -> Tensor:
    return w - alpha / rank * p["b"] @ p["a"] + alpha / rank * p["b_1"] @ p["a_1"]


@method(
    Paper(
        "Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs",
        "2408.06621",
        "the Fisher-weighted start, as in the authors' code, and in `corank.losses` the inverted "
        "hinge loss of section 3.3; the rest of the paper's equations were not read",
        "the start b0 a0 is held frozen beside W in place of a residual; the Fisher information is "
        "the mean of squared gradients of samples, and not of batches; without retain= importance "
        "is that for the forget set alone; the floor under the rows' weights is relative to the "
        "largest, the code's absolute",
    ),
    area="adapt",
    laws=("adapter", "preserves"),
    equation=_loku,
)
def loku(rank: int = 16, alpha: float = 32.0, retain: str | None = None) -> Adaptation:
    """The part of W that matters to what is to be forgotten trains: for unlearning.

    Calibrate on the forget set, and train with `corank.losses.inverted_hinge` on it plus the usual
    loss on the retain set. retain: a file that `statistics=` wrote, with "fisher" of the retain
    set, whose important weights are then spared.
    """
    scale = alpha / rank

    def prepare(sites: Sequence[Site], ops: Sequence[Operator]) -> Sequence[Site]:
        for site in sites:
            site.pool[f"loku {site.name}"] = site.stat("fisher")
        if retain is not None:
            others = [replace(site, stats={}) for site in sites]
            load_statistics(None, others, retain, {"fisher"})
            for site in others:
                forget = site.pool[f"loku {site.name}"]
                site.pool[f"loku {site.name}"] = forget / (site.stat("fisher") + 1e-5)
        return sites

    def weighted(op: Operator, site: Site) -> LowRank:
        require_rank(rank, site)
        w = wide(op)
        rows = site.pool[f"loku {site.name}"].to(w).sum(1).sqrt()
        if float(rows.max()) == 0:
            raise SiteError(
                site.where, "the loss does not depend on it", "Leave it out of the targets."
            )
        u, s, vh = truncated_svd(rows[:, None] * w, rank, generator=site.generator())[:3]
        b, a = rooted(Triples(u, s / scale, vh))
        return LowRank(trains(b / (rows + 1e-5 * rows.max())[:, None]), trains(a))

    return Adaptation(
        split(weighted, frozenset({"fisher"}), scale),
        low_rank(rank),
        low_rank(rank),
        prepare=prepare,
    )
