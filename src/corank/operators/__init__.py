"""What a weight can be: leaves, combinators, and their skeletons."""

from .activated import Activated
from .adapted import Adapted, additions
from .base import Base
from .bitmap import Bitmap, smallest_sparse
from .block_diagonal import BlockDiagonal
from .blocks import BlockColumns, BlockRows
from .bottleneck import Bottleneck
from .cayley import Cayley
from .circulant import Circulant
from .cost import dense_flops
from .cycle import Cycle
from .decoded import Decoded
from .dense import Dense
from .diagonal import Diagonal
from .double_pruned import DoublePruned
from .entrywise import Entrywise
from .foreign import Foreign
from .four_bit_planes import FourBitPlanes, in_planes
from .fourier import Fourier
from .frobenius import FrobeniusNormalised
from .gated import Gated
from .hadamard import Hadamard
from .khatri_rao import KhatriRao
from .kron import Kron
from .kron_sum import KronSum
from .learned_rounding import LearnedRounding
from .low_rank import LowRank
from .low_rank_form import low_rank_form, low_rank_update
from .mixture import Mixture
from .normalised import ColumnNormalised, RowNormalised, normalise_columns, normalise_rows
from .observed import Observed
from .on_grid import OnGrid, quantised, requantise
from .on_support import OnSupport
from .operator import Operator, is_linear, trainable
from .packing import pack, unpack
from .permutation import Permutation, exchange
from .polyadic import Polyadic
from .product import Product
from .quantise import (
    normal_float,
    quantise_codebook,
    quantise_scales,
    quantise_shifted,
    quantise_signs,
    quantise_ternary,
    quantise_uniform,
    stack_rows,
)
from .quantised import Quantised
from .refined import Refined
from .reflections import Reflections
from .repeated import Repeated
from .rope import Rope
from .rounded_inputs import RoundedInputs
from .routed import Routed
from .routed_rows import RoutedRows
from .row_sparse import RowSparse, column_type
from .scaled import Scaled
from .score_masked import ScoreMasked
from .seeded import Seeded, materialise
from .select import Select
from .selection import Selection
from .semi_structured import SemiStructured, place_bits, thin
from .settling import is_settled, settle
from .signs import Signs
from .skeleton import build, describe, storable
from .sketched import Sketched
from .sparse import Sparse, sparsify
from .standardised import Standardised
from .stretch import Stretch
from .sum import Sum
from .tempered import Tempered
from .tensor_experts import TensorExperts
from .tensor_train import TensorTrain
from .thinned import Thinned
from .tile_affine import TileAffine
from .tiled import Tiled
from .toeplitz import Toeplitz
from .transpose import Transpose, adjoint, transpose
from .tucker import Tucker
from .vector_bank import VectorBank
from .vector_quantised import VectorQuantised
from .wavelet import Wavelet
from .windowed import Windowed

__all__ = [
    "Activated",
    "Adapted",
    "Base",
    "Bitmap",
    "BlockColumns",
    "BlockDiagonal",
    "BlockRows",
    "Bottleneck",
    "Cayley",
    "Circulant",
    "ColumnNormalised",
    "Cycle",
    "Decoded",
    "Dense",
    "Diagonal",
    "DoublePruned",
    "Entrywise",
    "Foreign",
    "FourBitPlanes",
    "Fourier",
    "FrobeniusNormalised",
    "Gated",
    "Hadamard",
    "KhatriRao",
    "Kron",
    "KronSum",
    "LearnedRounding",
    "LowRank",
    "Mixture",
    "Observed",
    "OnGrid",
    "OnSupport",
    "Operator",
    "Permutation",
    "Polyadic",
    "Product",
    "Quantised",
    "Refined",
    "Reflections",
    "Repeated",
    "Rope",
    "RoundedInputs",
    "Routed",
    "RoutedRows",
    "RowNormalised",
    "RowSparse",
    "Scaled",
    "ScoreMasked",
    "Seeded",
    "Select",
    "Selection",
    "SemiStructured",
    "Signs",
    "Sketched",
    "Sparse",
    "Standardised",
    "Stretch",
    "Sum",
    "Tempered",
    "TensorExperts",
    "TensorTrain",
    "Thinned",
    "TileAffine",
    "Tiled",
    "Toeplitz",
    "Transpose",
    "Tucker",
    "VectorBank",
    "VectorQuantised",
    "Wavelet",
    "Windowed",
    "additions",
    "adjoint",
    "build",
    "column_type",
    "dense_flops",
    "describe",
    "exchange",
    "in_planes",
    "is_linear",
    "is_settled",
    "low_rank_form",
    "low_rank_update",
    "materialise",
    "normal_float",
    "normalise_columns",
    "normalise_rows",
    "pack",
    "place_bits",
    "quantise_codebook",
    "quantise_scales",
    "quantise_shifted",
    "quantise_signs",
    "quantise_ternary",
    "quantise_uniform",
    "quantised",
    "requantise",
    "settle",
    "smallest_sparse",
    "sparsify",
    "stack_rows",
    "storable",
    "thin",
    "trainable",
    "transpose",
    "unpack",
]
