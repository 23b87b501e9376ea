"""Cells for models of one's own, listed as methods: see `corank.cells`."""

from __future__ import annotations

from ..cells import AutonomousExperts, LowRankGRUCell, MultilinearExperts, scatterbrain
from ..registry import Paper, method

CELL = ("cell",)

method(
    Paper(
        "Scatterbrain: Unifying Sparse and Low-rank Attention Approximation",
        "2110.15343",
        "the estimator of the abstract; parts of the authors' code for local attention were seen, "
        "the paper's sections were not read",
        "Hashing is balanced, by sorting random projections of vectors lifted as in SMYRF (at "
        "second hand); a pair that several hashes find is corrected once. The weights, not the "
        "quotient that normalises them, are unbiased.",
    ),
    area="train",
    laws=CELL,
)(scatterbrain)

method(
    Paper(
        "Autonomy-of-Experts Models",
        "2501.13074",
        "the abstract, and the selection as a third party's code has it; the sections were not "
        "read",
        "The inner size is the caller's, where the paper widens it until the parameters are those "
        "of the mixture it is compared with. No loss that balances the load.",
    ),
    area="train",
    laws=CELL,
    key="aoe",
)(AutonomousExperts)

method(
    Paper(
        "Multilinear Mixture of Experts: Scalable Expert Specialization through Factorization",
        "2402.12550",
        "equations 2 and 4 through the authors' code; the Tucker form from the abstract of its "
        "first version, its start not found",
        "Gates are normalised over the experts (the code's 'ln'), not over the batch. One level of "
        "experts. The Tucker core starts uniform within 1 / rank.",
    ),
    area="train",
    laws=CELL,
    key="mmoe",
)(MultilinearExperts)

method(
    Paper(
        "Low-rank passthrough neural networks",
        "1603.03116",
        "the authors' code of the low-rank and low-rank plus diagonal GRU, with its start; the "
        "highway layer from the paper's description, not its code",
        "The highway layer is corank.cells.LowRankHighway; its gate's bias starts at -1, a usual "
        "choice. No recurrent dropout, and no weight normalisation of the LSTM.",
    ),
    area="train",
    laws=CELL,
    key="low_rank_passthrough",
)(LowRankGRUCell)
