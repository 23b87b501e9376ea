"""What a weight can be: leaves, combinators, and their skeletons."""

from .adapted import Adapted, additions
from .base import Base
from .block_diagonal import BlockDiagonal
from .blocks import BlockColumns, BlockRows
from .cayley import Cayley
from .cost import dense_flops
from .dense import Dense
from .diagonal import Diagonal
from .gated import Gated
from .hadamard import Hadamard
from .kron import Kron
from .low_rank import LowRank
from .low_rank_form import low_rank_form, low_rank_update
from .normalised import ColumnNormalised, RowNormalised, normalise_columns, normalise_rows
from .observed import Observed
from .operator import Operator, trainable
from .packing import pack, unpack
from .permutation import Permutation
from .product import Product
from .quantise import normal_float, quantise_codebook, quantise_uniform
from .quantised import Quantised
from .rectified import Rectified
from .reflections import Reflections
from .scaled import Scaled
from .skeleton import build, describe, storable
from .sparse import Sparse, sparsify
from .sum import Sum
from .tempered import Tempered
from .transpose import Transpose, adjoint, transpose

__all__ = [
    "Adapted",
    "Base",
    "BlockColumns",
    "BlockDiagonal",
    "BlockRows",
    "Cayley",
    "ColumnNormalised",
    "Dense",
    "Diagonal",
    "Gated",
    "Hadamard",
    "Kron",
    "LowRank",
    "Observed",
    "Operator",
    "Permutation",
    "Product",
    "Quantised",
    "Rectified",
    "Reflections",
    "RowNormalised",
    "Scaled",
    "Sparse",
    "Sum",
    "Tempered",
    "Transpose",
    "additions",
    "adjoint",
    "build",
    "dense_flops",
    "describe",
    "low_rank_form",
    "low_rank_update",
    "normal_float",
    "normalise_columns",
    "normalise_rows",
    "pack",
    "quantise_codebook",
    "quantise_uniform",
    "sparsify",
    "storable",
    "trainable",
    "transpose",
    "unpack",
]
