"""Measures: how calibration statistics become a metric. Each names the statistics that it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..linalg import about_mean, add_ridge
from .metric import Metric

Statistics = Mapping[str, Tensor]


@dataclass(frozen=True)
class Measure:
    """A metric yet to be filled in: `measure(stats)` reads only the statistics in `needs`.

    `centred` says that it weighs errors about their mean, which is left to the bias.
    """

    needs: frozenset[str]
    read: Callable[[Statistics], Metric]
    centred: bool = False

    def __call__(self, stats: Statistics) -> Metric:
        return self.read(stats)


def euclidean() -> Measure:
    """||E||_F^2."""
    return Measure(frozenset(), lambda stats: Metric())


def second_moment(ridge: float = 0.0) -> Measure:
    """E ||E x||^2 over the calibration inputs: C = E[x x^T].

    `ridge` >= 0 adds ridge * trace(C) / n to the diagonal. An embedding's input is one-hot, so
    there row i of the error counts as often as token i occurs.
    """

    def read(stats: Statistics) -> Metric:
        if "row_counts" in stats:
            return Metric(left=_frequencies(stats["row_counts"]))
        return Metric(right=add_ridge(stats["gram"], ridge))

    return Measure(frozenset({"gram"}), read)


def covariance(ridge: float = 0.0) -> Measure:
    """The variance of E x: C = E[x x^T] - E[x] E[x]^T; the mean is left to the bias.

    For an embedding, whose table is then to be centred, the second moment is the variance.
    """

    def read(stats: Statistics) -> Metric:
        if "row_counts" in stats:
            return Metric(left=_frequencies(stats["row_counts"]))
        return Metric(right=add_ridge(about_mean(stats["gram"], stats["mean"]), ridge))

    return Measure(frozenset({"gram", "mean"}), read, centred=True)


def activation_scale(alpha: float = 0.5, of: str = "abs_mean") -> Measure:
    """||E diag(s)||_F^2 with s_j = E|x_j|^alpha, or sqrt(E x_j^2)^alpha for `of="rms"`.

    Inputs that never fire get the smallest scale that does, so that the scale can be undone.
    """
    if alpha < 0:
        raise ValueError(f"alpha={alpha}: the exponent of the activation scale is at least 0")
    if of not in ("abs_mean", "rms"):
        raise ValueError(f"of must be 'abs_mean' or 'rms', not {of!r}")
    name = "abs_mean" if of == "abs_mean" else "square_mean"
    power = 2 * alpha if of == "abs_mean" else alpha

    def read(stats: Statistics) -> Metric:
        return Metric(right=_floored(stats[name]) ** power)

    return Measure(frozenset({name}), read)


def fisher_rows(axis: str = "out") -> Measure:
    """sum_ij f_i E_ij^2 with f_i the sums of the Fisher information over the other axis.

    `axis` is what shares an importance: "out", the rows of W, or "in", its columns.
    """
    if axis not in ("out", "in"):
        raise ValueError(f"axis must be 'out' or 'in', not {axis!r}")

    def read(stats: Statistics) -> Metric:
        if axis == "out":
            return Metric(left=_floored(stats["fisher"].sum(1)))
        return Metric(right=_floored(stats["fisher"].sum(0)))

    return Measure(frozenset({"fisher"}), read)


def fisher() -> Measure:
    """sum_ij F_ij E_ij^2, F the diagonal Fisher information; the surrogate is its rank-1 part.

    The surrogate's scales are the row and column means of F, scaled to have F's overall mean.
    """

    def read(stats: Statistics) -> Metric:
        f = stats["fisher"]
        rows, columns = _floored(f.mean(1)), _floored(f.mean(0))
        return Metric(rows / f.mean().clamp_min(torch.finfo(f.dtype).tiny), columns, elementwise=f)

    return Measure(frozenset({"fisher"}), read)


def two_sided(ridge: float = 0.0, output_ridge: float = 0.0, centred: bool = False) -> Measure:
    """trace(A E C E^T): C the inputs' moment, A the second moment of the loss's output gradients.

    `ridge` and `output_ridge` >= 0 are relative to the mean eigenvalues of C and of A. C is the
    covariance where `centred`, the second moment otherwise.
    """
    inputs = covariance(ridge) if centred else second_moment(ridge)

    def read(stats: Statistics) -> Metric:
        return Metric(add_ridge(stats["output_gram"], output_ridge), inputs(stats).right)

    return Measure(inputs.needs | {"output_gram"}, read, centred)


def _frequencies(counts: Tensor) -> Tensor:
    return _floored(counts / counts.sum())


def _floored(scale: Tensor) -> Tensor:
    positive = scale[scale > 0]
    if positive.numel() == 0:
        return torch.ones_like(scale)
    return scale.clamp_min(positive.min())
