"""Rewrites, Operator -> Operator, and families of them indexed by a size."""

from .adapting import Delta, between, plus, split, zero_low_rank
from .banded import banded
from .blocks import block_truncation, shared_truncation
from .choosing import any_of, only
from .compensation import compensation
from .decomposed import Triples, all_triples, cut, leading, rooted, trailing, wide
from .dictionary import Fit, dictionary
from .factorwise import count_factorwise, factorwise
from .fresh import fresh
from .iterated import iterated_signs
from .latent import quantised_factors
from .menu import Menu, Size, menu_of_ranks
from .polyadics import polyadic_sum
from .quantisation import quantisation
from .rewrite import Counts, Family, Rewrite, Unit, by_site
from .sharing import shared_mean
from .signed import signed, signed_factors
from .skeletons import skeleton
from .smoothing import smoothing
from .trains import common_trains, train_cores
from .truncation import spectrum, truncation
from .utilised import utilised

__all__ = [
    "Counts",
    "Delta",
    "Family",
    "Fit",
    "Menu",
    "Rewrite",
    "Size",
    "Triples",
    "Unit",
    "all_triples",
    "any_of",
    "banded",
    "between",
    "block_truncation",
    "by_site",
    "common_trains",
    "compensation",
    "count_factorwise",
    "cut",
    "dictionary",
    "factorwise",
    "fresh",
    "iterated_signs",
    "leading",
    "menu_of_ranks",
    "only",
    "plus",
    "polyadic_sum",
    "quantisation",
    "quantised_factors",
    "rooted",
    "shared_mean",
    "shared_truncation",
    "signed",
    "signed_factors",
    "skeleton",
    "smoothing",
    "spectrum",
    "split",
    "trailing",
    "train_cores",
    "truncation",
    "utilised",
    "wide",
    "zero_low_rank",
]
