"""Structured weights against their definitions, written index by index."""

import math

import pytest
import torch
from torch import nn

import corank
from corank.errors import SiteError
from corank.operators import BlockDiagonal, KronSum, Sum

from ..adapters.small import small_model
from .small import TOTAL, begin, operators, train

X = torch.randn(5, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def made(key, **parameters):
    model = small_model()
    return model, corank.factorize(model, key, **parameters), operators(model)


def test_phm_can_be_the_product_of_quaternions():
    found = made("phm", n=4)[2]
    op = found["4"]
    one, i, j, k = torch.eye(4, dtype=torch.float64)
    times = {  # the left factor's unit -> where it sends 1, i, j, k
        0: (one, i, j, k), 1: (i, -one, k, -j), 2: (j, -k, -one, i), 3: (k, j, -i, -one),
    }  # fmt: skip
    with torch.no_grad():
        for unit, columns in times.items():
            op.p[unit] = torch.stack(columns, 1)
    a, x = torch.randn(4, 5, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    op.q.data.copy_(a)
    y = op(x.flatten()).view(4, 5)
    wanted = torch.stack((
        a[0] @ x[0] - a[1] @ x[1] - a[2] @ x[2] - a[3] @ x[3],
        a[0] @ x[1] + a[1] @ x[0] + a[2] @ x[3] - a[3] @ x[2],
        a[0] @ x[2] - a[1] @ x[3] + a[2] @ x[0] + a[3] @ x[1],
        a[0] @ x[3] + a[1] @ x[2] - a[2] @ x[1] + a[3] @ x[0],
    ))  # fmt: skip
    torch.testing.assert_close(y, wanted)


def test_phm_has_one_nth_of_the_numbers_and_glorots_variance():
    model = nn.Sequential(nn.Linear(256, 512))
    report = corank.factorize(model, "phm", n=8)
    assert report.totals["trainable"] == 8**3 + 256 * 512 // 8
    w = model[0].operator.dense().detach()
    assert isinstance(model[0].operator, KronSum)
    assert math.isclose(float(w.var()), 2 / (256 + 512), rel_tol=0.1)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_btt_is_two_contractions_over_digits(rank):
    _, report, found = made("btt", rank=rank, targets=["2"])
    left, _, right = found["2"].operators  # 36 = 6 x 6 inputs, 20 = 2 x 10 outputs
    # Outer input digit m, inner one p; outer output digit n, inner one q.
    first = right.blocks.view(6, 2, rank, 6)  # m, n, r, p
    second = left.blocks.view(2, 10, 6, rank)  # n, q, m, r
    wanted = torch.einsum("nqmr,mnrp,bmp->bnq", second, first, X.view(5, 6, 6)).reshape(5, 20)
    torch.testing.assert_close(found["2"](X), wanted)
    assert report.totals["trainable"] == rank * (36 * 2 + 20 * 6)


def test_btt_learns_at_mups_rates_and_starts_at_its_scale():
    model = nn.Sequential(nn.Linear(1024, 256))
    corank.factorize(model, "btt", rank=2)
    left, _, right = model[0].operator.operators
    groups = corank.controller(model).parameter_groups(lr=1e-3)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates[id(right.blocks)] == pytest.approx(1e-3 * 1024 / 32 / 2)
    assert rates[id(left.blocks)] == pytest.approx(1e-3 * 1024 / (2 * 32) / 2)
    assert rates[id(model[0].bias)] == pytest.approx(1e-3)
    # 32 -> 2 * 16 outputs, then 2 * 32 -> 16.
    assert float(right.blocks.detach().std()) == pytest.approx(32**-0.5, rel=0.05)
    assert float(left.blocks.detach().std()) == pytest.approx(64**-0.5 * (16 / 64) ** 0.5, rel=0.05)


def test_block_shuffle_is_monarchs_two_steps():
    _, report, found = made(
        "structured_ffn", kind="block_shuffle", blocks=2, guided=0.0, targets=["2"]
    )
    _, left, _, right = found["2"].operators
    assert isinstance(right, BlockDiagonal)
    z = torch.einsum("kqp,bkp->bkq", right.blocks, X.view(5, 2, 18)).reshape(5, 10, 2)
    wanted = torch.einsum("lsr,brl->bsl", left.blocks, z).reshape(5, 20)
    torch.testing.assert_close(found["2"](X), wanted)
    assert report.totals["trainable"] == 2 * (10 * 18 + 10 * 10)
    eye = torch.eye(10, dtype=torch.float64)
    torch.testing.assert_close(left.blocks @ left.blocks.mT, eye.expand(2, 10, 10))


def test_block_dense_is_a_narrow_block_diagonal_and_a_dense_weight():
    _, report, found = made(
        "structured_ffn", kind="block_dense", rank=8, blocks=2, guided=0.0, targets=["2"]
    )
    dense, narrow = found["2"].operators
    z = torch.einsum("kqp,bkp->bkq", narrow.blocks, X.view(5, 2, 18)).reshape(5, 8)
    torch.testing.assert_close(found["2"](X), z @ dense.weight.mT)
    assert report.totals["trainable"] == 8 * (20 + 36 // 2)


def test_low_rank_starts_as_the_best_part_of_a_usual_start():
    _, _, found = made("structured_ffn", rank=8, guided=0.0, targets=["2"])
    op = found["2"]
    torch.testing.assert_close(op.b.mT @ op.b, op.a @ op.a.mT)  # roots in both
    whole = corank.factorize(model := small_model(), "structured_ffn", rank=20, guided=0.0,
                             targets=["2"])  # fmt: skip
    assert whole.totals["trainable"] == 20 * (36 + 20)
    u, s, vh = torch.linalg.svd(model[2].operator.dense())
    torch.testing.assert_close(op.dense(), u[:, :8] @ torch.diag(s[:8]) @ vh[:8])


@pytest.mark.parametrize("kind", ["low_rank", "block_dense", "block_shuffle"])
def test_the_guide_starts_as_the_structure_fades_by_a_cosine_and_goes(kind):
    options = {"kind": kind, "rank": 8, "blocks": 2}
    model, report, _ = made("structured_ffn", **options)
    plain, without, _ = made("structured_ffn", guided=0.0, **options)
    torch.testing.assert_close(model(X[:, :16]), plain(X[:, :16]))
    dense = 36 * 16 + 20 * 36 + 20 * 20
    assert report.totals["trainable"] == without.totals["trainable"] + dense
    control, optimizer = begin(model)
    (training,) = control.trainings
    for step in range(TOTAL // 2):
        ratio = (1 + math.cos(math.pi * step / (TOTAL / 2))) / 2
        for op in training.operators.values():
            structured, guide = op.operators
            assert (structured.scale, guide.scale) == pytest.approx((1 - ratio, ratio))
        train(model, optimizer, [step])
    assert not any(isinstance(op, Sum) for op in operators(model).values())
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert known == {id(p) for p in model.parameters()}
    assert (
        sum(p.numel() for op in operators(model).values() for p in op.parameters())
        == (without.totals["trainable"])
    )
    train(model, optimizer, range(2))


@pytest.mark.parametrize(
    ("key", "parameters", "told"),
    [("phm", {"n": 3}, "n=3 does not divide"), ("btt", {"rank": 999}, "rank 999 is above"),
     ("structured_ffn", {"rank": 6, "blocks": 4, "kind": "block_dense"}, "4 blocks do not"),
     ("structured_ffn", {"blocks": 3, "kind": "block_shuffle"}, "3 blocks do not")],
)  # fmt: skip
def test_what_does_not_divide_names_the_site(key, parameters, told):
    model = small_model()
    with pytest.raises(SiteError, match=told):
        corank.factorize(model, key, **parameters)
    assert all(type(layer) in (nn.Linear, nn.Tanh) for layer in model)


@pytest.mark.parametrize(
    ("key", "parameters"),
    [("phm", {"n": 0}), ("structured_ffn", {"kind": "dense"}), ("structured_ffn", {"guided": 2.0}),
     ("maestro", {"sample": "some"}), ("maestro", {"every": 0}),
     ("train_rank_increment", {"first": 9, "rank": 4})],
)  # fmt: skip
def test_bad_parameters_are_refused(key, parameters):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        corank.factorize(small_model(), key, **parameters)
