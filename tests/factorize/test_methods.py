"""What each method does, against what its paper says, written down without the library's code."""

import torch
from torch import nn

import corank
from corank.control import drawn
from corank.linalg import n_of_m
from corank.operators import DoublePruned, sparsify

from ..adapters.small import loss, small_model
from .small import batches, begin, factorize, operators, train

X = batches(1)[0]


def made(key, **form):
    return factorize(corank.registry.find_method(key), **form)[0]


def weights():
    return {n: small_model().get_parameter(f"{n}.weight").detach() for n in ("0", "2", "4")}


def test_sltrain_starts_at_its_sparse_part():
    for op in operators(made("sltrain")).values():
        low, sparse = op.operators
        assert low.scale == 2
        assert not low.operator.b.any()
        values, bound = sparse.values.detach(), op.shape[1] ** -0.5
        assert values.abs().max() <= bound
        assert values.abs().max() > 0.8 * bound
        index = sparse.index
        assert len(index) == int(0.1 * op.shape[0] * op.shape[1])
        assert (index[1:] > index[:-1]).all()
        torch.testing.assert_close(op.dense(), sparse.dense())


def test_lost_keeps_the_columns_that_its_factors_miss():
    model = made("lost", activation=None)
    for name, w in weights().items():
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        low = (u[:, :4] * s[:4]) @ vh[:4]
        missed = (w - low).square().sum(0)
        columns = missed.argsort(descending=True)[: int(0.2 * w.shape[1])]
        expected = 0.7 * low
        expected[:, columns] += 0.3 * w[:, columns]
        torch.testing.assert_close(model[int(name)].operator.dense(), expected)


def test_lost_with_an_activation():
    op = made("lost", activation="tanh")[2].operator
    low, columns = (part.operator for part in op.operators)
    b, a = low.operators[0].weight, low.operators[1].operator.weight
    x = torch.randn(3, 36, dtype=torch.float64)
    wide, index = columns.operators[0].weight, columns.operators[1].index
    expected = 0.7 * torch.tanh(x @ a.mT) @ b.mT + 0.3 * x[:, index] @ wide.mT
    torch.testing.assert_close(op(x), expected)


def test_sst_starts_at_the_weight_and_keeps_it_from_round_to_round():
    model, plain = made("sst"), small_model()
    torch.testing.assert_close(model(X), plain(X))
    _, optimizer = begin(model)
    train(model, optimizer, range(5))
    after_five = {name: op.dense().detach() for name, op in operators(model).items()}
    frozen = {name: op.operators[0].b.detach().clone() for name, op in operators(model).items()}
    train(model, optimizer, range(5, 6))
    for name, op in operators(model).items():
        rest, active = op.operators
        assert not torch.equal(rest.b, frozen[name])
        u = torch.cat([rest.b, active.b], 1)
        torch.testing.assert_close(u.mT @ u, torch.eye(u.shape[1], dtype=torch.float64))
        s = torch.cat([rest.gate, active.gate]).detach().sort(descending=True).values
        torch.testing.assert_close(s, torch.linalg.svdvals(op.dense().detach()))
        moved = torch.linalg.matrix_norm(op.dense() - after_five[name])
        assert moved < 0.2 * torch.linalg.matrix_norm(op.dense())
        assert active.b not in optimizer.state
        assert rest.gate not in optimizer.state


def test_sst_moves_vectors_by_the_gradient_without_the_value():
    model = made("sst", every=100)
    control, _ = begin(model)
    op = model[2].operator
    dense = nn.Parameter(op.dense().detach())
    loss(model, X).backward()
    plain = small_model()
    plain[2].weight = dense
    loss(plain, X).backward()
    _, active = op.operators
    control.before_step()
    torch.testing.assert_close(active.b.grad, dense.grad @ active.a.mT)
    torch.testing.assert_close(active.a.grad, active.b.mT @ dense.grad)


def test_sst_keeps_vectors_of_unit_length_and_values_from_falling_below_zero():
    model = made("sst", every=100)
    with torch.no_grad():
        model[0].operator.operators[0].gate[-1] = 1e-6
    _, optimizer = begin(model, lr=0.05)
    train(model, optimizer, range(6))
    for op in operators(model).values():
        for part in op.operators:
            assert part.gate.min() >= 0
        one = torch.ones(4, dtype=torch.float64)
        torch.testing.assert_close(op.operators[1].b.norm(dim=0), one)
        torch.testing.assert_close(op.operators[1].a.norm(dim=1), one)


def test_sst_draws_large_values_more_often():
    values = torch.tensor([6.0, 2.0, 1.0, 1.0])
    generator = torch.Generator().manual_seed(0)
    often = torch.stack([drawn(values, 1, generator) for _ in range(4000)]).double().mean(0)
    expected = (0.25 + values.double() / 10) / 2
    torch.testing.assert_close(often, expected, rtol=0.1, atol=0.0)


def test_sst_warms_up_again_after_a_round_and_hands_the_rate_back():
    model = made("sst", every=4, warmup=2)
    _, optimizer = begin(model, lr=0.01)
    rates = []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    train(model, optimizer, range(7))
    assert rates == [0.01, 0.01, 0.01, 0.01, 0.005, 0.01, 0.01]
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_n_of_m_keeps_the_largest_of_each_group():
    size = torch.rand(6, 12, generator=torch.Generator().manual_seed(0))
    kept = n_of_m(size, 2, 4)
    for row, mask in zip(size, kept, strict=True):
        for start in range(0, 12, 4):
            group = row[start : start + 4]
            assert set(group[mask[start : start + 4]].tolist()) == set(
                group.topk(2).values.tolist()
            )


def test_slope_prunes_once_forward_and_twice_backward():
    model = made("slope")
    for name, w in weights().items():
        pruned, _ = model[int(name)].operator.operators
        once = n_of_m(w.abs(), 2, 4)
        torch.testing.assert_close(pruned.dense().detach(), w * once)
        twice = once & n_of_m((w * once).abs().mT, 2, 4).mT
        assert twice.sum() < once.sum()
        x = torch.randn(3, w.shape[1], dtype=torch.float64, requires_grad=True)
        grad = torch.randn(3, w.shape[0], dtype=torch.float64)
        to_x, to_values = torch.autograd.grad(pruned(x), (x, pruned.operator.values), grad)
        torch.testing.assert_close(to_x, grad @ (w * twice))
        torch.testing.assert_close(to_values, (grad.mT @ x)[once])


def test_double_pruned_under_autocast_and_without_a_batch():
    w = torch.randn(8, 4)
    op = DoublePruned(sparsify(w, w > 0), torch.ones(int((w > 0).sum()), dtype=torch.bool))
    op.requires_grad_(True)
    x = torch.randn(4, requires_grad=True)
    torch.testing.assert_close(op(x), (w * (w > 0)) @ x)
    with torch.autocast("cpu", torch.bfloat16):
        y = op(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32
    assert op.operator.values.grad.dtype == torch.float32


def test_slopes_adapters_wait_for_the_end():
    model = made("slope", share=0.2)
    _, optimizer = begin(model)
    started = {n: p.detach().clone() for n, p in model.named_parameters() if n[-2:] in (".a", ".b")}
    train(model, optimizer, range(24))
    assert all(torch.equal(model.get_parameter(n), p) for n, p in started.items())
    train(model, optimizer, range(24, 26))
    assert not any(torch.equal(model.get_parameter(n), p) for n, p in started.items())


def test_spectral_init_starts_at_the_best_low_rank_matrix_and_decays_it():
    model = made("spectral_init", decay=0.1)
    control = corank.controller(model)
    total = control.penalty()
    expected, ops = 0.0, operators(model)
    for name, w in weights().items():
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        torch.testing.assert_close(ops[name].dense().detach(), (u[:, :4] * s[:4]) @ vh[:4])
        expected = expected + 0.05 * (ops[name].b @ ops[name].a).square().sum()
    torch.testing.assert_close(total, expected)
    total.backward()
    for op in ops.values():
        b, a = op.b.detach(), op.a.detach()
        torch.testing.assert_close(op.b.grad, 0.1 * b @ a @ a.mT)
        torch.testing.assert_close(op.a.grad, 0.1 * b.mT @ b @ a)


def test_lorae_puts_the_identity_behind_and_penalises_its_nuclear_norm():
    model = made("lorae", targets=["2"], penalty=0.5)
    torch.testing.assert_close(model(X), small_model()(X))
    inserted = model[2].operator.operators[0].weight
    assert inserted.shape == (20, 20)
    with torch.no_grad():
        inserted.add_(torch.randn(20, 20, generator=torch.Generator().manual_seed(0)))
    total = corank.controller(model).penalty()
    torch.testing.assert_close(total, 0.5 * torch.linalg.svdvals(inserted).sum())
    total.backward()
    u, _, vh = torch.linalg.svd(inserted.detach())
    torch.testing.assert_close(inserted.grad, 0.5 * u @ vh)


def test_sparse_ift_costs_what_the_dense_weight_does():
    dense = sum(w.numel() for w in weights().values())
    for form in ("factorized", "doped", "parallel"):
        _, report = factorize(corank.registry.find_method("sparse_ift"), form=form)
        assert abs(report.totals["trainable"] - dense) < 0.05 * dense
    _, report = factorize(corank.registry.find_method("sparse_ift"), form="wide", sparsity=0.5)
    assert report.totals["trainable"] == dense // 2


def test_trp_cuts_the_weight_and_then_pushes_its_nuclear_norm_down():
    model = made("trp", every=2, energy=0.9, nuclear=0.5)
    control, optimizer = begin(model, lr=0.01, optimizer=torch.optim.SGD)
    train(model, optimizer, range(1))
    weight = model[2].weight
    assert torch.linalg.matrix_rank(weight) == 20
    seen = {}
    optimizer.register_step_pre_hook(lambda *_: seen.update(grad=weight.grad.clone()))
    value = loss(model, batches()[1])
    optimizer.zero_grad()
    value.backward()
    stepped = weight.detach() - 0.01 * weight.grad
    optimizer.step()
    u, s, vh = torch.linalg.svd(stepped, full_matrices=False)
    share = s.square().cumsum(0) / s.square().sum()
    rank = int((share < 0.9).sum()) + 1
    torch.testing.assert_close(weight.detach(), (u[:, :rank] * s[:rank]) @ vh[:rank])
    optimizer.zero_grad()
    loss(model, batches()[2]).backward()
    plain = weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(seen["grad"], plain + 0.5 * u[:, :rank] @ vh[:rank])
    assert not control.trainings[0].memory
