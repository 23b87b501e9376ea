"""CondLR and DLRT against dense computations of their steps, and what they promise."""

import pytest
import torch
from torch import nn

import corank
from corank.control.conditioned import conditioned, factors
from corank.control.integrating import flow
from corank.errors import SiteError
from corank.operators import LowRank

from ..adapters.small import small_model
from .small import begin, operators, train
from .test_ordered_ranks import linear


def drawn(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def eye(rank):
    return torch.eye(rank, dtype=torch.float64)


def lone(key, size=(10, 12), **parameters):
    """(model of one weight, its optimiser: SGD of rate 0.05, the controller's training)."""
    model = nn.Sequential(nn.Linear(size[1], size[0], bias=False)).double()
    model[0].weight.data.copy_(drawn(*size, seed=5) / 4)
    corank.factorize(model, key, **parameters)
    control = corank.controller(model)
    optimizer = torch.optim.SGD(control.parameter_groups(0.05))
    control.attach(optimizer)
    return model, optimizer, control.trainings[0]


def step(model, optimizer, x, target):
    optimizer.zero_grad()
    ((model(x) - x @ target.mT).square().sum() / 2).backward()
    optimizer.step()


def gradient(w, x, target):
    return (w - target) @ x.mT @ x


def test_conditioned_clips_around_the_mean():
    s = conditioned(torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.0], dtype=torch.float64)), 0.5)
    mean, share = 7 / 4, 0.5 / 2.5
    low, high = mean * (1 - share), mean * (1 + share)
    wanted = torch.diag(torch.tensor([high, 2.0, low, low], dtype=torch.float64))
    torch.testing.assert_close(s, wanted)
    assert high / low == pytest.approx(1.5)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_condlr_keeps_its_bases_orthonormal_and_its_condition_small(tau, optimizer):
    model = small_model()
    corank.factorize(model, "condlr", rank=5, tau=tau)
    _, made = begin(model, 1e-2, optimizer)
    for number in range(8):
        for op in operators(model).values():
            u, s, v = factors(op)
            values = torch.linalg.svdvals(s)
            assert values[0] <= values[-1] * (1 + tau) * (1 + 1e-9)
            torch.testing.assert_close(u.mT @ u, eye(5))
            torch.testing.assert_close(v @ v.mT, eye(5))
            of_w = torch.linalg.svdvals(op.dense())[:5]
            torch.testing.assert_close(of_w, values)
        train(model, made, [number])


def test_condlrs_step_is_the_flow_on_the_manifold():
    model, optimizer, _ = lone("condlr", rank=4, tau=1e6)
    x, target = drawn(20, 12, seed=1) / 4, drawn(10, 12, seed=2)
    step(model, optimizer, drawn(20, 12, seed=3) / 4, target)  # S is no longer symmetric
    op = model[0].operator
    u, s, v = (leaf.detach().clone() for leaf in factors(op))
    g = gradient(u @ s @ v, x, target)
    inverse = torch.linalg.inv(s)
    moved_u = u - 0.05 * (eye(10) - u @ u.mT) @ g @ v.mT @ inverse
    moved_v = v - 0.05 * inverse @ u.mT @ g @ (eye(12) - v.mT @ v)
    step(model, optimizer, x, target)
    new_u, new_s, new_v = factors(op)
    torch.testing.assert_close(new_s.data, s - 0.05 * u.mT @ g @ v.mT)
    for new, moved in ((new_u, moved_u), (new_v.mT, moved_v.mT)):
        q = torch.linalg.qr(moved).Q
        torch.testing.assert_close(new @ new.mT, q @ q.mT)
        assert bool(((new.mT @ moved).diagonal() > 0).all())


def reference_dlrt(w, rank, tolerance, batches, target, rate=0.05, least=2):
    """The rank-adaptive integrator with dense matrices: W after K and L, then S and the cut."""
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    u, s, v = u[:, :rank], s[:rank].diag(), vh[:rank].mT
    ranks = []
    for first, second in batches:
        g = gradient(u @ s @ v.mT, first, target)
        wide_u = torch.linalg.qr(torch.cat((u @ s - rate * g @ v, u), 1)).Q
        wide_v = torch.linalg.qr(torch.cat((v @ s.mT - rate * g.mT @ u, v), 1)).Q
        core = wide_u.mT @ u @ s @ v.mT @ wide_v
        g = gradient(wide_u @ core @ wide_v.mT, second, target)
        core = core - rate * wide_u.mT @ g @ wide_v
        p, values, q = torch.linalg.svd(core)
        kept = len(values)
        while kept > least and values[kept - 1 :].norm() <= tolerance * values.norm():
            kept -= 1
        kept = min(kept, min(w.shape) // 2)
        u, s, v = wide_u @ p[:, :kept], values[:kept].diag(), wide_v @ q[:kept].mT
        ranks.append(kept)
    return u @ s @ v.mT, ranks


@pytest.mark.parametrize("tolerance", [0.02, 0.5])
def test_dlrts_steps_are_the_integrators(tolerance):
    model, optimizer, training = lone("dlrt", rank=3, tolerance=tolerance)
    start = drawn(10, 12, seed=5) / 4
    target = drawn(10, 12, seed=2)
    batches = [(drawn(20, 12, seed=i) / 4, drawn(20, 12, seed=9 - i) / 4) for i in range(4)]
    ranks = []
    for first, second in batches:
        before = model[0].operator.dense()
        step(model, optimizer, first, target)
        torch.testing.assert_close(model[0].operator.dense(), before)  # only the bases grow
        step(model, optimizer, second, target)
        ranks.append(flow(training.operators["0"]).v.shape[0])
    wanted, of_wanted = reference_dlrt(start, 3, tolerance, batches, target)
    assert ranks == of_wanted
    assert set(ranks) != {3}
    torch.testing.assert_close(model[0].operator.dense(), wanted)


def test_dlrt_finds_the_rank_by_itself_and_ends_as_a_plain_product():
    model, target = linear(rank=2)
    corank.factorize(model, "dlrt", rank=5, tolerance=0.05)
    control = corank.controller(model, total_steps=401)
    optimizer = torch.optim.SGD(control.parameter_groups(0.2))
    control.attach(optimizer)
    for number in range(401):
        x = drawn(32, 12, seed=number)
        optimizer.zero_grad()
        ((model(x) - x @ target.mT).square().sum(1).mean() / 2).backward()
        optimizer.step()
    op = model[0].operator
    assert isinstance(op, LowRank)
    assert op.rank == 2
    assert (op.dense() - target).norm() < 0.05 * target.norm()
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(op.b), id(op.a),
    }  # fmt: skip


def test_dlrt_never_has_less_than_its_least_rank():
    model, optimizer, training = lone("dlrt", rank=4, tolerance=0.9, least=3)
    for number in range(4):
        step(model, optimizer, drawn(20, 12, seed=number), drawn(10, 12, seed=2))
    assert flow(training.operators["0"]).v.shape[0] == 3


def test_dlrt_works_in_half_precision():
    model = small_model(dtype=torch.bfloat16)
    corank.factorize(model, "dlrt", rank=4)
    control = corank.controller(model)
    optimizer = torch.optim.SGD(control.parameter_groups(1e-2))
    control.attach(optimizer)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.ones(3, 16, dtype=torch.bfloat16)).float().square().sum().backward()
        optimizer.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(
    ("key", "parameters", "told"),
    [("condlr", {"tau": 0.0}, "tau"), ("dlrt", {"tolerance": 1.0}, "tolerance"),
     ("dlrt", {"least": 0}, "least")],
)  # fmt: skip
def test_bad_parameters_are_refused(key, parameters, told):
    with pytest.raises(ValueError, match=told):
        corank.factorize(small_model(), key, **parameters)


def test_a_rank_that_cannot_double_is_refused():
    with pytest.raises(SiteError, match="rank 9 is outside 1 to 8, half"):
        corank.factorize(small_model(), "dlrt", rank=9)
