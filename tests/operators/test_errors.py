from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from corank.operators import (
    Bitmap,
    BlockColumns,
    BlockDiagonal,
    BlockRows,
    Circulant,
    ColumnNormalised,
    Dense,
    Diagonal,
    Fourier,
    FrobeniusNormalised,
    Hadamard,
    LowRank,
    Operator,
    Permutation,
    Product,
    Quantised,
    Refined,
    Reflections,
    Rope,
    RowNormalised,
    SemiStructured,
    Sparse,
    Sum,
    Thinned,
    TileAffine,
    Toeplitz,
    Wavelet,
    build,
    describe,
    quantise_signs,
    quantise_uniform,
    sparsify,
    stack_rows,
    storable,
    thin,
)


def z(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


D = Dense(z(2, 3))
BYTES = z(2, 2, dtype=torch.uint8)
REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: Dense(z(3)), "Dense.weight must be a floating point matrix"),
    (lambda: Dense(z(2, 2, dtype=torch.int8)), "Dense.weight"),
    (lambda: Diagonal(z(2, 2)), "Diagonal.diagonal must be a floating point vector"),
    (lambda: LowRank(z(2, 3), z(2, 2)), "rank 3 and a has rank 2"),
    (lambda: LowRank(z(2, 3), z(3, 2), gate=z(2)), "LowRank.gate .* of 3 numbers"),
    (lambda: LowRank(z(2, 3), z(3, 2), mask=z(3)), "LowRank.mask must be bool"),
    (lambda: Sparse(z(2), torch.tensor([0]), (2, 2)), "2 values but 1 indices"),
    (lambda: Sparse(z(1), z(1), (2, 2)), "Sparse.index must be an int32 or int64"),
    (lambda: Sparse(z(1), z(1, dtype=torch.int32), (2**16, 2**16)), "needs int64"),
    (lambda: sparsify(z(2, 2), z(2, 2)), "kept must be bool"),
    (lambda: SemiStructured(z(2, 3), BYTES, 8, 4), "as many in every 4 of its 8 columns"),
    (lambda: SemiStructured(z(2, 4), BYTES, 10, 4), "as many in every 4 of its 10 columns"),
    (lambda: SemiStructured(z(2, 4), BYTES, 8, 4), r"places must be uint8 of shape \(2, 1\)"),
    (lambda: thin(z(1, 4), torch.eye(4).bool()[:1], 2), "as many in every 2 neighbours"),
    (lambda: Thinned(z(2, 6), 2, 4), "2 of every 4 do not fit rows of 6"),
    (lambda: Bitmap(z(2), BYTES[0], (3, 2)), r"mask must be uint8 of shape \(1,\)"),
    (lambda: BlockDiagonal(z(2, 2)), "BlockDiagonal.blocks"),
    (lambda: BlockDiagonal(z(3, 2, 2), 2), "count is 2, and there are 3 blocks"),
    (lambda: BlockDiagonal(Dense(z(5, 2)), 2), "must divide the 5 rows"),
    (lambda: BlockDiagonal(Dense(z(4, 2))), "must divide the 4 rows of its blocks, got None"),
    (lambda: stack_rows([quantise_uniform(z(2, 4), b) for b in (3, 4)]), "can be stacked"),
    (lambda: stack_rows([quantise_signs(z(2, 4))]), "can be stacked"),
    (lambda: Permutation(z(3)), "Permutation.index must be"),
    (lambda: Reflections(z(3)), "Reflections.u"),
    (lambda: Quantised(BYTES, z(2, 1), (2, 9), 4, 16), r"codes must be uint8 of shape \(2, 5\)"),
    (lambda: Quantised(BYTES, z(2, 1), (2, 4), 4, 2), r"scale must be \(2, 2\)"),
    (lambda: Quantised(BYTES, z(2, 1), (2, 4), 4, 4, zero=z(2, 1)), "zero must be uint8"),
    (lambda: Quantised(BYTES, z(2, 1), (2, 4), 4, 4, levels=z(17)), "at most 16"),
    (lambda: Quantised(BYTES, z(2, 1), (2, 4), 4, 0), "group must be"),
    (lambda: Sum(D, Dense(z(3, 2))), "Sum needs operators of one shape"),
    (lambda: Sum(), "Sum needs at least one"),
    (lambda: Refined(D, errors=()), "an error for each"),
    (lambda: Product(D, D), r"\(2, 3\) times \(2, 3\) does not fit"),
    (lambda: Hadamard(D, Dense(z(3, 2))), "one shape"),
    (lambda: RowNormalised(D, z(3)), "RowNormalised.m .* of 2 numbers"),
    (lambda: ColumnNormalised(D, z(2)), "ColumnNormalised.m .* of 3 numbers"),
    (lambda: FrobeniusNormalised(D, z(2)), "FrobeniusNormalised.m .* of 1 numbers"),
    (lambda: Circulant(z(2, 2)), "Circulant.column must be"),
    (lambda: Circulant(z(3), z(2)), "Circulant.gate .* of 3 numbers"),
    (lambda: Toeplitz(z(2, 2)), "Toeplitz.column must be"),
    (lambda: Fourier(z(2), torch.tensor([0]), (2, 2)), "2 values but 1 indices"),
    (lambda: Fourier(z(1), z(1), (2, 2)), "Fourier.index must be"),
    (lambda: TileAffine(D, z(2, 2)), "TileAffine.blocks"),
    (lambda: TileAffine(D, z(1, 2, 2)), "do not tile a weight of"),
    (lambda: Rope(2, 3), "Rope.size must be even"),
    (lambda: Wavelet(3, (1.0, 1.0)), "must both be even"),
    (lambda: BlockRows(D, Dense(z(2, 2))), "one input width"),
    (lambda: BlockColumns(D, Dense(z(3, 2))), "one output width"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_wrong_shapes_are_refused_with_the_argument(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_tensor_is_no_operator() -> None:
    for kind in (Sum, Product, BlockRows, BlockColumns):
        with pytest.raises(TypeError, match="wrap a tensor in Dense"):
            kind(z(2, 2))


def test_bad_skeletons_are_refused() -> None:
    good = describe(D)
    with pytest.raises(ValueError, match="unknown operator 'Denser'"):
        build(good | {"kind": "Denser"})
    with pytest.raises(ValueError, match="the arguments"):
        build(good | {"extra": 1})
    with pytest.raises(ValueError, match="unknown dtype"):
        build({"kind": "Dense", "weight": {"shape": [2, 2], "dtype": "float33"}})


def test_only_storable_operators_are_described() -> None:
    class Nameless(Operator):
        def __init__(self, kind: int) -> None:
            super().__init__()
            self.kind = kind

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def dense(self) -> torch.Tensor:
            return torch.eye(2)

        def flops(self, tokens: int) -> int:
            return 0

    with pytest.raises(TypeError, match="not storable"):
        describe(Nameless(1))
    with pytest.raises(TypeError, match="rename the argument"):
        storable(Nameless)


def test_a_parameter_is_shared_and_a_tensor_frozen() -> None:
    shared = nn.Parameter(torch.randn(2, 2))
    op = Dense(shared) + Dense(shared)
    assert op.operators[0].weight is op.operators[1].weight is shared
    assert not Dense(torch.randn(2, 2)).weight.requires_grad
