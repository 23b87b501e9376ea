"""Codes with a few numbers in floats beside them, those that matter most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..calibration import Batches, Loss
from ..metrics import euclidean, second_moment
from ..models import Site
from ..probes import choose_detached, super_weights
from ..probes.significance import expected
from ..quantizers import clipped, round_to_nearest
from ..registry import Look, Paper, Recipe, method
from ..rewrites.detached import OUTLIERS, SIGNIFICANT, detached
from .bits import Bits, with_bits


@method(
    Paper(
        "The Super Weight in Large Language Models",
        "2411.07191",
        "the abstract and reviews: one forward pass, spikes of the MLPs' second matrices' inputs "
        "and outputs, clipping by standard deviations, restoring the super weight; the body was "
        "not read",
        "a spike is `spike` times the median over the layers, and the weight alone must give more "
        "than half of it; the reach of the clipping is chosen for each layer by its outputs' "
        "error, not for the model by its loss; a block is a group of neighbours in a row; super "
        "activations are not held, since activations are not quantised",
    ),
    area="quantize",
    laws=("detaches",),
)
def super_weight(
    bits: Bits = 4,
    group: int = 1024,
    deviations: Sequence[float] = (3.0, 4.0, 6.0, 9.0, 14.0, 20.0),
    spike: float = 10.0,
    most: int = 6,
) -> Recipe:
    """Super weights stay floats, other outliers are clipped, and groups can be large.

    deviations: how far from the mean clipping may begin, besides not at all. spike: above 1, how
    much a super weight's input and output stand out. most: runs of the first batch that look for
    them. A dry run, which looks at nothing, counts none.
    """
    error = second_moment()

    def find(model: nn.Module, sites: Sequence[Site], data: Batches, loss: Loss | None) -> None:
        found = super_weights(model, sites, data, spike, most)
        for site in sites:
            places = [row * site.shape[1] + column for row, column in found[site.name]]
            site.stats[OUTLIERS] = torch.tensor(places, dtype=torch.long)

    return with_bits(
        bits,
        lambda b: detached(
            clipped(round_to_nearest(b, group), deviations, error), lambda site: 0, error
        ),
        look=Look(find, frozenset({OUTLIERS})),
    )


@method(
    Paper(
        "Identifying Sensitive Weights via Post-quantization Integral",
        "2503.01901",
        "the abstract and the caption of figure 1, the pipeline: pre-quantise, outlier ratios "
        "layer by layer, quantise again, recover significant weights step by step; algorithms 1 "
        "and 2 were not read",
        "codes are rounded to nearest; ratios are found greedily, by how much of sum |g| |W' - W| "
        "each place spares, g the gradient along the way from W to W'; the integral is signed, "
        "at `points` midpoints, with all layers moving together; shares and steps are our choice",
    ),
    area="quantize",
    laws=("detaches",),
)
def requant(
    bits: int = 4,
    group: int = 64,
    outliers: float = 0.0045,
    significant: float = 0.0005,
    points: int = 4,
    steps: int = 2,
) -> Recipe:
    """Outliers, and the weights whose rounding costs most loss, as sparse floats beside the codes.

    outliers, significant: shares of all weights, at least 0 and below 1 together. points: where the
    gradient is taken on the way to the codes, each a pass over the data with a loss. steps: in how
    many parts the significant weights are found.
    """
    if min(outliers, significant) < 0 or outliers + significant >= 1:
        raise ValueError(
            f"outliers={outliers} and significant={significant} must be at least 0 and below 1 "
            "together"
        )
    if points < 1 or steps < 1:
        raise ValueError(f"points={points} and steps={steps} must be at least 1")
    quantizer, shares = round_to_nearest(bits, group), (outliers, significant)

    def find(model: nn.Module, sites: Sequence[Site], data: Batches, loss: Loss | None) -> None:
        choose_detached(model, sites, data, loss, quantizer, shares, points, steps)

    names = (OUTLIERS, SIGNIFICANT)
    family = detached(quantizer, lambda site: expected(site, shares), euclidean(), names)
    return Recipe(family, look=Look(find, frozenset(names)))
