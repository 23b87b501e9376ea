"""Every order of VeRA's and RandLoRA's products gives what autograd gives."""

import pytest
import torch

from benchmarks.products import FORMS, Layer, draw, measure


def layer(width=64, rows=24):
    drawn = [draw(*shape, seed=i) for i, shape in enumerate([(width, width), *[(rows, width)] * 2])]
    return Layer(*drawn)


@pytest.mark.parametrize("name", FORMS)
def test_the_forms_agree(name):
    forms = FORMS[name](layer(), 8)
    (_, first), *others = forms.values()
    for _, form in others:
        for one, two in zip(first(), form(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_veras_form_is_what_autograd_gives():
    it, rank = layer(), 8
    a, b_matrix = draw(rank, 64, seed=2), draw(64, rank, seed=3)
    b, d = (draw(size, seed=seed).requires_grad_() for size, seed in ((64, 4), (rank, 5)))
    x = it.x.clone().requires_grad_()
    y = x @ (it.weight + b[:, None] * b_matrix * d @ a).mT
    y.backward(it.g)
    found = FORMS["VeRA r256"](it, rank)["as it stands"][1]()
    for one, two in zip(found, (y.detach(), x.grad, b.grad, d.grad), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_randloras_form_is_what_autograd_gives():
    it, rank = layer(), 8
    a, b = draw(rank, 64, seed=2), draw(64, 64, seed=3)
    scales, gammas = draw(rank, 8, seed=4), draw(8, 64, seed=5)
    leaves = [leaf.requires_grad_() for leaf in (it.x.clone(), scales, gammas)]
    rows = (leaves[1][:, :, None] * a[:, None] * leaves[2]).flatten(0, 1)
    y = leaves[0] @ (it.weight + b @ rows).mT
    y.backward(it.g)
    found = FORMS["RandLoRA r32"](it, rank)["as it stands"][1]()
    for one, two in zip(found, (y.detach(), *(leaf.grad for leaf in leaves)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_a_measurement_counts_by_form():
    row = measure("VeRA r256", 32, 1, width=256)
    assert row["multiply_adds"]["as it stands"] == 4 * 32 * 256 * 256
    assert set(row["seconds"]) == set(row["multiply_adds"])
