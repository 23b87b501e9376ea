"""Backward passes over a sketch: exact for inputs, without bias for weights, and small."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import corank
from corank.operators import Sketched

SIDES = ["features", "tokens"]
sides = pytest.mark.parametrize("side", SIDES)


def operator(side: str, ratio: float = 0.5, every: int = 1, seed: int = 0) -> Sketched:
    w = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    return Sketched(nn.Parameter(w), side, ratio, every, seed)


def inputs() -> Tensor:
    return torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(2), requires_grad=True)


def gradients(op: nn.Module, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    y = op(x)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
    dx, dw = torch.autograd.grad((y * g).sum(), (x, weight))
    return dx, dw


def exact(op: Sketched, x: Tensor) -> tuple[Tensor, Tensor]:
    return gradients(lambda x: F.linear(x, op.weight), x, op.weight)


@sides
def test_outputs_and_their_gradient_to_inputs_are_exact(side: str) -> None:
    op, x = operator(side), inputs()
    assert torch.equal(op(x), F.linear(x, op.weight))
    torch.testing.assert_close(gradients(op, x, op.weight)[0], exact(op, x)[0])


@sides
def test_the_gradient_to_the_weight_has_no_bias_and_the_right_spread(side: str) -> None:
    op, x = operator(side), inputs()
    want = exact(op, x)[1]
    found = torch.stack([gradients(op, x, op.weight)[1] for _ in range(2000)])
    errors = (found - want).flatten(1)
    spread = errors.square().sum(1).mean().sqrt()
    assert spread > 0.3 * want.norm()
    assert errors.mean(0).norm() < 4 * spread / math.sqrt(len(errors))
    # E |A P P^T B - A B|^2 = (|A|^2 |B|^2 + |A B|^2) / width, for a Gaussian P
    dy = torch.randn(16, 5, generator=torch.Generator().manual_seed(3))
    rows = x.detach().flatten(0, 1)
    if side == "tokens":
        variance = (dy.square().sum() * rows.square().sum() + want.square().sum()) / 8
    else:
        variance = (want.square().sum() * 12 + want.square().sum()) / 6
    assert spread.item() == pytest.approx(variance.sqrt().item(), rel=0.1)


@pytest.mark.parametrize("side", SIDES)
def test_a_matrix_lasts_for_so_many_passes(side: str) -> None:
    op, x = operator(side, every=3), inputs()
    found = [gradients(op, x, op.weight)[1] for _ in range(6)]
    same = [torch.equal(a, b) for a, b in pairwise(found)]
    assert same == [True, True, False, True, True]
    assert op.passes == 6


@sides
def test_seeds_differ_and_what_is_loaded_goes_on(side: str) -> None:
    x = inputs()
    one, same, other = (operator(side, seed=seed) for seed in (0, 0, 1))
    first = [gradients(op, x, op.weight)[1] for op in (one, same, other)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    resumed = operator(side)
    resumed.load_state_dict(one.state_dict())
    again = [gradients(op, x, op.weight)[1] for op in (one, resumed)]
    assert torch.equal(*again)
    assert not torch.equal(first[0], again[0])


@sides
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_sketches_what_it_runs_again(side: str, reentrant: bool) -> None:
    x = inputs()
    op = operator(side)  # its mean is the gradient only if sketch and matrix are of one draw
    want = exact(op, x)
    total = torch.zeros_like(op.weight)
    for _ in range(400):
        y = checkpoint(op, x, use_reentrant=reentrant)
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
        op.weight.grad = x.grad = None
        (y * g).sum().backward()
        torch.testing.assert_close(x.grad, want[0])
        total += op.weight.grad
    assert (total / 400 - want[1]).norm() < 0.3 * want[1].norm()


@sides
def test_nothing_is_sketched_without_training(side: str) -> None:
    op, x = operator(side), inputs()
    with torch.no_grad():
        op(x)
    op.weight.requires_grad_(False)
    op(x).sum().backward()
    assert op.passes == 0


@sides
def test_autocast_and_half_precision(side: str) -> None:
    op, x = operator(side), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        y = op(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert op.weight.grad is not None
    assert op.weight.grad.dtype == x.grad.dtype == torch.float32
    half = operator(side).to(torch.bfloat16)
    half(x.detach().bfloat16()).sum().backward()
    assert half.weight.grad.dtype == torch.bfloat16


@sides
def test_compiled_it_gives_the_same(side: str) -> None:
    torch._dynamo.reset()
    one, two, x = operator(side), operator(side), inputs()
    compiled = torch.compile(nn.Sequential(one, nn.Tanh()), backend="eager")
    a = gradients(compiled, x, one.weight)
    b = gradients(nn.Sequential(two, nn.Tanh()), x, two.weight)
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q)


def transformer() -> GPTNeoXForCausalLM:
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=40,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            use_cache=False,
        )
    )


def kept_bytes(model: nn.Module, ids: Tensor) -> int:
    """Bytes of the distinct storages that autograd keeps, without the model's own."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        kept.setdefault(t.untyped_storage().data_ptr(), t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(ids, labels=ids)
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own)


@pytest.mark.parametrize("method", ["compact", "rmm_linear"])
def test_a_transformer_keeps_a_quarter_less_and_learns_as_well(method: str) -> None:
    ids = torch.randint(40, (4, 48), generator=torch.Generator().manual_seed(0))
    losses, kept = {}, {}
    for key in (None, method):
        model = transformer()
        if key is not None:
            corank.factorize(model, key)
        kept[key] = kept_bytes(model, ids)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(12):
            loss = model(ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[key] = loss.item()
    start = math.log(40)
    assert kept[method] < 0.75 * kept[None]
    assert start - losses[method] > 0.7 * (start - losses[None])


def test_compact_leaves_the_attentions_output_as_it_is() -> None:
    model = transformer()
    corank.factorize(model, "compact")
    layer = model.gpt_neox.layers[0]
    assert type(layer.attention.dense) is nn.Linear
    assert isinstance(layer.attention.query_key_value.operator, Sketched)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"side": "rows"}, "side must be"), ({"ratio": 0.0}, "ratio must"), ({"every": 0}, "every")],
)
def test_bad_options(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sketched(torch.ones(2, 2), **options)
