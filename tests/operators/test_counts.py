"""Numbers, bytes and floating point operations, against formulas written out."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from corank.operators import (
    BlockDiagonal,
    Circulant,
    Cycle,
    Dense,
    Diagonal,
    Fourier,
    FrobeniusNormalised,
    Hadamard,
    Kron,
    LowRank,
    Operator,
    Permutation,
    Product,
    Refined,
    Reflections,
    Repeated,
    Rope,
    Stretch,
    Sum,
    TileAffine,
    Toeplitz,
    Wavelet,
    dense_flops,
    normal_float,
    normalise_rows,
    quantise_codebook,
    quantise_uniform,
    sparsify,
    transpose,
)
from corank.operators.counting import count_each


def low_rank(out: int, into: int, rank: int) -> LowRank:
    return LowRank(torch.randn(out, rank), torch.randn(rank, into))


def dense(out: int, into: int) -> Dense:
    return Dense(torch.randn(out, into))


T = 7
FLOPS: dict[str, tuple[Operator, int]] = {
    "dense": (dense(5, 6), 2 * T * 30),
    "diagonal": (Diagonal(torch.randn(5)), T * 5),
    "low_rank": (low_rank(5, 6, 2), 2 * T * 2 * 11),
    "gated": (LowRank(torch.randn(5, 2), torch.randn(2, 6), torch.randn(2)), T * (44 + 2)),
    "block_diagonal": (BlockDiagonal(torch.randn(3, 2, 4)), 2 * T * 24),
    "block_diagonal_of_codes": (
        BlockDiagonal(quantise_uniform(torch.randn(6, 4)), 3),
        2 * 24 + 2 * T * 24,
    ),
    "permutation": (Permutation(torch.randperm(5)), 0),
    # q first: (2 x 5 by 3 columns), then p on 2 columns; from the left: 5 columns, then 4
    "kron": (Kron(dense(4, 3), dense(2, 5)), 2 * T * (3 * 10 + 2 * 12)),
    "kron_left": (Kron(dense(1, 3), dense(5, 2)), 2 * T * (2 * 3 + 1 * 10)),
    "reflections": (
        Reflections(torch.randn(3, 8)),
        2 * 9 * 8 + 9 + T * (2 * 2 * 3 * 8 + 2 * 9 + 8),
    ),
    "scaled_low_rank": (2.0 * low_rank(5, 6, 2), 2 * T * 22 + T * 2),
    "scaled_wide": (2.0 * dense(5, 6), 2 * T * 30 + T * 5),
    "sum": (dense(5, 6) + low_rank(5, 6, 2), 2 * T * (30 + 22) + T * 5),
    "refined": (
        Refined(dense(5, 6), low_rank(5, 6, 2), errors=(1.0, 0.5)),
        2 * 2 * 30 + 30 + 2 * T * 30,
    ),
    "product": (dense(5, 6) @ dense(6, 2), 2 * T * (30 + 12)),
    "hadamard": (Hadamard(low_rank(20, 30, 2), low_rank(20, 30, 3)), 6 * 50 * (1 + 2 * T)),
    "hadamard_dense": (Hadamard(dense(5, 6), dense(5, 6)), 30 + 2 * T * 30),
    "rows": (normalise_rows(dense(5, 6)), 2 * T * 30 + T * 5 + 2 * 30 + 2 * 5),
    # |w|^2, the factors' own product, w a.T, and the rest row by row
    "rows_low_rank": (
        normalise_rows(dense(5, 6) + low_rank(5, 6, 2)),
        2 * T * (30 + 22)
        + T * 5
        + T * 5
        + (2 * 30 + 2 * 30 * 2 + 2 * 5 + 2 * 4 * (6 + 5) + 2 * 2 * 5)
        + 2 * 5,
    ),
    "frobenius": (
        FrobeniusNormalised(dense(5, 6), torch.randn(1)),
        2 * T * 30 + T * 5 + 2 * 30 + 5 + 2,
    ),
    "cycle": (Cycle((9, 4)), T * 5),
    "stretch": (Stretch((9, 4)), T * 5),
    "repeated": (Repeated(dense(2, 3), 4), 2 * T * 24),
    "rope": (Rope(2, 4), 3 * T * 8),
    "wavelet": (Wavelet(8, (0.5,) * 4), 2 * T * 8 * 4),
    "tiles": (TileAffine(dense(4, 6), torch.randn(2, 2, 2)), 6 * 24 + 2 * T * 24),
    # transforms of 8 numbers at 5/2 8 log2 8, and 5 complex products
    "circulant": (Circulant(torch.randn(8)), (2 * T + 1) * 60 + 6 * T * 5),
    "skew": (Circulant(torch.randn(4), skew=True), T * 4 + (2 * T + 1) * 60 + 6 * T * 5),
    "toeplitz": (Toeplitz(torch.randn(4)), (2 * T + 1) * 60 + 6 * T * 5),
    "fourier": (
        Fourier(torch.randn(3), torch.arange(3), (8, 8)),
        3 + T * (2 * 60 + 4 * 3),
    ),
    "sparse": (sparsify(torch.ones(10, 10), torch.eye(10).bool()), 2 * T * 10),
    "sparse_full": (sparsify(torch.ones(2, 2), torch.eye(2).bool()), 2 * T * 4),
    "quantised": (quantise_uniform(torch.randn(5, 6)), 2 * 30 + 2 * T * 30),
    "transpose": (transpose(low_rank(5, 6, 2)), 2 * T * 2 * 11),
}


@pytest.mark.parametrize("name", FLOPS)
def test_flops(name: str) -> None:
    op, expected = FLOPS[name]
    assert op.flops(T) == expected


def test_numbers_and_bytes_hold_codes_scales_indices_and_masks() -> None:
    weight = torch.randn(6, 20)
    for bits in range(2, 9):
        q = quantise_uniform(weight, bits, 8, symmetric=False)
        assert q.numel() == 120 + 18 + 18
        assert q.bytes() == 6 * math.ceil(20 * bits / 8) + 18 * 4 + 18
    nf4 = quantise_codebook(weight.bfloat16(), normal_float(4), 10)
    assert nf4.bytes() == 6 * 10 + 12 * 2 + 16 * 2
    sparse = sparsify(weight, weight > 0)
    kept = int((weight > 0).sum())
    assert (sparse.numel(), sparse.bytes()) == (kept, 8 * kept)
    mask = torch.ones(2, dtype=torch.bool)
    op = LowRank(torch.randn(6, 2), torch.randn(2, 20), mask=mask)
    assert (op.numel(), op.bytes()) == (52, 4 * 52 + 2)


def test_a_leaf_or_an_operator_held_twice_counts_once() -> None:
    op = dense(4, 4)
    assert (op @ op).numel() == (op + Dense(op.weight)).numel() == 16


def test_product_associates_as_the_matrix_chain_would() -> None:
    sizes = [30, 35, 15, 5, 10, 20, 25]  # the textbook's chain: 15125 multiplications
    chain = Product(*(dense(m, n) for m, n in itertools.pairwise(sizes)))
    assert dense_flops(chain) == 2 * 15125
    two = Product(low_rank(100, 100, 2), low_rank(100, 100, 2))
    assert dense_flops(two) == 2 * (2 * 2 * 100 + 2 * 2 * 100 + 100 * 100 * 2)
    structured = Product(
        Permutation(torch.randperm(100)), Diagonal(torch.randn(100)), dense(100, 9)
    )
    assert dense_flops(structured) == 100 * 9
    right = Product(dense(9, 100), Permutation(torch.randperm(100)))
    assert dense_flops(right) == 0
    for op in (chain, two, right):
        with FlopCounterMode(display=False) as counter:
            op.dense()
        assert counter.get_total_flops() == dense_flops(op)


def test_counted_products_are_those_torch_runs() -> None:
    for name in ("dense", "low_rank", "block_diagonal", "kron", "kron_left", "product"):
        op, expected = FLOPS[name]
        with FlopCounterMode(display=False) as counter:
            op(torch.randn(T, op.shape[1]))
        assert counter.get_total_flops() == expected, name
    op = Sum(dense(5, 6), low_rank(5, 6, 2))
    with FlopCounterMode(display=False) as counter:
        op(torch.randn(T, 6))
    assert counter.get_total_flops() == op.flops(T) - T * 5


def test_leaves_shared_between_operators_are_billed_once() -> None:
    first, q = dense(4, 4), quantise_uniform(torch.randn(4, 16), 4, 16)
    mask = torch.ones(2, dtype=torch.bool)
    masked = LowRank(torch.randn(4, 2), torch.randn(2, 4), mask=mask)
    ops = [first, q, Dense(first.weight) + dense(4, 4), masked]
    expected = [(16, 64), (64 + 4, 32 + 16), (16, 64), (16, 64 + 2)]
    assert count_each(ops) == expected
    assert count_each([q]) == [(q.numel(), q.bytes())]


def test_a_thin_support_runs_by_compressed_rows() -> None:
    weight = torch.randn(10, 10)
    ran = {}
    for kept in (10, 11):
        op = sparsify(weight, torch.arange(100).reshape(10, 10) < kept)
        for run in (op, transpose(op)):
            with FlopCounterMode(display=False) as counter:
                run(torch.randn(T, 10))
            ran.setdefault(kept, set()).add(counter.get_total_flops())
    assert ran == {10: {0}, 11: {2 * T * 100}}  # the counter does not see our own operation
