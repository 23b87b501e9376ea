"""LoRA's relatives: starts, counts and coincidences."""

import torch
from torch import nn

import corank
from corank.adapters import adapted
from corank.operators import LowRank

from .small import batches, loss, operators, small_model, stir

X = batches(1)[0]


def low_rank(op):
    return next(m for m in op.modules() if isinstance(m, LowRank))


def test_lora_fa_has_an_orthonormal_frozen_factor_and_half_the_numbers():
    model = small_model()
    report = corank.adapt(model, "lora_fa", rank=4)
    for op in operators(model).values():
        a = low_rank(op).a
        assert not a.requires_grad
        torch.testing.assert_close(a @ a.mT, torch.eye(4, dtype=torch.float64))
    assert report.totals["trainable"] == 4 * (36 + 20 + 20)


def test_noras_outer_factors_are_the_leading_part_of_the_weight():
    model = small_model()
    report = corank.adapt(model, "nora", rank=16, inner_rank=3, targets=["0"])
    (op,) = operators(model).values()
    left, _, right = op.operators[1].operator.operators
    w = adapted(model)["0"].base.dense()
    torch.testing.assert_close(left.weight @ right.weight, w)  # rank 16 is all of it
    assert report.totals["trainable"] == 2 * 3 * 16


def test_map_starts_with_its_first_length_alone():
    model = small_model()
    corank.adapt(model, "map", rank=3)
    for name, op in operators(model).items():
        w = adapted(model)[name].base.dense()
        first, second = op.operators
        torch.testing.assert_close(first.m, w.norm().reshape(1))
        assert second.m.item() == 0
        second.m.data.fill_(2.5)
        torch.testing.assert_close((op.dense() - w).norm().item(), 2.5)
    loss(model, X).backward()
    assert all(p.grad is not None and p.grad.any() for op in operators(model).values()
               for p in low_rank(op).parameters())  # fmt: skip


def test_bora_is_dora_where_the_columns_are_let_alone():
    one, two = small_model(), small_model()
    corank.adapt(one, "bora", rank=3)
    corank.adapt(two, "dora", rank=3)
    stir(two)
    with torch.no_grad():
        for both, rows in zip(operators(one).values(), operators(two).values(), strict=True):
            inner = both.operator
            for mine, theirs in zip(inner.parameters(), rows.parameters(), strict=True):
                mine.copy_(theirs)
            both.m.copy_(rows.dense().norm(dim=0))
    torch.testing.assert_close(one(X), two(X))


def test_bora_is_exact_at_the_start_in_single_precision_too():
    model = small_model(dtype=torch.float32)
    before = model(X.float())
    corank.adapt(model, "bora", rank=4)
    torch.testing.assert_close(model(X.float()), before, rtol=1e-5, atol=1e-5)


def test_dora_keeps_no_matrix_and_makes_none():
    model = nn.Sequential(nn.Linear(64, 48))
    corank.adapt(model, "dora", rank=2)
    weight, sizes = adapted(model)["0"].base.weight, []

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():
            sizes.append(tensor.numel())
        return tensor

    x = torch.randn(8, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x).sum()
    assert max(sizes) <= 8 * 64
