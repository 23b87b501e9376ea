"""What the backward pass keeps, and what a half precision product stays in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from corank.operators import (
    Circulant,
    Dense,
    Fourier,
    LowRank,
    Operator,
    Reflections,
    Scaled,
    Sum,
    normalise_rows,
    quantise_uniform,
    sparsify,
    trainable,
)


def kept(op: Operator, x: Tensor) -> list[tuple[int, int]]:
    """(storage, numel) of what autograd keeps for op(x), beside the operator's own leaves."""
    own = {t.untyped_storage().data_ptr() for t in (*op.parameters(), *op.buffers())}
    found: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        place = t.untyped_storage().data_ptr()
        if place not in own:
            found[place] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        op(x).sum()
    return list(found.items())


def adapter() -> LowRank:
    op = LowRank(torch.randn(40, 3), torch.randn(3, 30))
    trainable(op)
    return op


@pytest.mark.parametrize("lead", [(8,), (2, 4)])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_frozen_dense_and_low_rank_keep_x_and_its_latent(
    scale: float | None, lead: tuple[int, ...]
) -> None:
    delta = adapter() if scale is None else Scaled(adapter(), scale)
    x = torch.randn(*lead, 30, requires_grad=True)
    saved = dict(kept(Sum(Dense(torch.randn(40, 30)), delta), x))
    assert saved.pop(x.untyped_storage().data_ptr()) == 8 * 30
    assert list(saved.values()) == [8 * 3]
    saved = dict(kept(Scaled(adapter(), 0.5), x))
    assert sorted(saved.values()) == [8 * 3, 8 * 30]


def test_a_quantised_or_sparse_or_normalised_weight_keeps_no_dense_copy() -> None:
    weight = torch.randn(40, 30)
    x = torch.randn(8, 30, requires_grad=True)
    base = quantise_uniform(weight)
    assert [n for _, n in kept(base, x)] == [8 * 30]  # x, from which it is done again
    assert sorted(n for _, n in kept(Sum(base, adapter()), x)) == [8 * 3, 8 * 30]
    dense_support = trainable(sparsify(weight, weight > 0))
    assert all(n < 40 * 30 for _, n in kept(dense_support, x))
    dora = normalise_rows(Sum(Dense(weight), adapter()))
    dora.m.requires_grad_(True)
    assert all(n <= 8 * 40 for _, n in kept(dora, x))


def test_transforms_and_reflections_keep_x_and_little_more() -> None:
    x = torch.randn(8, 30, requires_grad=True)
    fourier = trainable(Fourier(torch.randn(5), torch.arange(5), (40, 30)))
    assert sorted(n for _, n in kept(fourier, x)) == [5, 8 * 30]  # x and the scaled values
    turned = trainable(Reflections(torch.randn(2, 30)))
    assert sorted(n for _, n in kept(turned, x))[-2:] == [8 * 2, 8 * 30]
    circulant = trainable(Circulant(torch.randn(30), torch.randn(30)))
    assert sorted(n for _, n in kept(circulant, x)) == [30, 8 * 30]


def test_lengths_of_a_sum_with_low_rank_make_no_matrix() -> None:
    op = normalise_rows(Sum(Dense(torch.randn(40, 30)), adapter(), Scaled(adapter(), 0.5)))
    weight = op.operator.dense().detach()
    torch.testing.assert_close(op.factor(), op.m / weight.norm(dim=1))
    with FlopCounterMode(display=False) as counter:
        op.factor()
    assert counter.get_total_flops() == 2 * 40 * 30 * 6 + 2 * 6 * 6 * (40 + 30)


def test_a_scale_does_not_widen() -> None:
    op = Scaled(Dense(torch.randn(4, 6)), 0.1).to(torch.float16)
    assert op(torch.randn(2, 6).half()).dtype == torch.float16
    assert op.dense().dtype == torch.float16
    tall = Scaled(LowRank(torch.full((4, 1), 200.0), torch.full((1, 4), 200.0)).half(), 1e-3)
    assert tall(torch.ones(1, 4).half()).isfinite().all()  # 160000 before the scale


def test_detached_lengths_pass_no_gradient() -> None:
    w = torch.randn(3, 4, dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    for detached in (True, False):
        op = normalise_rows(Dense(torch.nn.Parameter(w.clone())), detached)
        op.m.requires_grad_(True)
        torch.testing.assert_close(op.dense(), w)
        op(x).square().sum().backward()
        leaf = w.clone().requires_grad_(True)
        m = w.norm(dim=1).requires_grad_(True)
        lengths = leaf.norm(dim=1).detach() if detached else leaf.norm(dim=1)
        (x @ (leaf * (m / lengths)[:, None]).T).square().sum().backward()
        torch.testing.assert_close(op.operator.weight.grad, leaf.grad)
        torch.testing.assert_close(op.m.grad, m.grad)


def test_a_zero_row_stays_zero() -> None:
    op = normalise_rows(Dense(torch.zeros(3, 4)))
    assert torch.equal(op(torch.randn(2, 4)), torch.zeros(2, 3))


def test_masked_ranks_get_no_gradient_and_gated_ones_may_regrow() -> None:
    gate, mask = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([True, True, False])
    op = trainable(LowRank(torch.randn(4, 3), torch.randn(3, 5), gate, mask))
    op(torch.randn(6, 5)).square().sum().backward()
    assert op.alive.tolist() == [False, True, False]
    assert op.gate.grad[0] != 0
    assert op.gate.grad[2] == 0
    assert (op.b.grad[:, 2] == 0).all()
    assert (op.a.grad[2] == 0).all()


def test_reflections_stay_orthogonal_in_half_precision() -> None:
    u = torch.randn(16, 64)
    with torch.autocast("cpu", torch.bfloat16):
        core = Reflections(u)._core()
    assert core.dtype == torch.float32
    w = torch.eye(64) - u.T @ core @ u
    torch.testing.assert_close(w @ w.T, torch.eye(64), rtol=0, atol=1e-4)
