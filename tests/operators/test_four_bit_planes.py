"""Codes in the layout of torch's 4-bit kernel, against the codes they are of."""

import copy

import pytest
import torch

from corank.operators import FourBitPlanes, Quantised, describe, four_bit_planes, in_planes
from corank.operators.packing import pack

pytestmark = pytest.mark.skipif(
    four_bit_planes._block() is None, reason="this processor has no such kernel"
)


def codes(bits, group, shape=(70, 200), zero=True, dtype=torch.bfloat16):
    g = torch.Generator().manual_seed(bits)
    found = torch.randint(0, 2**bits, shape, generator=g, dtype=torch.uint8)
    groups = (shape[0], -(-shape[1] // group))
    scale = torch.rand(groups, generator=g).add(0.1).to(dtype)
    zeros = torch.randint(0, 2**bits, groups, generator=g, dtype=torch.uint8) if zero else None
    return Quantised(pack(found, bits), scale, shape, bits, group, zeros)


def distance(one, other):
    return float((one.float() - other).norm() / other.norm())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [64, 96, 200, 1024])  # 200 and 1024: the whole row
@pytest.mark.parametrize("zero", [True, False])
def test_the_matrix_and_the_product_are_those_of_the_codes(bits, group, zero):
    op = codes(bits, group, zero=zero)
    made, exact = in_planes(op), copy.deepcopy(op).float().dense()
    few, many = (torch.randn(n, 3, 200).bfloat16() for n in (2, 40))
    with torch.no_grad():
        assert distance(made.dense(), exact) < 0.004
        for x in (few, many):
            assert made(x).shape == (*x.shape[:-1], 70)
            assert distance(made(x), x.float() @ exact.T) < 0.005
    assert made(few[0, 0]).shape == (70,)
    assert made(few[:, :0]).shape == (2, 0, 70)


def test_few_rows_take_the_kernel_and_others_do_not(monkeypatch):
    made, used = in_planes(codes(4, 64)), []
    real = FourBitPlanes._product

    def watched(self, x, plane):
        used.append(len(x))
        return real(self, x, plane)

    monkeypatch.setattr(FourBitPlanes, "_product", watched)
    few, many = torch.randn(4, 200).bfloat16(), torch.randn(400, 200).bfloat16()
    with torch.no_grad():
        made(few), made(many), made(few.float())
    assert made(few.requires_grad_()).requires_grad
    assert used == [4]


def test_codes_are_of_four_bits_in_memory():
    op = codes(4, 64, (256, 1024))
    assert in_planes(op).bytes() <= 1.04 * op.bytes()
    assert in_planes(codes(8, 64, (256, 1024))).bytes() <= 1.1 * codes(8, 64, (256, 1024)).bytes()


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (codes(4, 48), "groups of 256, 128, 64, 32, not 48"),
        (codes(4, 64, dtype=torch.float32), "bfloat16 on the CPU, not torch.float32"),
        (
            Quantised(
                torch.zeros(2, 32, dtype=torch.uint8), torch.ones(2, 1).bfloat16(), (2, 64), 4, 64,
                levels=torch.randn(16),
            ),
            "not evenly spaced",
        ),
    ],
)  # fmt: skip
def test_what_the_kernel_does_not_take_is_said(op, reason):
    assert reason in in_planes(op)


def test_an_unknown_layout_is_left_alone(monkeypatch):
    monkeypatch.setattr(four_bit_planes, "_block", lambda: None)
    assert "layout" in in_planes(codes(4, 64))


def test_no_file_holds_it():
    with pytest.raises(ValueError, match="save the model before for_inference"):
        describe(in_planes(codes(4, 64)))
