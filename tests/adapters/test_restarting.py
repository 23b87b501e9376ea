"""LoRA in cycles: what a restart keeps, forgets and begins anew."""

import pytest
import torch

import corank
from corank.operators import Dense, LowRank

from .small import batches, loss, operators
from .training import begin, delta, products, steps

X = batches(1)[0]


def kept(model, path="0"):
    return operators(model)[path].operators[1]


def test_a_restart_keeps_the_function_and_begins_anew():
    model, control, optimizer = begin("relora", rank=2, every=3, cycles=4, warmup=0)
    seen = []

    def after_the_step(*_):  # runs after the optimiser and before the control
        seen.append(model(X).detach())

    handle = optimizer.register_step_post_hook(after_the_step)
    optimizer._optimizer_step_post_hooks.move_to_end(handle.id, last=False)
    starts = [op.a.detach().clone() for op in products(control).values()]
    steps(model, optimizer, range(3))
    torch.testing.assert_close(model(X), seen[-1])
    for op, start in zip(products(control).values(), starts, strict=True):
        assert not op.b.any()
        assert not torch.equal(op.a, start)
        assert op.a.abs().max() <= op.shape[1] ** -0.5
    assert torch.linalg.matrix_rank(delta(model, "0")) == 2


def test_the_total_rank_grows_with_the_cycles():
    model, _, optimizer = begin("relora", rank=2, every=3, cycles=3, prune=1.0)
    ranks = []
    steps(model, optimizer, range(12), lambda _: ranks.append(
        int(torch.linalg.matrix_rank(delta(model, "0"), rtol=1e-12))
    ))  # fmt: skip
    assert ranks[2] == 2
    assert ranks[5] == 4
    assert ranks[8] == 6
    assert ranks[11] == 8


def test_what_is_kept_is_the_smaller_of_factors_and_matrix():
    model, _, _ = begin("relora", rank=2, every=3, cycles=3)
    assert isinstance(kept(model), LowRank)
    assert kept(model).rank == 6
    model, _, _ = begin("relora", rank=8, every=3, cycles=3)
    assert isinstance(kept(model), Dense)


@pytest.mark.parametrize("momentum", [1.0, 0.3])
def test_factors_and_matrix_keep_the_same(momentum):
    def run(cycles):
        model, _, optimizer = begin(
            "periodic_lora", rank=2, every=3, cycles=cycles, momentum=momentum, total=8
        )
        steps(model, optimizer, range(8))
        return model(X).detach(), kept(model)

    (one, factors), (two, matrix) = run(2), run(9)
    assert isinstance(factors, LowRank)
    assert isinstance(matrix, Dense)
    torch.testing.assert_close(one, two)


def test_no_restart_after_the_last_cycle_or_at_the_end():
    model, _, optimizer = begin("relora", rank=2, every=3, cycles=1, total=9)
    steps(model, optimizer, range(9))
    assert torch.linalg.matrix_rank(delta(model, "0")) == 4
    model, control, optimizer = begin("relora", rank=2, every=3, cycles=3, total=6)
    steps(model, optimizer, range(6))
    assert all(op.b.any() for op in products(control).values())


def test_relora_prunes_the_moments():
    model, control, optimizer = begin("relora", rank=4, every=3, cycles=3, prune=0.75)
    steps(model, optimizer, range(3))
    for op in products(control).values():
        for leaf in (op.a, op.b):
            for moment in ("exp_avg", "exp_avg_sq"):
                zeros = (optimizer.state[leaf][moment] == 0).double().mean()
                assert abs(zeros - 0.75) < 0.01
            assert optimizer.state[leaf]["step"] == 3


def test_the_rate_warms_up_again_on_top_of_its_schedule():
    model, control, optimizer = begin("relora", rank=2, every=4, cycles=3, warmup=3, lr=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 - t / 100)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = 0.1
    scheduler.base_lrs = [0.1 for _ in optimizer.param_groups]
    used, left = [], []
    optimizer.register_step_pre_hook(lambda opt, *_: used.append(opt.param_groups[0]["lr"]))
    for step in range(9):
        optimizer.zero_grad()
        loss(model, batches(6)[step % 6]).backward()
        optimizer.step()
        left.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    schedule = [0.1] + [0.1 * (1 - t / 100) for t in range(1, 9)]
    factors = [1, 1, 1, 1, 1 / 3, 2 / 3, 1, 1, 1 / 3]
    assert left == pytest.approx(schedule)
    assert used == pytest.approx([a * b for a, b in zip(schedule, factors, strict=True)])
    assert "rates" not in control.trainings[0].memory


def test_partial_unloading_keeps_the_function_and_the_rest():
    model, control, optimizer = begin("periodic_lora", rank=2, every=4, cycles=2, momentum=0.25)
    steps(model, optimizer, range(3))
    optimizer.register_step_post_hook(lambda *_: None)
    low = next(iter(products(control).values()))
    optimizer.zero_grad()
    loss(model, batches(6)[3]).backward()
    before = {}
    handle = optimizer.register_step_post_hook(
        lambda *_: before.update(y=model(X).detach(), a=low.a.clone(), b=low.b.clone())
    )
    optimizer._optimizer_step_post_hooks.move_to_end(handle.id, last=False)
    optimizer.step()
    torch.testing.assert_close(model(X), before["y"])
    assert torch.equal(low.a, before["a"])
    torch.testing.assert_close(low.b, 0.75 * before["b"])
    assert low.b not in optimizer.state


def test_relora_and_periodic_lora_coincide_where_all_is_forgotten_at_once():
    shared = {"rank": 2, "alpha": 16.0, "every": 3, "cycles": 3, "warmup": 0}
    outputs = []
    for method, own in (("relora", {"prune": 1.0}), ("periodic_lora", {"momentum": 1.0})):
        model, _, optimizer = begin(method, **shared, **own)
        steps(model, optimizer, range(10))
        outputs.append(model(X).detach())
    assert torch.equal(*outputs)


def test_the_first_cycle_is_lora():
    outputs = []
    for method, own in (("lora", {}), ("relora", {"every": 50}), ("periodic_lora", {"every": 50})):
        model, _, optimizer = begin(method, rank=4, alpha=16.0, **own)
        steps(model, optimizer, range(6))
        outputs.append(model(X).detach())
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])


def test_restarts_need_the_optimiser():
    model, _, _ = begin("relora", rank=2, every=1)
    control = corank.controller(model)
    with pytest.raises(ValueError, match=r"controller\.attach\(optimizer\)"):
        control.step()


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("relora", {"prune": 1.5}, "prune=1.5 must be from 0 to 1"),
        ("relora", {"cycles": 0}, "cycles=0 must be at least 1"),
        ("periodic_lora", {"momentum": 0.0}, "momentum=0.0 must be over 0"),
    ],
)
def test_bad_values_are_named(method, given, said):
    with pytest.raises(ValueError, match=said):
        begin(method, **given)
