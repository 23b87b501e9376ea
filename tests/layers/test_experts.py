from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from corank.layers import Experts
from corank.layers.experts import routed
from corank.operators import LowRank


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _experts() -> Experts:
    gate_up = [LowRank(_random(12, 3, seed=e), _random(3, 8, seed=10 + e)) for e in range(4)]
    down = [LowRank(_random(8, 2, seed=20 + e), _random(2, 6, seed=30 + e)) for e in range(4)]
    return Experts(gate_up, down, nn.SiLU()).requires_grad_(True)


INDEX = torch.tensor([[0, 2], [2, 0], [3, 4], [2, 3], [0, 3]])  # nobody asks 1; 4 is elsewhere


def _by_hand(experts: Experts, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    out = []
    for token in range(len(x)):
        y = torch.zeros(8)
        for choice, expert in enumerate(index[token].tolist()):
            if expert < 4:
                gate, up = (experts.gate_up_proj[expert].dense() @ x[token]).chunk(2)
                inner = experts.down_proj[expert].dense() @ (nn.functional.silu(gate) * up)
                y = y + weights[token, choice] * inner
        out.append(y)
    return torch.stack(out)


@pytest.mark.parametrize("compiled", [False, True])
def test_value_and_gradient_by_hand(compiled: bool) -> None:
    torch._dynamo.reset()
    experts = _experts()
    run = torch.compile(experts, fullgraph=True, backend="aot_eager") if compiled else experts
    x, weights = _random(5, 8).requires_grad_(), _random(5, 2, seed=1).requires_grad_()
    results = []
    for call in (run, lambda *args: _by_hand(experts, *args)):
        experts.zero_grad()
        x.grad = weights.grad = None
        y = call(x, INDEX, weights)
        y.square().sum().backward()
        moved = {n: p.grad.clone() for n, p in experts.named_parameters() if p.grad is not None}
        untouched = {n for n, g in moved.items() if g.abs().sum() == 0}
        grads = {n: g for n, g in moved.items() if n not in untouched}
        results.append((y.detach(), x.grad.clone(), weights.grad.clone(), grads))
    torch.testing.assert_close(results[0], results[1], atol=1e-3, rtol=1e-4)


def test_routing_sorts_tokens_by_expert() -> None:
    found = {e: (token.tolist(), choice.tolist()) for e, token, choice in routed(INDEX, 4)}
    assert found == {
        0: ([0, 1, 4], [0, 1, 0]),
        2: ([0, 1, 3], [1, 0, 0]),
        3: ([2, 3, 4], [0, 1, 1]),
    }


def test_no_token_at_all() -> None:
    out = _experts()(_random(0, 8), torch.zeros(0, 2, dtype=torch.long), _random(0, 2))
    assert out.shape == (0, 8)


def test_counts_must_agree() -> None:
    experts = _experts()
    with pytest.raises(ValueError, match="4 gate_up and 3 down"):
        Experts(experts.gate_up_proj, list(experts.down_proj)[:3], nn.SiLU())
