"""Probes and decompositions that are methods in their own right."""

from __future__ import annotations

from ..linalg import randomized_svd
from ..probes import spectrum
from ..registry import Paper, method

method(
    Paper(
        "Finding structure with randomness; Randomized block Krylov methods",
        "0909.4061",
        "algorithms 4.3, 4.4 and 5.1; block Krylov of Musco and Musco, 1504.05477, algorithm 2",
    ),
    area="linalg",
)(randomized_svd)

method(
    Paper("Singular values and ranks of a weight", "", "Roy and Vetterli, EUSIPCO 2007, for one"),
    area="analyze",
)(spectrum)
