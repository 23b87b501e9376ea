"""What a weight can be: leaves, combinators, and their skeletons."""

from .adapted import Adapted, additions
from .base import Base
from .block_diagonal import BlockDiagonal
from .blocks import BlockColumns, BlockRows
from .cayley import Cayley
from .circulant import Circulant
from .cost import dense_flops
from .cycle import Cycle
from .dense import Dense
from .diagonal import Diagonal
from .fourier import Fourier
from .frobenius import FrobeniusNormalised
from .gated import Gated
from .hadamard import Hadamard
from .kron import Kron
from .low_rank import LowRank
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
from .repeated import Repeated
from .rope import Rope
from .scaled import Scaled
from .skeleton import build, describe, storable
from .sparse import Sparse, sparsify
from .stretch import Stretch
from .sum import Sum
from .tempered import Tempered
from .tile_affine import TileAffine
from .toeplitz import Toeplitz
from .transpose import Transpose, adjoint, transpose
from .wavelet import Wavelet

__all__ = [
    "Adapted",
    "Base",
    "BlockColumns",
    "BlockDiagonal",
    "BlockRows",
    "Cayley",
    "Circulant",
    "ColumnNormalised",
    "Cycle",
    "Dense",
    "Diagonal",
    "Fourier",
    "FrobeniusNormalised",
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
    "Repeated",
    "Rope",
    "RowNormalised",
    "Scaled",
    "Sparse",
    "Stretch",
    "Sum",
    "Tempered",
    "TileAffine",
    "Toeplitz",
    "Transpose",
    "Wavelet",
    "additions",
    "adjoint",
    "build",
    "dense_flops",
    "describe",
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
