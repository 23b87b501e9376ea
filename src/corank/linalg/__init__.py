"""Pure functions on tensors: decompositions, ranks, and the low-rank solver of every metric."""

from .balance import balance
from .checks import DecompositionError
from .clustering import k_means
from .codebook import learned_codebook, nearest_centres
from .components import principal_components
from .dictionary import learned_dictionary, matching_pursuit, orthonormal_dictionary
from .gram import GramAccumulator
from .interpolative import complement, interpolation_errors, interpolative
from .patterns import n_of_m
from .polyadic import polyadic
from .projection import energy, project, projection_spectrum
from .pruned_dictionary import pruned_dictionary
from .randomized import Implicit, randomized_svd
from .ranks import rank_by_energy, rank_by_entropy, rank_by_tolerance, stable_rank
from .selection import SELECTIONS, by_leverage, by_volume, deim
from .shared_bases import SharedBases, shared_bases
from .shared_blocks import shared_blocks
from .sparsification import sparsify_spectrum
from .svd import SVDResult, exact_svd, truncated_svd
from .sylvester import shared_matrix
from .symmetric import about_mean, add_ridge, eigh_clamped, lower_root, root_psd, sqrt_psd
from .tensor_train import bond_sizes, common_center, tensor_train
from .triangular import ldu, pivoted_columns
from .two_sided import two_sided
from .wrapped_sparse import Wrapped, wrapped_sparse

__all__ = [
    "SELECTIONS",
    "DecompositionError",
    "GramAccumulator",
    "Implicit",
    "SVDResult",
    "SharedBases",
    "Wrapped",
    "about_mean",
    "add_ridge",
    "balance",
    "bond_sizes",
    "by_leverage",
    "by_volume",
    "common_center",
    "complement",
    "deim",
    "eigh_clamped",
    "energy",
    "exact_svd",
    "interpolation_errors",
    "interpolative",
    "k_means",
    "ldu",
    "learned_codebook",
    "learned_dictionary",
    "lower_root",
    "matching_pursuit",
    "n_of_m",
    "nearest_centres",
    "orthonormal_dictionary",
    "pivoted_columns",
    "polyadic",
    "principal_components",
    "project",
    "projection_spectrum",
    "pruned_dictionary",
    "randomized_svd",
    "rank_by_energy",
    "rank_by_entropy",
    "rank_by_tolerance",
    "root_psd",
    "shared_bases",
    "shared_blocks",
    "shared_matrix",
    "sparsify_spectrum",
    "sqrt_psd",
    "stable_rank",
    "tensor_train",
    "truncated_svd",
    "two_sided",
    "wrapped_sparse",
]
