"""Weights as sparse combinations of the atoms of a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from ..linalg import exact_svd, learned_dictionary, orthonormal_dictionary, pruned_dictionary
from ..metrics import second_moment
from ..registry import Paper, Recipe, method
from ..rewrites import Held, Solve, any_of, dictionary, evenly, relative_distance


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


#: ROCKET's shares of the numbers to keep, which it takes in steps of a twentieth, and the share of
#: codes that are pruned too many at first.
SHARES = [i / 20 for i in range(1, 20)]
GIVEN_BACK = 0.005


@method(
    Paper(
        "ROCKET: Rapid Optimization via Calibration-guided Knapsack Enhanced Truncation for "
        "Efficient Model Compression",
        "2602.11008",
        "the authors' code (mts-ai/ROCKET): eigenvectors in whitened coordinates, the mask by a "
        "geometric mean of scores, over-pruning and recovery, the ridge fit, the formula for the "
        "atoms, the knapsack over shares and atoms for each nonzero of the relative distance of "
        "the weights, and the bound on it",
        "the knapsack is over bytes, indices included, and knows the error of what is built, where "
        "the code profiles a simpler factorisation; shares go down to a twentieth and up to all "
        "but one, where the code has 0.3 to 0.95, and at the least the bound binds nothing; five "
        "values of atoms for each nonzero, not 21; codes without a zero are stored dense and "
        "none of them is pruned",
    ),
    area="compress",
    laws=("knapsack",),
)
def rocket(
    atoms_per_nonzero: Sequence[float] = (1.0, 1.5, 2.0, 2.5, 3.0),
    steps: int = 0,
    ridge: float = 0.0,
) -> Recipe:
    """Each output combines a few of the principal atoms, how few and of how many by a knapsack.

    atoms_per_nonzero: what the knapsack chooses from, each at least 1; for 1 it is the SVD.
    steps: of Adam on atoms and codes after their closed form, at each size tried; the code has 100.
    """
    if not atoms_per_nonzero or min(atoms_per_nonzero) < 1:
        raise ValueError(f"atoms_per_nonzero={atoms_per_nonzero}: name at least one, none below 1")
    measure = second_moment(ridge)
    fit = partial(_principal, steps)
    families = {
        q: dictionary(
            measure, fit, partial(_recovered, q), partial(_by_share, q), relative_distance
        )
        for q in sorted(set(atoms_per_nonzero))
    }
    return Recipe(any_of(families), allocate="rocket")


def _principal(steps: int, matrix: Tensor, back: Tensor) -> Solve:
    atoms = exact_svd(matrix).vh

    def solve(k: int, held: Held) -> tuple[Tensor, Tensor]:
        lengths = (atoms[:k] @ back).norm(dim=1)
        return pruned_dictionary(matrix, atoms[:k], lengths, *held, steps)

    return solve


def _recovered(q: float, out: int, atoms: int) -> Held:
    if q == 1:
        return Held(atoms)
    in_row = max(1, int(atoms * (1 / q - GIVEN_BACK)))
    return Held(in_row, min(max(1, int(out * atoms * GIVEN_BACK)), out * (atoms - in_row)))


def _by_share(q: float, out: int, into: int) -> list[int]:
    """k with k in + k / q out numbers, for every share of the weight's."""
    wanted = {int(share * out * into / (into + out / q)) for share in SHARES}
    return sorted(k for k in wanted if 1 <= k <= min(out, into))


def _of(
    fit: Callable[[Tensor, int, int], tuple[Tensor, Tensor]],
    atoms_per_nonzero: float,
    ridge: float,
) -> Recipe:
    if atoms_per_nonzero < 1:
        raise ValueError(f"atoms_per_nonzero={atoms_per_nonzero} is below 1")

    def alone(matrix: Tensor, back: Tensor) -> Solve:
        return lambda k, held: fit(matrix, k, held.in_row)

    return Recipe(dictionary(second_moment(ridge), alone, evenly(atoms_per_nonzero)))
