from __future__ import annotations

import copy
import json

import pytest
import torch
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from corank.operators import Operator, build, describe, trainable, transpose
from corank.operators.skeleton import KINDS

from .oracles import ORACLES, fresh

every = pytest.mark.parametrize("name", ORACLES)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_every_operator_has_an_oracle() -> None:
    linear = {k: kind for k, kind in KINDS.items() if kind.linear}
    ours = {k for k, kind in linear.items() if kind.__module__.startswith("corank.operators")}
    assert {type(m).__name__ for name in ORACLES for m in fresh(name)[0].modules()} >= ours


@every
def test_forward_and_dense_equal_the_matrix(name: str) -> None:
    op, w = fresh(name)
    assert op.shape == tuple(w.shape)
    close(op.dense().double(), w)
    for lead in ((), (3,), (2, 4), (2, 0, 3), (0,)):
        x = torch.randn(*lead, op.shape[1], dtype=torch.float64)
        close(op(x), x @ w.T)
        y = torch.randn(*lead, op.shape[0], dtype=torch.float64)
        close(transpose(op)(y), y @ w)
    strided = torch.randn(op.shape[1], 3, dtype=torch.float64).mT
    close(op(strided), strided @ w.T)


@every
def test_transposition_swaps_the_shape_and_returns(name: str) -> None:
    op, w = fresh(name)
    flipped = transpose(op)
    assert flipped.shape == (w.shape[1], w.shape[0])
    close(flipped.dense().double(), w.T)
    close(transpose(flipped).dense().double(), w)
    assert {id(p) for p in flipped.parameters()} == {id(p) for p in op.parameters()}


@every
def test_linear(name: str) -> None:
    op, _ = fresh(name)
    x, y = torch.randn(2, 5, op.shape[1], dtype=torch.float64)
    close(op(2.0 * x - 3.0 * y), 2.0 * op(x) - 3.0 * op(y))


@every
def test_gradients_of_x_and_of_every_leaf(name: str) -> None:
    op, w = fresh(name)
    trainable(op)
    leaves = dict(op.named_parameters())
    x = torch.randn(3, op.shape[1], dtype=torch.float64, requires_grad=True)
    for one in (op, transpose(op)):
        if "detached" in name:
            close(torch.autograd.grad(op(x).sum(), x)[0], w.sum(0).expand_as(x))
            continue
        mine = dict(one.named_parameters())
        z = torch.randn(3, one.shape[1], dtype=torch.float64, requires_grad=True)

        def call(z: torch.Tensor, *values: torch.Tensor, one=one, mine=mine) -> torch.Tensor:
            return functional_call(one, dict(zip(mine, values, strict=True)), (z,))

        assert gradcheck(call, (z, *mine.values()))
    frozen = op.requires_grad_(False)
    (grad,) = torch.autograd.grad(frozen(x).square().sum(), x)
    close(grad, 2 * x @ w.T @ w)
    assert all(leaf.grad is None for leaf in leaves.values())


@every
def test_bf16_and_autocast(name: str) -> None:
    op, w = fresh(name, torch.bfloat16)
    reference = op.dense().double()
    x = torch.randn(4, op.shape[1]).bfloat16()
    y = op(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), x.double() @ reference.T, rtol=0.1, atol=0.3)

    op, w = fresh(name, torch.float32)
    op = trainable(op)
    x = torch.randn(4, op.shape[1], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = op(x)
    torch.testing.assert_close(y.float(), x @ w.T, rtol=0.1, atol=0.3)
    y.float().sum().backward()
    torch.testing.assert_close(x.grad, w.sum(0).expand_as(x), rtol=0.1, atol=0.3)


@every
def test_compiles_without_a_graph_break(name: str) -> None:
    torch._dynamo.reset()
    op, _ = fresh(name)
    trainable(op)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager", dynamic=False)
    x = torch.randn(3, op.shape[1], dtype=torch.float64, requires_grad=True)
    close(compiled(x), op(x))
    expected = torch.autograd.grad(op(x).square().sum(), [x, *op.parameters()])
    actual = torch.autograd.grad(compiled(x).square().sum(), [x, *op.parameters()])
    for a, b in zip(actual, expected, strict=True):
        close(a, b)


@every
def test_gradient_checkpointing(name: str) -> None:
    op, _ = fresh(name)
    trainable(op)
    x = torch.randn(3, op.shape[1], dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(op(x).square().sum(), [x, *op.parameters()])
    again = checkpoint(op, x, use_reentrant=False).square().sum()
    for a, b in zip(torch.autograd.grad(again, [x, *op.parameters()]), expected, strict=True):
        close(a, b)
    if op.state_dict():
        checkpoint(op, x, use_reentrant=True).square().sum().backward()
        close(x.grad, expected[0])


@every
def test_skeleton_rebuilds_it_bit_for_bit(name: str) -> None:
    op, _ = fresh(name)
    first = next(op.parameters(), None)
    if first is not None:
        first.requires_grad_(True)
    skeleton = json.loads(json.dumps(describe(op)))
    assert skeleton == describe(op)
    empty = build(skeleton)
    assert all(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
    assert describe(empty) == skeleton
    empty.load_state_dict(op.state_dict(), strict=True, assign=True)
    filled = build(skeleton, "cpu")
    filled.load_state_dict(op.state_dict(), strict=True)
    for twin in (empty, filled, copy.deepcopy(op)):
        assert type(twin) is type(op)
        assert [p.requires_grad for p in twin.parameters()] == _flags(op, twin)
        x = torch.randn(3, op.shape[1], dtype=torch.float64)
        assert torch.equal(twin(x), op(x))
        assert torch.equal(twin.dense(), op.dense())


def _flags(op: Operator, twin: Operator) -> list[bool]:
    flags = {name: p.requires_grad for name, p in op.named_parameters(remove_duplicate=False)}
    return [flags[name] for name, _ in twin.named_parameters()]


@every
def test_meta_counts_as_real(name: str) -> None:
    op, _ = fresh(name)
    tensors = (*op.parameters(), *op.buffers())
    empty = copy.deepcopy(op, {id(t): t.to("meta") for t in tensors})  # what is shared stays so
    assert (empty.numel(), empty.bytes(), empty.flops(7)) == (op.numel(), op.bytes(), op.flops(7))
    kept = {id(t): t for t in op.state_dict(keep_vars=True).values()}  # Seeded's is not
    assert op.bytes() == sum(t.numel() * t.element_size() for t in kept.values())
    y = empty(torch.empty(3, op.shape[1], dtype=torch.float64, device="meta"))
    assert y.is_meta
    assert y.shape == (3, op.shape[0])
    assert empty.device.type == "meta"
    assert empty.dense().shape == op.shape
