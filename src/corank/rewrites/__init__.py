"""Rewrites, Operator -> Operator, and families of them indexed by a size."""

from .adapting import Delta, between, plus, split, zero_low_rank
from .banded import banded
from .blocks import block_truncation, shared_truncation
from .building import relative_distance
from .choosing import any_of, only
from .compensation import compensation
from .cuttable import is_mixer, layout_of
from .decomposed import Triples, all_triples, cut, leading, rooted, trailing, wide
from .dense_sparse import dense_sparse
from .dictionary import Fit, Held, Solve, dictionary, evenly
from .factorwise import count_factorwise, factorwise
from .fresh import fresh
from .head_sharing import head_sharing
from .interpolation import interpolation
from .iterated import iterated_signs
from .latent import quantised_factors
from .menu import Menu, Size, menu_of_ranks
from .merging import merging
from .narrowing import Importance, by_leverage, by_magnitude, narrowing
from .polyadics import polyadic_sum
from .quantisation import quantisation
from .rewrite import Biases, Counts, Family, Rewrite, Unit, by_site
from .semi_structured import wrapped
from .shared_bases import basis_mixture
from .sharing import shared_mean
from .signed import signed, signed_factors
from .skeletons import skeleton
from .smoothing import smoothing
from .sparsification import sparsification
from .state_space import shorter_states, silenced
from .trains import common_trains, train_cores
from .transposed import transposed_sharing
from .truncation import spectrum, truncation
from .utilised import utilised
from .values import shared_values

__all__ = [
    "Biases",
    "Counts",
    "Delta",
    "Family",
    "Fit",
    "Held",
    "Importance",
    "Menu",
    "Rewrite",
    "Size",
    "Solve",
    "Triples",
    "Unit",
    "all_triples",
    "any_of",
    "banded",
    "basis_mixture",
    "between",
    "block_truncation",
    "by_leverage",
    "by_magnitude",
    "by_site",
    "common_trains",
    "compensation",
    "count_factorwise",
    "cut",
    "dense_sparse",
    "dictionary",
    "evenly",
    "factorwise",
    "fresh",
    "head_sharing",
    "interpolation",
    "is_mixer",
    "iterated_signs",
    "layout_of",
    "leading",
    "menu_of_ranks",
    "merging",
    "narrowing",
    "only",
    "plus",
    "polyadic_sum",
    "quantisation",
    "quantised_factors",
    "relative_distance",
    "rooted",
    "shared_mean",
    "shared_truncation",
    "shared_values",
    "shorter_states",
    "signed",
    "signed_factors",
    "silenced",
    "skeleton",
    "smoothing",
    "sparsification",
    "spectrum",
    "split",
    "trailing",
    "train_cores",
    "transposed_sharing",
    "truncation",
    "utilised",
    "wide",
    "wrapped",
    "zero_low_rank",
]
