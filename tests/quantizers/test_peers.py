"""Our codes, scales and zero points are those of torchao and bitsandbytes."""

from __future__ import annotations

import pytest
import torch

from corank.models import Site
from corank.operators import Dense, quantise_uniform, unpack
from corank.quantizers import round_to_nearest, to_normal_float
from corank.registry import METHODS
from corank.rewrites import Unit

SHAPE = (24, 192)
SITE = Site("layer", "q", 0, SHAPE, False, "linear")


def weight(dtype=torch.float32):
    drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    return (drawn * torch.logspace(-2, 1, SHAPE[1])).to(dtype)


def codes(op):
    return unpack(op.codes, op.bits, op.shape[1]).int()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
def test_groups_have_torchaos_codes(bits, symmetric):
    primitives = pytest.importorskip("torchao.quantization.quant_primitives")
    kind = primitives.MappingType
    top = 2 ** (bits - 1) - 1
    low, high = (-top, top) if symmetric else (0, 2**bits - 1)
    span = dict(block_size=(1, 32), quant_min=low, quant_max=high)  # noqa: C408
    w, mapping = weight(), kind.SYMMETRIC if symmetric else kind.ASYMMETRIC
    scale, zero = primitives.choose_qparams_affine(
        w, mapping, target_dtype=torch.int32, zero_point_dtype=torch.int32, **span
    )
    theirs = primitives.quantize_affine(
        w, scale=scale, zero_point=zero, output_dtype=torch.int32, **span
    )
    op = round_to_nearest(bits, 32, symmetric)(w, SITE)
    assert torch.equal(op.scales(), scale)
    assert torch.equal(codes(op) - ((top + 1) if symmetric else 0), theirs)
    if not symmetric:
        assert torch.equal(op.zero.int(), zero)


@pytest.mark.parametrize("double", [False, True], ids=["plain", "doubly quantised"])
def test_normal_floats_have_bitsandbytes_codes(double):
    functional = pytest.importorskip("bitsandbytes.functional")
    w = weight()
    packed, state = functional.quantize_4bit(w, blocksize=64, quant_type="nf4")
    op = to_normal_float(4, 64, double)(w, SITE)
    high_first = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).view(SHAPE)
    assert torch.equal(codes(op), high_first.int())
    if not double:
        assert torch.equal(op.scales(), state.absmax.view(SHAPE[0], -1))
        theirs = functional.dequantize_4bit(packed, state)
        torch.testing.assert_close(op.dense(), theirs, rtol=0, atol=1e-5)


def test_rows_have_bitsandbytes_eight_bit_codes():
    functional = pytest.importorskip("bitsandbytes.functional")
    w = weight(torch.float16)
    theirs, largest, _ = functional.int8_vectorwise_quant(w)
    op = quantise_uniform(w.float(), 8, SHAPE[1])
    assert torch.equal(codes(op) - 128, theirs.int())
    torch.testing.assert_close(op.scales()[:, 0], largest / 127)


def test_llm_int8_multiplies_as_bitsandbytes_does():
    functional = pytest.importorskip("bitsandbytes.functional")
    w, g = weight().half(), torch.Generator().manual_seed(1)
    x = torch.randn(10, SHAPE[1], generator=g).half()
    x[4, 30], x[7, 100] = 9.0, -20.0
    codes, size, outliers = functional.int8_vectorwise_quant(x, threshold=6.0)
    assert outliers.tolist() == [30, 100]
    rest = w.index_fill(1, outliers, 0)
    rows, largest, _ = functional.int8_vectorwise_quant(rest)
    product = functional.int8_linear_matmul(codes, rows).float()
    theirs = product * (size.float()[:, None] / 127) * (largest.float() / 127)
    theirs += x[:, outliers].float() @ w[:, outliers].float().mT
    site = Site("layer", "q", 0, SHAPE, False, "linear")
    site.stats["abs_max"] = x.abs().amax(0).float()
    family = METHODS["llm_int8"].recipe({}).family
    given = Unit([site], [Dense(w.float())])
    (ours,) = family.build(given, family.menu(given).sizes[0])
    torch.testing.assert_close(ours(x.float()), theirs, rtol=1e-4, atol=1e-4)
