"""Every operator beside the matrix it stands for, written down without the library's code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from corank.operators import (
    Adapted,
    Base,
    Bitmap,
    BlockColumns,
    BlockDiagonal,
    BlockRows,
    Cayley,
    Circulant,
    ColumnNormalised,
    Cycle,
    Decoded,
    Dense,
    Diagonal,
    DoublePruned,
    Entrywise,
    Fourier,
    FrobeniusNormalised,
    Gated,
    Hadamard,
    KhatriRao,
    Kron,
    KronSum,
    LearnedRounding,
    LowRank,
    Mixture,
    Observed,
    OnGrid,
    OnSupport,
    Operator,
    Permutation,
    Polyadic,
    Product,
    Quantised,
    Refined,
    Reflections,
    Repeated,
    Rope,
    RowNormalised,
    RowSparse,
    Scaled,
    ScoreMasked,
    Seeded,
    Select,
    SemiStructured,
    Signs,
    Sketched,
    Sparse,
    Stretch,
    Sum,
    Tempered,
    TensorExperts,
    TensorTrain,
    Thinned,
    TileAffine,
    Tiled,
    Toeplitz,
    Transpose,
    Tucker,
    VectorBank,
    VectorQuantised,
    Wavelet,
    Windowed,
    sparsify,
)

Case = tuple[Operator, Tensor]
ORACLES: dict[str, Callable[[], Case]] = {}


def oracle(make: Callable[[], Case]) -> Callable[[], Case]:
    def seeded() -> Case:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(make.__name__))
            return make()

    ORACLES[make.__name__] = seeded
    return make


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def low_rank(out: int, into: int, rank: int) -> tuple[LowRank, Tensor]:
    b, a = rand(out, rank), rand(rank, into)
    return LowRank(b, a), b @ a


@oracle
def dense() -> Case:
    w = rand(5, 7)
    return Dense(w.clone()), w


@oracle
def sketched_in_full() -> Case:
    w = rand(5, 7)
    return Sketched(w.clone(), ratio=1.0), w


@oracle
def diagonal() -> Case:
    d = rand(6)
    return Diagonal(d), torch.tensor(np.diag(d.numpy()))


@oracle
def low_rank_plain() -> Case:
    return low_rank(5, 7, 3)


@oracle
def low_rank_gated_masked() -> Case:
    b, a, gate = rand(7, 4), rand(4, 5), rand(4)
    gate[1] = 0
    mask = torch.tensor([True, True, False, True])
    w = sum((gate[i] * torch.outer(b[:, i], a[i]) for i in (0, 3)), torch.zeros(7, 5).double())
    return LowRank(b, a, gate, mask), w


def _scattered(out: int, into: int, index: list[int], dtype: torch.dtype) -> Case:
    values = rand(len(index))
    w = torch.zeros(out, into, dtype=torch.float64)
    for place, value in zip(index, values, strict=True):
        w[place // into, place % into] = value
    return Sparse(values, torch.tensor(index, dtype=dtype), (out, into)), w


@oracle
def sparse_compressed() -> Case:
    return _scattered(6, 9, [3, 18, 26, 52], torch.int32)


@oracle
def sparse_through_dense() -> Case:
    return _scattered(5, 4, [0, 3, 4, 9, 18, 19], torch.int64)


@oracle
def block_diagonal() -> Case:
    blocks = rand(3, 2, 4)
    w = torch.zeros(6, 12, dtype=torch.float64)
    for i in range(3):
        w[2 * i : 2 * i + 2, 4 * i : 4 * i + 4] = blocks[i]
    return BlockDiagonal(blocks), w


@oracle
def block_diagonal_of_codes() -> Case:
    codes, scale = torch.randint(0, 16, (6, 4)), rand(6, 2)
    blocks = (codes - 8) * scale.repeat_interleave(2, 1)
    w = torch.zeros(6, 12, dtype=torch.float64)
    for i in range(3):
        w[2 * i : 2 * i + 2, 4 * i : 4 * i + 4] = blocks[2 * i : 2 * i + 2]
    return BlockDiagonal(Quantised(_packed(codes.tolist(), 4), scale, (6, 4), 4, 2), 3), w


@oracle
def kron_right_first() -> Case:
    p, q = rand(3, 2), rand(2, 5)
    return Kron(Dense(p), Dense(q)), torch.tensor(np.kron(p.numpy(), q.numpy()))


@oracle
def kron_left_first() -> Case:
    p, q = rand(2, 5), rand(4, 3)
    return Kron(Dense(p), Dense(q)), torch.tensor(np.kron(p.numpy(), q.numpy()))


@oracle
def permutation() -> Case:
    index = [2, 0, 3, 1, 4]
    w = torch.zeros(5, 5, dtype=torch.float64)
    for row, column in enumerate(index):
        w[row, column] = 1
    return Permutation(torch.tensor(index, dtype=torch.int32)), w


@oracle
def row_sparse() -> Case:
    columns, values = [[0, 4], [3, 1], [2, 5], [5, 0]], rand(4, 2)
    w = torch.zeros(4, 6, dtype=torch.float64)
    for i, row in enumerate(columns):
        for k, j in enumerate(row):
            w[i, j] = values[i, k]
    return RowSparse(values, torch.tensor(columns, dtype=torch.uint8), 6), w


@oracle
def row_sparse_of_codes() -> Case:
    columns, codes = [[0, 4], [3, 1], [2, 5], [5, 0]], torch.randint(0, 16, (4, 2))
    scale, w = rand(4, 1), torch.zeros(4, 6, dtype=torch.float64)
    for i, row in enumerate(columns):
        for k, j in enumerate(row):
            w[i, j] = (int(codes[i, k]) - 8) * scale[i, 0]
    values = Quantised(_packed(codes.tolist(), 4), scale, (4, 2), 4, 2)
    return RowSparse(values, torch.tensor(columns, dtype=torch.uint8), 6), w


@oracle
def bitmap() -> Case:
    held, values = [(0, 1), (0, 4), (1, 0), (2, 2), (2, 3), (2, 4)], rand(6)
    w, bits = torch.zeros(3, 5, dtype=torch.float64), [0] * 15
    for k, (i, j) in enumerate(held):
        w[i, j], bits[5 * i + j] = values[k], 1
    return Bitmap(values, _packed([bits], 1)[0], (3, 5)), w


@oracle
def semi_structured_two_of_four() -> Case:
    places, values = [[0, 3, 1, 2], [1, 2, 0, 1], [2, 3, 0, 3]], rand(3, 4)
    w = torch.zeros(3, 8, dtype=torch.float64)
    for i, row in enumerate(places):
        for k, place in enumerate(row):
            w[i, 4 * (k // 2) + place] = values[i, k]
    return SemiStructured(values, _packed(places, 2), 8, 4), w


@oracle
def semi_structured_one_of_three() -> Case:
    places, values = [[0, 2, 1, 2, 0], [1, 1, 2, 0, 0]], rand(2, 5)
    w = torch.zeros(2, 15, dtype=torch.float64)
    for i, row in enumerate(places):
        for k, place in enumerate(row):
            w[i, 3 * k + place] = values[i, k]
    return SemiStructured(values, _packed(places, 2), 15, 3), w


@oracle
def thinned_detached() -> Case:
    latent = rand(4, 6)
    w = latent.clone()
    for row in w:
        for start in (0, 3):
            row[start + int(row[start : start + 3].abs().argmin())] = 0
    return Thinned(latent, 2, 3), w


@oracle
def signs_detached() -> Case:
    latent, scale = rand(4, 6), rand(4)
    w = torch.zeros(4, 6, dtype=torch.float64)
    for i in range(4):
        for j in range(6):
            w[i, j] = scale[i] if latent[i, j] > 0 else -scale[i]
    return Signs(latent, scale, slope=2.0), w


@oracle
def learned_rounding_detached() -> Case:
    weight, left, right, row, column = rand(4, 6), rand(4, 2), rand(2, 6), rand(4), rand(6)
    log_step, zero = rand(4) - 1, [1, 3, 0, 7]
    w = torch.zeros(4, 6, dtype=torch.float64)
    for i in range(4):
        for j in range(6):
            log = log_step[i] + sum(left[i, k] * right[k, j] for k in range(2)) + row[i] + column[j]
            code = min(max(round(float(weight[i, j] / log.exp())) + zero[i], 0), 7)
            w[i, j] = (code - zero[i]) * log_step[i].exp()
    zeros = torch.tensor(zero, dtype=torch.uint8)
    return LearnedRounding(weight, log_step, left, right, row, column, zeros, 3), w


@oracle
def vector_quantised() -> Case:
    books, rows = rand(3, 4, 3), [[0, 3], [2, 1], [1, 1], [3, 0], [2, 2]]
    w = torch.zeros(5, 5, dtype=torch.float64)
    for i, row in enumerate(rows):
        w[i] = torch.cat([books[i // 2, code] for code in row])[:5]
    codes = torch.tensor([[a + 4 * b] for a, b in rows], dtype=torch.uint8)
    return VectorQuantised(codes, books, (5, 5), 2, 2), w


@oracle
def decoded() -> Case:
    latents, first, last, scale = rand(6, 2), rand(8, 18), rand(1, 18), rand(3)
    padded = torch.zeros(2, 4, 5, dtype=torch.float64)
    padded[:, 1:3, 1:4] = latents.view(2, 3, 2).permute(2, 0, 1)
    image = torch.zeros(2, 6, 8, dtype=torch.float64)  # 4 x 6, with an edge of zeros
    for i in range(2):
        for j in range(3):
            around = padded[:, i : i + 3, j : j + 3].flatten()
            for channel, value in enumerate(first @ around):
                place = (1 + 2 * i + channel % 4 // 2, 1 + 2 * j + channel % 2)
                image[channel // 4][place] = value * (1 + torch.erf(value / 2**0.5)) / 2
    w = torch.zeros(3, 5, dtype=torch.float64)
    for i in range(3):
        for j in range(5):
            w[i, j] = scale[i] * (last @ image[:, i : i + 3, j : j + 3].flatten())[0]
    kernels = (Dense(first), Dense(last))
    return Decoded(*kernels, latents=Dense(latents), scale=scale, shape=(3, 5)), w


@oracle
def reflections() -> Case:
    u = rand(3, 6)
    w = torch.eye(6, dtype=torch.float64)
    for row in u:
        w = (torch.eye(6, dtype=torch.float64) - 2 * torch.outer(row, row) / (row @ row)) @ w
    return Reflections(u), w


@oracle
def cayley() -> Case:
    blocks = rand(2, 3, 3)
    w = torch.zeros(6, 6, dtype=torch.float64)
    for i, p in enumerate(blocks):
        skew, eye = (p - p.T) / 2, torch.eye(3, dtype=torch.float64)
        w[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] = (eye - skew) @ torch.linalg.inv(eye + skew)
    return Cayley(blocks), w


@oracle
def rectified_matrix() -> Case:
    (lr, m), d = low_rank(5, 5, 2), rand(5)
    return Entrywise(Sum(Diagonal(d), lr), "relu"), (torch.diag(d) + m).clamp_min(0)


@oracle
def entrywise_over_shared_bases() -> Case:
    c, bank = rand(3), rand(3, 20)
    mixed = (c[:, None] * bank).sum(0).view(4, 5)
    return Entrywise(Mixture(c, Dense(bank), (4, 5)), "silu"), mixed / (1 + torch.exp(-mixed))


@oracle
def rectified_diagonal() -> Case:
    p, q, d = rand(6), rand(6), rand(6)
    op = Entrywise(Sum(Diagonal(p) @ Diagonal(q), 0.5 * Diagonal(d)), "relu")
    return op, torch.diag((p * q + 0.5 * d).clamp_min(0))


def _packed(codes: list[list[int]], bits: int) -> Tensor:
    rows = []
    for row in codes:
        number = sum(code << (bits * i) for i, code in enumerate(row))
        rows.append(list(number.to_bytes(-(-len(row) * bits // 8), "little")))
    return torch.tensor(rows, dtype=torch.uint8)


@oracle
def quantised_zero_point() -> Case:
    codes = torch.randint(0, 8, (4, 11))
    scale, zero = rand(4, 3), torch.randint(0, 8, (4, 3), dtype=torch.uint8)
    w = torch.zeros(4, 11, dtype=torch.float64)
    for i in range(4):
        for j in range(11):
            w[i, j] = scale[i, j // 4] * (int(codes[i, j]) - int(zero[i, j // 4]))
    return Quantised(_packed(codes.tolist(), 3), scale, (4, 11), 3, 4, zero=zero), w


@oracle
def quantised_symmetric() -> Case:
    codes, scale = torch.randint(0, 16, (3, 6)), rand(3, 2)
    w = (codes - 8) * scale.repeat_interleave(3, 1)
    return Quantised(_packed(codes.tolist(), 4), scale, (3, 6), 4, 3), w


@oracle
def quantised_codebook() -> Case:
    codes, scale, levels = torch.randint(0, 16, (3, 5)), rand(3, 1), rand(16)
    w = torch.tensor([[levels[c] for c in row] for row in codes.tolist()]) * scale
    return Quantised(_packed(codes.tolist(), 4), scale, (3, 5), 4, 8, levels=levels), w


@oracle
def sum_of_three() -> Case:
    (lr, m), w, d = low_rank(5, 5, 2), rand(5, 5), rand(5)
    return Sum(Dense(w), 0.5 * lr, Diagonal(d)), w + 0.5 * m + torch.diag(d)


@oracle
def refined() -> Case:
    (lr, m), w = low_rank(5, 4, 2), rand(5, 4)
    return Refined(Dense(w), lr, errors=(2.0, 0.5)), w + m


@oracle
def product_of_four() -> Case:
    (lr, m), w, d, index = low_rank(4, 6, 2), rand(6, 5), rand(6), torch.tensor([1, 3, 0, 2])
    op = Product(Permutation(index), lr, Diagonal(d) @ Dense(w))
    return op, (m @ torch.diag(d) @ w)[index]


@oracle
def scaled_low_rank() -> Case:
    lr, m = low_rank(6, 4, 2)
    return Scaled(lr, -1.5), -1.5 * m


@oracle
def scaled_narrow_input() -> Case:
    w = rand(6, 2)
    return Scaled(Dense(w), 3.0), 3.0 * w


@oracle
def hadamard_through_factors() -> Case:
    (p, wp), (q, wq) = low_rank(9, 8, 2), low_rank(9, 8, 2)
    return Hadamard(p, q), wp * wq


@oracle
def hadamard_through_dense() -> Case:
    (p, wp), w = low_rank(5, 6, 2), rand(5, 6)
    return Hadamard(p, Dense(w)), wp * w


@oracle
def row_normalised() -> Case:
    w, m, (lr, n) = rand(4, 6), rand(4), low_rank(4, 6, 2)
    total = w + n
    rows = torch.stack([m[i] * total[i] / total[i].square().sum().sqrt() for i in range(4)])
    return RowNormalised(Sum(Dense(w), lr), m, detached=False), rows


@oracle
def column_normalised() -> Case:
    w, m = rand(4, 6), rand(6)
    columns = [m[j] * w[:, j] / w[:, j].square().sum().sqrt() for j in range(6)]
    return ColumnNormalised(Dense(w), m, detached=False), torch.stack(columns, 1)


@oracle
def row_normalised_detached() -> Case:
    (lr, w), m = low_rank(4, 6, 2), rand(4)
    return RowNormalised(lr, m), torch.diag(m / w.square().sum(1).sqrt()) @ w


@oracle
def gated() -> Case:
    (lr, m), logit = low_rank(5, 7, 2), rand(1)
    return Gated(lr, logit), m / (1 + torch.exp(-logit))


@oracle
def observed() -> Case:
    lr, m = low_rank(5, 7, 2)
    return Observed(lr, torch.zeros(7, dtype=torch.float64), 0.5), m


@oracle
def tempered_detached() -> Case:
    lr, m = low_rank(5, 7, 2)
    return Tempered(lr, 2.0), m


@oracle
def row_normalised_low_rank_alone() -> Case:
    (lr, w), m = low_rank(4, 6, 2), rand(4)
    return RowNormalised(0.5 * lr, m, detached=False), torch.diag(m / w.norm(dim=1)) @ w


@oracle
def column_normalised_sum() -> Case:
    w, m, (lr, n), (other, o) = rand(4, 6), rand(6), low_rank(4, 6, 2), low_rank(4, 6, 1)
    total = w + n - 0.5 * o
    op = ColumnNormalised(Sum(Dense(w), lr, -0.5 * other), m, detached=False)
    return op, total @ torch.diag(m / total.norm(dim=0))


@oracle
def frobenius_normalised() -> Case:
    w, m, (lr, n) = rand(4, 6), rand(1), low_rank(4, 6, 2)
    total = w - 2.0 * n
    op = FrobeniusNormalised(Sum(Dense(w), Scaled(lr, -2.0)), m)
    return op, total * m / total.square().sum().sqrt()


def _repeats(out: int, into: int, place: Callable[[int], int]) -> Tensor:
    w = torch.zeros(out, into, dtype=torch.float64)
    for i in range(out):
        w[i, place(i)] = 1
    return w


@oracle
def cycle() -> Case:
    w = rand(11, 4)
    cut, around, summed = Cycle((6, 11)), Cycle((4, 3)), Transpose(Cycle((8, 3)))
    mats = (_repeats(6, 11, lambda i: i), _repeats(4, 3, lambda i: i % 3))
    op = Product(cut, Dense(w), around, summed)
    return op, mats[0] @ w @ mats[1] @ _repeats(8, 3, lambda i: i % 3).T


@oracle
def stretch() -> Case:
    w, more, fewer = rand(3, 4), [0, 0, 0, 1, 1, 1, 2, 2], [0, 1]
    op = Product(Stretch((8, 3)), Dense(w), Transpose(Stretch((2, 4))))
    return op, _repeats(8, 3, more.__getitem__) @ w @ _repeats(2, 4, fewer.__getitem__).T


@oracle
def repeated() -> Case:
    (lr, m), d = low_rank(2, 3, 1), rand(2, 3)
    block = m + d
    return Repeated(Sum(Dense(d), lr), 3), torch.block_diag(block, block, block)


@oracle
def rope() -> Case:
    chunks, size, w = 3, 4, rand(5, 12)
    turned = torch.zeros(12, 12, dtype=torch.float64)
    for t in range(chunks):
        for j in range(size // 2):
            angle = torch.tensor(t * 10000 ** (-2 * j / size), dtype=torch.float64)
            p, q = size * t + j, size * t + j + size // 2
            turned[p, p] = turned[q, q] = angle.cos()
            turned[p, q], turned[q, p] = -angle.sin(), angle.sin()
    return Product(Dense(w), Rope(chunks, size)), w @ turned


def _wavelet(size: int, taps: list[float]) -> Tensor:
    w = torch.zeros(size, size, dtype=torch.float64)
    for k in range(size // 2):
        for i, tap in enumerate(taps):
            w[k, (2 * k + i) % size] += tap
            w[size // 2 + k, (2 * k + i) % size] += (-1) ** i * taps[-1 - i]
    return w


@oracle
def wavelet() -> Case:
    root, d = 3**0.5, rand(6)
    haar = [2**-0.5, 2**-0.5]
    four = [(1 + root) / 32**0.5, (3 + root) / 32**0.5, (3 - root) / 32**0.5, (1 - root) / 32**0.5]
    op = Product(Wavelet(6, haar), Diagonal(d), Wavelet(6, four))
    return op, _wavelet(6, haar) @ torch.diag(d) @ _wavelet(6, four)


@oracle
def tile_affine() -> Case:
    w, m = rand(4, 6), rand(2, 2, 2)
    expected = w.clone()
    for i in range(2):
        for j in range(3):
            tile = w[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            expected[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] += tile @ m[i] + m[i]
    return TileAffine(Dense(w), m), expected


def _circulant(c: Tensor, sign: float) -> Tensor:
    d = len(c)
    rows = [[c[i - j] * (1.0 if i >= j else sign) for j in range(d)] for i in range(d)]
    return torch.tensor(rows, dtype=torch.float64)


@oracle
def circulant() -> Case:
    c, gate, odd = rand(6), rand(6), rand(5)
    op = Product(Circulant(c, gate), Cycle((6, 5)), Circulant(odd))
    return op, _circulant(c * gate, 1.0) @ _repeats(6, 5, lambda i: i % 5) @ _circulant(odd, 1.0)


@oracle
def circulant_skew() -> Case:
    c = rand(5)
    return Circulant(c, skew=True), _circulant(c, -1.0)


@oracle
def toeplitz() -> Case:
    c = rand(5)
    return Toeplitz(c), torch.tensor([[c[abs(i - j)] for j in range(5)] for i in range(5)])


def _fourier(out: int, into: int, index: list[int]) -> Case:
    values, w = rand(len(index)), torch.zeros(out, into, dtype=torch.float64)
    rows, columns = torch.arange(out)[:, None], torch.arange(into)
    for place, value in zip(index, values, strict=True):
        turns = place // into * rows.double() / out + place % into * columns.double() / into
        w += 3 * value * (2 * torch.pi * turns).cos() / (out * into)
    return Fourier(values, torch.tensor(index), (out, into), 3.0), w


@oracle
def fourier_even() -> Case:
    return _fourier(6, 8, [3, 0, 47, 19, 4, 29, 26, 5])  # 3 and 5 are one and the same wave


@oracle
def fourier_odd() -> Case:
    return _fourier(5, 7, [34, 8, 2, 31, 20])


@oracle
def block_rows() -> Case:
    (lr, m), w = low_rank(3, 5, 2), rand(4, 5)
    return BlockRows(lr, Dense(w)), torch.tensor(np.vstack([m.numpy(), w.numpy()]))


@oracle
def block_columns() -> Case:
    (lr, m), w, d = low_rank(3, 5, 2), rand(3, 2), rand(3)
    op = BlockColumns(lr, Dense(w), Diagonal(d))
    return op, torch.tensor(np.hstack([m.numpy(), w.numpy(), np.diag(d.numpy())]))


@oracle
def transpose_of_sparse() -> Case:
    op, w = _scattered(6, 9, [3, 18, 26, 52], torch.int32)
    return Transpose(op), w.T.clone()


@oracle
def transpose_of_low_rank() -> Case:
    lr, m = low_rank(3, 5, 2)
    return Transpose(lr), m.T.clone()


@oracle
def monarch() -> Case:
    one, two = rand(2, 3, 3), rand(3, 2, 2)
    p = torch.tensor([0, 3, 1, 4, 2, 5])
    op = Product(BlockDiagonal(one), Permutation(p), BlockDiagonal(two))
    dense_one, dense_two = torch.zeros(6, 6).double(), torch.zeros(6, 6).double()
    for i in range(2):
        dense_one[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] = one[i]
    for i in range(3):
        dense_two[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = two[i]
    return op, dense_one @ dense_two[p]


@oracle
def shared_leaf() -> Case:
    w = nn.Parameter(rand(4, 4), requires_grad=False)
    return Dense(w) @ Dense(w), w.data @ w.data


def fresh(name: str, dtype: torch.dtype = torch.float64) -> Case:
    op, w = ORACLES[name]()
    return op.to(dtype), w.to(dtype)


@oracle
def adapted() -> Case:
    w, (lr, m), lengths = rand(5, 7), low_rank(5, 7, 2), rand(5)
    added = Sum(Base((5, 7)), Scaled(lr, 2.0))
    turned = RowNormalised(Base((5, 7)), lengths, detached=False)
    rows = lengths[:, None] * w / w.norm(dim=1, keepdim=True)
    op = Adapted(added, turned, base=Dense(w), names=("a", "b"), weights=(0.5, -0.3))
    return op, w + m - 0.3 * (rows - w)


@oracle
def select() -> Case:
    index = [4, 0, 3]
    w = torch.zeros(3, 6, dtype=torch.float64)
    for row, column in enumerate(index):
        w[row, column] = 1
    return Select(torch.tensor(index), 6), w


@oracle
def double_pruned() -> Case:
    w = rand(5, 6) * (torch.arange(30).view(5, 6) % 3 != 0)
    sparse = sparsify(w, w != 0)
    return DoublePruned(sparse, torch.ones(20, dtype=torch.bool)), w


@oracle
def selected_rows() -> Case:
    w, rows = torch.zeros(7, 5, dtype=torch.float64), rand(2, 5)
    w[6], w[2] = rows[0], rows[1]
    return Product(Transpose(Select(torch.tensor([6, 2]), 7)), Dense(rows)), w


@oracle
def on_support_detached() -> Case:
    (lr, m), base = low_rank(5, 6, 2), rand(5, 6)
    base[rand(5, 6) > 0.3] = 0
    held = nn.Parameter(base.clone(), requires_grad=False)
    w = [[base[i, j] + m[i, j] if base[i, j] != 0 else 0.0 for j in range(6)] for i in range(5)]
    return OnSupport(Sum(Dense(held), lr), Dense(held)), torch.tensor(w, dtype=torch.float64)


@oracle
def score_masked_detached() -> Case:
    (lr, m), base = low_rank(5, 6, 2), rand(5, 6)
    least = sorted(float(v) for v in (base.abs() + m).flatten())[10]
    w = torch.where(base.abs() + m < least, 0.0, base)
    return ScoreMasked(Dense(base), lr, torch.tensor([10])), w


@oracle
def on_grid_detached() -> Case:
    codes, scale = torch.randint(0, 16, (3, 6)), rand(3, 2).abs() + 0.1
    held, zero = nn.Parameter(scale.clone(), requires_grad=False), torch.full((3, 2), 5)
    grid = Quantised(_packed(codes.tolist(), 4), held, (3, 6), 4, 3, zero=zero.to(torch.uint8))
    lr, m = low_rank(3, 6, 1)
    lr.b.data *= 0.01
    w = torch.zeros(3, 6, dtype=torch.float64)
    for i in range(3):
        for j in range(6):
            s = scale[i, j // 3]
            value = s * (int(codes[i, j]) - 5) + 0.01 * m[i, j]
            w[i, j] = s * (min(max(round(float(value / s)) + 5, 0), 15) - 5)
    return OnGrid(Sum(grid, lr), grid), w


def _layer_norm(rows: Tensor) -> Tensor:
    return (rows - rows.mean()) / (rows.var(unbiased=False) + 1e-5).sqrt()


def _kron_rows(one: Tensor, two: Tensor) -> Tensor:
    pairs = zip(one.numpy(), two.numpy(), strict=True)
    return torch.tensor(np.stack([np.kron(p, q) for p, q in pairs]))


def _tensor_rows(leaf: Tensor, weights: list[float], length: int) -> Tensor:
    total = torch.zeros(leaf.shape[2], length, dtype=torch.float64)
    for s, weight in enumerate(weights):
        left = _layer_norm(_kron_rows(leaf[0, s], leaf[1, s]))
        right = _layer_norm(_kron_rows(leaf[2, s], leaf[3, s]))
        total += weight * _kron_rows(left, right)[:, :length]
    return total


@oracle
def tensor_experts_by_rank() -> Case:
    a, b, logits = rand(4, 2, 3, 2), rand(4, 2, 3, 2), rand(3, 2)
    op = TensorExperts(a, b, logits, (6, 9), task=2)
    z = logits[2].sigmoid() / logits[2].sigmoid().sum()
    w = _tensor_rows(b, z.tolist(), 6).T @ _tensor_rows(a, z.tolist(), 9) / 3
    return op, w


@oracle
def tensor_experts_by_order() -> Case:
    a, b, logits = rand(2, 3, 2, 3), rand(2, 3, 2, 2), rand(1, 2, 3)
    op = TensorExperts(a, b, logits, (4, 7))
    z = logits[0].sigmoid() / logits[0].sigmoid().sum(1, keepdim=True)
    factors = []
    for leaf, length in ((a, 7), (b, 4)):
        one, two = (sum(z[o, s] * leaf[o, s] for s in range(3)) for o in range(2))
        factors.append(_layer_norm(_kron_rows(one, two))[:, :length])
    return op, factors[1].T @ factors[0] / 2


def _drawn(count: int, seed: int) -> Tensor:
    u = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return u.double()


@oracle
def seeded_uniform() -> Case:
    return Seeded((4, 6), 5, scale=0.5), 0.5 * (2 * _drawn(24, 5) - 1).view(4, 6)


@oracle
def seeded_ternary() -> Case:
    u = _drawn(30, 6)
    w = torch.where(u < 1 / 6, -1.0, torch.where(u < 5 / 6, 0.0, 1.0)).double()
    return Seeded((5, 6), 6, "ternary"), w.view(5, 6)


@oracle
def khatri_rao() -> Case:
    p, q = rand(3, 7), rand(2, 7)
    rows = [p[i] * q[k] for i in range(3) for k in range(2)]
    return KhatriRao(Dense(p), Dense(q)), torch.stack(rows)


@oracle
def mixture() -> Case:
    c, bank = rand(3), rand(3, 20)
    w = sum((c[i] * bank[i].view(4, 5) for i in range(3)), torch.zeros(4, 5).double())
    return Mixture(c, Dense(bank), (4, 5)), w


@oracle
def vector_bank() -> Case:
    bank, logits = rand(5, 3), rand(4, 2, 5)
    w = torch.zeros(4, 6, dtype=torch.float64)
    for i in range(4):
        for j in range(2):
            best = sorted(range(5), key=lambda h: -float(logits[i, j, h]))[:2]
            total = sum(logits[i, j, h].exp() for h in best)
            for h in best:
                w[i, 3 * j : 3 * j + 3] += logits[i, j, h].exp() / total * bank[h]
    return VectorBank(bank, logits, 2), w


@oracle
def kron_sum_right_first() -> Case:
    return _kron_sum(rand(3, 4, 2), rand(3, 2, 5))


@oracle
def kron_sum_left_first() -> Case:
    return _kron_sum(rand(3, 2, 5), rand(3, 6, 3))


def _kron_sum(p: Tensor, q: Tensor) -> Case:
    w = sum(np.kron(p[i].numpy(), q[i].numpy()) for i in range(p.shape[0]))
    return KronSum(p, q), torch.tensor(w)


@oracle
def kron_sum_low_rank() -> Case:
    p, q, a = rand(2, 3, 2), rand(2, 4, 1), rand(2, 1, 3)
    return KronSum(p, q, a), _kron_sum(p, q @ a)[1]


@oracle
def windowed_detached() -> Case:
    b, a = rand(6, 3), rand(3, 5)
    places = {0: ([2, 6, 0], [5, 0, 1]), 1: ([5, 3, 2], [0, 3, 4])}  # side -> lengths, first ones
    masks, shares = [], []
    for side, size in ((0, 6), (1, 5)):
        mask = torch.zeros(3, size, dtype=torch.float64)
        for term, (length, first) in enumerate(zip(*places[side], strict=True)):
            for step in range(length):
                mask[term, (first + step) % size] = 1
        masks.append(mask)
        shares.append(torch.tensor(places[side], dtype=torch.float64) / size)
    widths, starts = torch.stack(shares, 1)
    sharp = 1e9  # no smoothing: the windows are zeros and ones
    return Windowed(b, a, widths, starts, sharp), (b * masks[0].T) @ (a * masks[1])


@oracle
def tucker() -> Case:
    core, factors = rand(2, 3, 2), (rand(5, 2), rand(4, 3), rand(3, 2))
    w = torch.zeros(5, 4, 3, dtype=torch.float64)
    for i in np.ndindex(5, 4, 3):
        for j in np.ndindex(2, 3, 2):
            one, two, three = (f[a, b] for f, a, b in zip(factors, i, j, strict=True))
            w[i] += core[j] * one * two * three
    return Tucker(*(Dense(factor) for factor in factors), core=core), w.reshape(5, 12)


@oracle
def polyadic() -> Case:
    factors = rand(5, 3), rand(4, 3), rand(3, 3), rand(2, 3)
    w = torch.zeros(5, 4, 3, 2, dtype=torch.float64)
    for i in np.ndindex(5, 4, 3, 2):
        for j in range(3):
            w[i] += np.prod([float(f[a, j]) for f, a in zip(factors, i, strict=True)])
    return Polyadic(*(Dense(factor) for factor in factors)), w.reshape(5, 24)


@oracle
def tensor_train() -> Case:
    one, two, three = rand(1, 2, 3, 2), rand(2, 3, 2, 4), rand(4, 2, 1, 1)
    w = torch.zeros(12, 6, dtype=torch.float64)
    for row in np.ndindex(2, 3, 2):
        for column in np.ndindex(3, 2, 1):
            i, j = np.ravel_multi_index(row, (2, 3, 2)), np.ravel_multi_index(column, (3, 2, 1))
            product = one[:, row[0], column[0]] @ two[:, row[1], column[1]]
            w[i, j] = (product @ three[:, row[2], column[2]]).item()
    cores = [Dense(core.flatten(2).flatten(0, 1)) for core in (one, two, three)]
    return TensorTrain(*cores, rows=(2, 3, 2), columns=(3, 2, 1)), w


@oracle
def tiled() -> Case:
    lr, m = low_rank(5, 3, 2)
    return Tiled(lr, 4), torch.tensor(np.hstack([m.numpy()] * 4))


@oracle
def sum_by_last_products() -> Case:
    w, d, v, u, t = rand(9, 8), rand(9), rand(9, 8), rand(9, 2), rand(2, 8)
    (p, wp), (q, wq) = low_rank(9, 8, 2), low_rank(9, 8, 2)
    op = Sum(
        Dense(w),
        Scaled(Diagonal(d) @ Dense(v.clone()), 2.0),
        Scaled(Dense(u) @ Dense(t), 0.5),
        Scaled(Hadamard(p, q), -3.0),
        Scaled(BlockColumns(Dense(v)), 0.25),
    )
    return op, w + 2 * d[:, None] * v + 0.5 * u @ t - 3 * wp * wq + 0.25 * v
