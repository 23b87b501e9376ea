"""Weights as sparse combinations of the atoms of a dictionary."""

from __future__ import annotations

from functools import partial

from ..linalg import learned_dictionary, orthonormal_dictionary
from ..metrics import second_moment
from ..registry import Paper, Recipe, method
from ..rewrites import Fit, dictionary


@method(
    Paper(
        "COMPOT: Calibration-Optimized Matrix Procrustes Orthogonalization for Transformers "
        "Compression",
        "",
        "the abstract and a summary: orthonormal atoms in whitened coordinates, Procrustes and "
        "hard thresholding in turn from the SVD; the body was not read",
        "the one global cut of all layers' singular values is left to `allocate`; columns of the "
        "codes are stored as bytes or 16-bit integers",
    ),
    area="compress",
    laws=("sparse_codes",),
)
def compot(atoms_per_nonzero: float = 2.0, rounds: int = 20, ridge: float = 0.0) -> Recipe:
    """Each output combines a few of the layer's orthonormal atoms, the best for the inputs seen.

    atoms_per_nonzero: at least 1; the atoms over the numbers in a row of the codes.
    """
    fit = partial(orthonormal_dictionary, rounds=rounds)
    return _of(fit, atoms_per_nonzero, ridge)


@method(
    Paper(
        "CoSpaDi: Compressing LLMs via Calibration-Guided Sparse Dictionary Learning",
        "",
        "the abstract and a summary: K-SVD with orthogonal matching pursuit in whitened "
        "coordinates; the body was not read",
        "ten rounds, two atoms for each number in a row, and the start at singular vectors are "
        "this library's; one dictionary for each weight, none shared over a group",
    ),
    area="compress",
    laws=("sparse_codes",),
)
def cospadi(atoms_per_nonzero: float = 2.0, rounds: int = 10, ridge: float = 0.0) -> Recipe:
    """Each output combines a few of the layer's learned atoms, which need not be orthogonal.

    atoms_per_nonzero: at least 1; the atoms over the numbers in a row of the codes.
    """
    return _of(partial(learned_dictionary, rounds=rounds), atoms_per_nonzero, ridge)


def _of(fit: Fit, atoms_per_nonzero: float, ridge: float) -> Recipe:
    if atoms_per_nonzero < 1:
        raise ValueError(f"atoms_per_nonzero={atoms_per_nonzero} is below 1")
    return Recipe(dictionary(second_moment(ridge), fit, atoms_per_nonzero))
