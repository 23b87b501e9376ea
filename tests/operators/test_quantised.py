from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from corank.operators import (
    Dense,
    Kron,
    OnGrid,
    Permutation,
    Quantised,
    normal_float,
    pack,
    quantise_codebook,
    quantise_uniform,
    transpose,
    unpack,
)
from corank.operators.packing import packed_width

bits_ = st.integers(2, 8)
size = st.integers(1, 19)


@given(bits=st.integers(1, 8), rows=st.integers(0, 3), count=size, data=st.data())
def test_packing_is_a_stream_of_bits(bits: int, rows: int, count: int, data) -> None:
    row = st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)
    codes = data.draw(st.lists(row, min_size=rows, max_size=rows))
    tensor = torch.tensor(codes, dtype=torch.int64).reshape(rows, count)
    packed = pack(tensor, bits)
    assert packed.shape == (rows, packed_width(count, bits))
    assert torch.equal(unpack(packed, bits, count).long(), tensor)
    for codes_row, bytes_row in zip(codes, packed.tolist(), strict=True):
        number = sum(code << (i * bits) for i, code in enumerate(codes_row))
        assert int.from_bytes(bytes(bytes_row), "little") == number


@pytest.mark.parametrize("bits", range(1, 9))
def test_unpacking_holds_a_byte_for_a_code(bits: int) -> None:
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                largest = max(largest, found.nbytes)
            return found

    packed = torch.zeros(4, packed_width(64, bits), dtype=torch.uint8)
    with Sizes():
        unpack(packed, bits, 64)
    assert largest <= 4 * 64


@settings(max_examples=40, deadline=None)
@given(
    bits=bits_, out=st.integers(1, 4), into=size, group=st.integers(1, 24), symmetric=st.booleans()
)
def test_uniform_is_the_nearest_value(
    bits: int, out: int, into: int, group: int, symmetric: bool
) -> None:
    weight = torch.randn(out, into, dtype=torch.float64)
    q = quantise_uniform(weight, bits, group, symmetric)
    assert q.codes.shape == (out, -(-into * bits // 8))
    wide = q.scale.repeat_interleave(group, 1)[:, :into]
    assert ((q.dense() - weight).abs() <= wide / 2 * (1 + 1e-9)).all()
    assert (
        quantise_uniform(q.dense(), bits, group, symmetric).dense() - q.dense()
    ).abs().max() < 1e-9


def test_uniform_scales_are_what_the_bits_allow() -> None:
    weight = torch.tensor([[-3.0, 1.0, 2.0, 7.0]])
    assert quantise_uniform(weight, 4, 4).scale.tolist() == [[1.0]]
    q = quantise_uniform(weight, 4, 4, symmetric=False)
    assert q.scale.item() == pytest.approx(10 / 15)
    assert q.zero.tolist() == [[4]]  # round(3 / (10 / 15)) = round(4.5), to even


@settings(max_examples=40, deadline=None)
@given(length=st.integers(3, 40), into=size, group=st.integers(1, 24))
def test_codebook_takes_the_nearest_level(length: int, into: int, group: int) -> None:
    book = torch.linspace(-1, 1, length, dtype=torch.float64)
    weight = torch.randn(3, into, dtype=torch.float64)
    q = quantise_codebook(weight, book, group)
    assert q.bits == max(2, (length - 1).bit_length())
    wide = q.scale.repeat_interleave(group, 1)[:, :into]
    nearest = ((weight / wide)[..., None] - book).abs().amin(-1)
    torch.testing.assert_close((q.dense() - weight).abs() / wide, nearest)


def test_normal_float_is_nf4() -> None:
    # QLoRA, arXiv 2305.14314, appendix E
    paper = """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453
        -0.28444138169288635 -0.18477343022823334 -0.09105003625154495 0.0 0.07958029955625534
        0.16093020141124725 0.24611230194568634 0.33791524171829224 0.44070982933044434
        0.5626170039176941 0.7229568362236023 1.0"""
    torch.testing.assert_close(normal_float(4), torch.tensor([float(v) for v in paper.split()]))
    for bits in range(2, 9):
        book = normal_float(bits)
        assert book.shape == (2**bits,)
        assert (book.diff() > 0).all()
        assert 0.0 in book


def test_zero_and_half_precision_weights() -> None:
    for symmetric in (True, False):
        assert (quantise_uniform(torch.zeros(2, 5), 3, 4, symmetric).dense() == 0).all()
        for dtype in (torch.float16, torch.bfloat16):
            weight = torch.randn(8, 40).to(dtype)
            q = quantise_uniform(weight, 8, 16, symmetric)
            assert q.dtype == dtype
            assert (q.dense() - weight).abs().max() < 0.06
    assert (quantise_codebook(torch.zeros(2, 5), normal_float(), 4).dense() == 0).all()


def test_bad_weights_are_refused() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinite"):
            quantise_uniform(torch.full((2, 2), bad))
    with pytest.raises(ValueError, match="meta device"):
        quantise_uniform(torch.empty(2, 2, device="meta"))
    with pytest.raises(ValueError, match="bits must be"):
        quantise_uniform(torch.randn(2, 2), bits=9)
    with pytest.raises(ValueError, match="bits must be"):
        normal_float(1)
    with pytest.raises(ValueError, match="group must be"):
        quantise_uniform(torch.randn(2, 2), group=0)
    with pytest.raises(ValueError, match="floating point matrix"):
        quantise_uniform(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="ascending"):
        quantise_codebook(torch.randn(2, 2), torch.tensor([1.0, 0.0, -1.0]))
    with pytest.raises(ValueError, match="do not fit in 2 bits"):
        pack(torch.tensor([4]), 2)


dims = st.tuples(*[st.integers(1, 5)] * 4)


@given(dims=dims)
@settings(deadline=None)
def test_kron_is_numpys(dims: tuple[int, int, int, int]) -> None:
    a, b, c, d = dims
    p, q = torch.randn(a, b, dtype=torch.float64), torch.randn(c, d, dtype=torch.float64)
    op = Kron(Dense(p), Dense(q))
    x = torch.randn(3, b * d, dtype=torch.float64)
    explicit = torch.zeros(a * c, b * d, dtype=torch.float64)
    for i in range(a):
        for j in range(b):
            explicit[i * c : (i + 1) * c, j * d : (j + 1) * d] = p[i, j] * q
    torch.testing.assert_close(op(x), x @ explicit.T)
    torch.testing.assert_close(op.dense(), explicit)


@given(order=st.integers(1, 9).flatmap(lambda n: st.permutations(range(n))))
@settings(deadline=None)
def test_permutation_moves_each_input_once(order: list[int]) -> None:
    op = Permutation(torch.tensor(order))
    x = torch.randn(2, len(order))
    assert op(x).tolist() == [[row[i] for i in order] for row in x.tolist()]
    assert torch.equal(transpose(op)(op(x)), x)


def test_gradients_stop_beyond_the_last_code_of_a_grid() -> None:
    grid = Quantised(pack(torch.tensor([[1, 2, 3]]), 2), torch.ones(1, 1), (1, 3), 2, 3)
    moved = Dense(torch.nn.Parameter(torch.tensor([[-0.6, 0.4, 7.0]])))  # codes stand for -2 to 1
    op = OnGrid(moved, grid)
    assert op.dense().tolist() == [[-1.0, 0.0, 1.0]]
    op.dense().sum().backward()
    assert moved.weight.grad is not None
    assert moved.weight.grad.tolist() == [[1.0, 1.0, 0.0]]


@pytest.mark.parametrize("symmetric", [True, False])
def test_decoding_some_rows_at_a_time_changes_nothing(monkeypatch, symmetric: bool) -> None:
    module = importlib.import_module("corank.operators.quantised")  # not the function
    monkeypatch.setattr(module, "_BLOCK", 40)  # 2 rows of 19 columns, 1 of 50
    for into in (19, 50):
        weight = torch.randn(7, into, generator=torch.Generator().manual_seed(0))
        for op in (
            quantise_uniform(weight, 3, 8, symmetric),
            quantise_codebook(weight, normal_float(4), 8),
        ):
            with torch.no_grad():
                some = op.dense()
            assert torch.equal(some, op.dense())
