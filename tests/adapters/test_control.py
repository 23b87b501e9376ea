"""The reusable parts of control, and dropping dead ranks."""

import pytest
import torch

import corank
from corank.control import alternate, cut
from corank.control.proximal import soft_threshold
from corank.control.ranks import truncate
from corank.control.restart import forget
from corank.control.schedules import cubic, linear
from corank.control.selection import global_top, top_share
from corank.operators import LowRank, Scaled, Sum

from .small import batches, mask_by_hand, operators, small_model
from .training import begin, products, steps

X = batches(1)[0]


def test_schedules_hold_their_ends_and_go_between():
    assert [linear(t, 4, 12, 2, 6) for t in (0, 2, 3, 6, 9)] == [4, 4, 6, 12, 12]
    assert [cubic(t, 9, 1, 2, 4) for t in (0, 2, 3, 4, 7)] == [9, 9, 2, 1, 1]


def test_the_global_top_is_the_sorted_head():
    scores = {"p": torch.tensor([3.0, 1.0, 5.0]), "q": torch.tensor([4.0, 2.0])}
    kept = global_top(scores, 3)
    assert kept["p"].tolist() == [True, False, True]
    assert kept["q"].tolist() == [True, False]
    assert all(k.all() for k in global_top(scores, 5).values())
    assert not any(k.any() for k in global_top(scores, 0).values())


@pytest.mark.parametrize("axis", [0, 1])
def test_the_top_share_is_taken_along_an_axis(axis):
    scores = torch.rand(10, 8, generator=torch.Generator().manual_seed(0))
    kept = top_share(scores, 0.25, axis)
    dropped = int(scores.shape[axis] * 0.75)
    assert (kept.sum(axis) == scores.shape[axis] - dropped).all()
    highest_dropped = scores.masked_fill(kept, -1).amax(axis)
    assert (scores.masked_fill(~kept, 2).amin(axis) > highest_dropped).all()


def test_soft_threshold_makes_exact_zeros():
    leaf = torch.tensor([0.5, -0.5, 0.1, -0.1, 0.2])
    soft_threshold(leaf, 0.2)
    torch.testing.assert_close(leaf, torch.tensor([0.3, -0.3, 0.0, 0.0, 0.0]))
    assert (leaf == 0).sum() == 3


def test_truncated_ranks_are_made_up_for_by_a_frozen_gate_only():
    b, a = torch.rand(5, 4), torch.rand(4, 6)
    gated, masked = LowRank(b, a, torch.ones(4)), LowRank(b, a, mask=torch.ones(4) > 0)
    for rank in (3, 1, 2, 4, 2):
        truncate(gated, rank)
        truncate(masked, rank)
        torch.testing.assert_close(gated.dense(), 4 / rank * b[:, :rank] @ a[:rank])
        torch.testing.assert_close(masked.dense(), b[:, :rank] @ a[:rank])
    with pytest.raises(ValueError, match="rank 5 is outside 1 to 4"):
        truncate(masked, 5)


def test_batches_alternate_and_start_over():
    stream = alternate("abc", "xy", inner=2)
    assert "".join(next(stream) for _ in range(12)) == "abxcaybcxaby"


def test_forgetting_takes_the_same_entries_of_all_moments():
    leaf = torch.nn.Parameter(torch.zeros(10))
    optimizer = torch.optim.Adam([leaf])
    leaf.grad = torch.arange(10.0) - 4.5
    optimizer.step()
    forget(optimizer, leaf, 0.6)
    state = optimizer.state[leaf]
    assert state["exp_avg"].bool().tolist() == [True] * 2 + [False] * 6 + [True] * 2
    assert torch.equal(state["exp_avg_sq"].bool(), state["exp_avg"].bool())
    forget(optimizer, leaf, 1.0)
    assert leaf not in optimizer.state


SEPARABLE = {
    "lora": {}, "lora_plus": {}, "allora": {}, "sora": {}, "bilora": {}, "roselora": {"last": 6},
    "adalora": {"target_r": 3, "init_r": 6, "tfinal": 2, "deltaT": 2},
}  # fmt: skip


@pytest.mark.parametrize("method", SEPARABLE)
def test_training_masked_ranks_is_training_without_them(method):
    def run(cutting):
        model, control, optimizer = begin(method, lr=1e-3, **SEPARABLE[method])
        steps(model, optimizer, range(4))
        for op in products(control).values():
            kept = torch.arange(op.rank) % 3 != 1
            mask_by_hand(model, op, kept)
            if op.gate is not None:  # one gated to zero would only regrow where it is not cut
                op.gate.data[op.gate == 0] = 1e-3
        if cutting:
            assert corank.adapters.compact(model, optimizer, control) > 0
        trace = []
        steps(model, optimizer, range(4, 12), lambda _: trace.append(model(X).detach()))
        return trace

    for cut_, masked in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(cut_, masked)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda groups: torch.optim.SGD(groups, momentum=0.9),
        lambda groups: torch.optim.AdamW(groups, amsgrad=True),
        torch.optim.RMSprop,
        lambda groups: torch.optim.AdamW(groups, foreach=True),
    ],
    ids=["sgd", "amsgrad", "rmsprop", "foreach"],
)
def test_any_elementwise_optimiser_follows(optimizer):
    def run(cutting):
        model, control, made = begin("lora", optimizer=optimizer, lr=1e-3)
        steps(model, made, range(3))
        for op in products(control).values():
            mask_by_hand(model, op, torch.arange(op.rank) > 2)
        if cutting:
            assert corank.adapters.compact(model, made, control) == 9
        steps(model, made, range(3, 8))
        return model(X).detach()

    torch.testing.assert_close(run(True), run(False))


def test_factored_moments_follow():
    def adafactor(groups):
        return torch.optim.Adafactor(groups)

    model, control, optimizer = begin("lora", optimizer=adafactor)
    steps(model, optimizer, range(3))
    for op in products(control).values():
        mask_by_hand(model, op, torch.arange(op.rank) > 2)
    corank.adapters.compact(model, optimizer, control)
    for leaf, state in optimizer.state.items():
        assert state["row_var"].shape == (leaf.shape[0], 1)
        assert state["col_var"].shape == (1, leaf.shape[1])
    steps(model, optimizer, range(3, 6))


def test_a_state_that_cannot_follow_is_refused():
    model, control, optimizer = begin("lora")
    steps(model, optimizer, range(2))
    for op in products(control).values():
        mask_by_hand(model, op, torch.arange(op.rank) > 2)
        optimizer.state[op.a]["exp_avg"] = torch.zeros(5)
    with pytest.raises(ValueError, match="compact before making the optimiser"):
        corank.adapters.compact(model, optimizer, control)


def test_a_shared_factor_keeps_what_lives_in_one_of_its_products():
    shared = torch.nn.Parameter(torch.rand(4, 6))
    one = LowRank(torch.rand(5, 4), shared, mask=torch.tensor([True, False, False, True]))
    two = LowRank(torch.rand(3, 4), shared, mask=torch.tensor([True, True, False, False]))
    before = one.dense(), two.dense()
    assert cut([({"one": Sum(Scaled(one, 2.0)), "two": two}, {})]) == 1
    assert one.a is two.a
    assert one.rank == two.rank == 3
    torch.testing.assert_close(one.dense(), before[0])
    torch.testing.assert_close(two.dense(), before[1])


def test_everything_can_go():
    model, control, optimizer = begin("lora")
    steps(model, optimizer, range(2))
    for op in products(control).values():
        mask_by_hand(model, op, torch.zeros(op.rank, dtype=torch.bool))
    corank.adapters.compact(model, optimizer, control)
    torch.testing.assert_close(model(X), small_model()(X))
    assert {op.operators[1].operator.rank for op in operators(model).values()} == {0}


def test_gradients_are_cut_along():
    model, control, optimizer = begin("lora")
    model(X).sum().backward()
    for op in products(control).values():
        mask_by_hand(model, op, torch.arange(op.rank) > 2)
    expected = [op.b.grad[:, 3:] for op in products(control).values()]
    corank.adapters.compact(model, optimizer, control)
    for op, gradient in zip(products(control).values(), expected, strict=True):
        assert torch.equal(op.b.grad, gradient)
