"""Singular vectors in bands of bits: against the SVD and the quantisers done literally."""

import pytest
import torch

from corank.metrics import second_moment
from corank.operators import Quantised, quantise_uniform
from corank.quantizers import error_feedback, round_to_nearest, row_feedback
from corank.rewrites import banded
from tests.methods.stats import unit

SHAPES = [(40, 24), (24, 40), (24, 24)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=["tall", "wide", "square"])
BITS, VECTORS, GROUP = (8, 3, 2), (2, 4), 16


def nearest(bits):
    return round_to_nearest(bits, GROUP)


def by_feedback():
    return banded(
        BITS, VECTORS, lambda b: error_feedback(b, GROUP), lambda b: row_feedback(b, GROUP)
    )


def triples(given, rank):
    u, s, vh = torch.linalg.svd(given.ops[0].dense(), full_matrices=False)
    flip = torch.where(u.gather(0, u.abs().argmax(0)[None])[0] < 0, -1.0, 1.0)
    return (u * flip * s.sqrt())[:, :rank], ((flip * s.sqrt())[:, None] * vh)[:rank]


@shapes
def test_bands_are_the_leading_triples_each_in_its_bits(shape):
    given = unit(*shape, frozenset())
    b, a = triples(given, 9)
    expected = torch.zeros(shape, dtype=torch.float64)
    for (start, stop), bits in zip(((0, 2), (2, 6), (6, 9)), BITS, strict=True):
        left, right = (
            quantise_uniform(rows[start:stop].contiguous(), bits, GROUP, symmetric=False).dense()
            for rows in (b.mT, a)
        )
        expected += left.mT @ right
    (op,) = banded(BITS, VECTORS, nearest, nearest).build(given, 9)
    torch.testing.assert_close(op.dense(), expected)
    codes = [part for part in op.modules() if isinstance(part, Quantised)]
    assert [(part.bits, part.shape[0]) for part in codes] == [
        (8, 2), (8, 2), (3, 4), (3, 4), (2, 3), (2, 3),
    ]  # fmt: skip


@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_known_beforehand(shape, dtype):
    family = by_feedback()
    given = unit(*shape, family.needs, dtype)
    for rank in (1, 2, 3, 6, 7, 12):  # within a band, at its end, beyond it
        (op,) = family.build(given, rank)
        assert family.counts(given, rank) == [(op.numel(), op.bytes())]
    menu = family.menu(given)
    assert (menu.sizes[-1], menu.costs[-1]) == (None, given.bytes)
    squares = torch.linalg.svdvals(given.ops[0].dense().double()).square()
    assert menu.errors[:2] == pytest.approx([float(squares[1:].sum()), float(squares[2:].sum())])


def test_the_left_factor_is_quantised_for_what_the_quantised_right_one_gives():
    family = by_feedback()
    given = unit(40, 24, family.needs)
    b, a = triples(given, 5)
    (op,) = family.build(given, 5)
    site, expected = given.sites[0], torch.zeros(40, 24, dtype=torch.float64)
    gram = site.stats["gram"].clone()
    for (start, stop), bits in zip(((0, 2), (2, 5)), BITS[:2], strict=True):
        right = error_feedback(bits, GROUP)(a[start:stop], site).dense()
        site.stats["gram"] = right @ gram @ right.mT
        left = row_feedback(bits, GROUP)(b.mT[start:stop].contiguous(), site).dense()
        site.stats["gram"] = gram
        expected += left.mT @ right
    torch.testing.assert_close(op.dense(), expected)


def test_feedback_loses_less_output_than_rounding():
    family, plain = by_feedback(), banded(BITS, VECTORS, nearest, nearest)
    given = unit(40, 24, family.needs)
    metric = second_moment()(given.sites[0].stats)
    weight = given.ops[0].dense()
    losses = [float(metric.loss(weight - f.build(given, 12)[0].dense())) for f in (family, plain)]
    assert losses[0] < losses[1]


def test_a_change_of_less_rank_than_asked_is_kept():
    family = by_feedback()
    given = unit(40, 24, family.needs)
    given.ops[0].weight.data = given.ops[0].weight[:, :1] @ given.ops[0].weight[:1]
    (op,) = family.build(given, 12)
    assert (op.dense() - given.ops[0].dense()).norm() < 0.02 * given.ops[0].dense().norm()


@pytest.mark.parametrize(("bits", "vectors"), [((8, 2), ()), ((8,), (2,)), ((8, 2), (0,))])
def test_bands_that_do_not_fit_together_are_refused(bits, vectors):
    with pytest.raises(ValueError, match="all bits but the last"):
        banded(bits, vectors, nearest, nearest)
