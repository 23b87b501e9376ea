"""What an error W - What costs: the loss itself, and the separable moments solvers can use."""

from .measures import (
    Measure,
    activation_scale,
    covariance,
    euclidean,
    fisher,
    fisher_rows,
    second_moment,
    two_sided,
)
from .metric import Metric

__all__ = [
    "Measure",
    "Metric",
    "activation_scale",
    "covariance",
    "euclidean",
    "fisher",
    "fisher_rows",
    "second_moment",
    "two_sided",
]
