"""Quantisers number by number: what they store, and that nothing of their kind is nearer."""

import itertools

import pytest
import torch

from corank.models import Site
from corank.operators import Quantised, build, describe
from corank.quantizers import round_to_nearest, to_normal_float, to_signs, to_ternary

SITE = Site("layer", "q", 0, (5, 70), False, "linear")
QUANTIZERS = {
    "rounding": round_to_nearest(3, 32),
    "symmetric": round_to_nearest(5, 32, symmetric=True),
    "normal float": to_normal_float(4, 32),
    "doubly quantised": to_normal_float(4, 32, double=True),
    "signs": to_signs(32),
    "ternary": to_ternary(32),
}


def weight(dtype=torch.float32):
    return torch.randn(SITE.shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_counts_are_known_without_weights(name, dtype):
    op = QUANTIZERS[name](weight(dtype), SITE)
    assert QUANTIZERS[name].counts(SITE.shape, dtype) == (op.numel(), op.bytes())
    assert op.dtype == dtype


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_skeleton_and_its_state_rebuild_the_matrix(name):
    op = QUANTIZERS[name](weight(), SITE)
    again = build(describe(op), "cpu")
    again.load_state_dict(op.state_dict())
    assert torch.equal(again.dense(), op.dense())


def test_double_quantisation_moves_the_matrix_little_and_saves_the_scales():
    plain, double = (to_normal_float(4, 8, d)(weight(), SITE) for d in (False, True))
    assert isinstance(double.scale, Quantised)
    assert torch.equal(plain.codes, double.codes)
    assert (plain.dense() - double.dense()).norm() < 0.01 * plain.dense().norm()
    scales = plain.scale.numel()
    assert plain.bytes() - double.bytes() == 3 * scales - 5  # 5: their own scale and zero


def test_no_signs_and_scale_are_nearer():
    w = weight()[:2, :4]
    error = (to_signs(4)(w, SITE).dense() - w).norm(dim=1)
    for signs in itertools.product((-1.0, 1.0), repeat=4):
        pattern = torch.tensor(signs)
        best = (w @ pattern / 4)[:, None] * pattern
        assert (error <= (best - w).norm(dim=1) + 1e-6).all()


def test_ternary_is_a_fixed_point_of_its_two_steps():
    w = weight()
    op = to_ternary(70)(w, SITE)
    codes = op.dense() / op.scale
    nearest = (w / op.scale).round().clamp(-1, 1)
    torch.testing.assert_close(codes, nearest)
    chosen = nearest != 0
    torch.testing.assert_close(op.scale[:, 0], (w.abs() * chosen).sum(1) / chosen.sum(1))


def test_a_short_last_group_has_its_own_mean():
    w = torch.full((1, 5), 2.0)
    assert torch.equal(to_signs(4)(w, SITE).dense(), w)
