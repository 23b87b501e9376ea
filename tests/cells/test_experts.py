"""Mixtures of experts against their definitions, one token and one expert at a time."""

import pytest
import torch
from torch.nn import functional as F

from corank.cells import AutonomousExperts, MultilinearExperts, entmax15

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_autonomous_experts_are_their_definition():
    cell = AutonomousExperts(6, 8, experts=5, top_k=2, rank=3).double()
    wanted = torch.zeros_like(X)
    for at in [(i, j) for i in range(3) for j in range(5)]:
        x = X[at]
        norms = torch.stack([(a @ x).norm() for a in cell.narrow])
        chosen = norms.argsort(descending=True)[:2]
        for weight, e in zip(norms[chosen].softmax(0), chosen, strict=True):
            gate = F.silu(cell.gate[e] @ (cell.narrow[e] @ x))
            wanted[at] += weight * (cell.down[e] @ (gate * (cell.up[e] @ x)))
    torch.testing.assert_close(cell(X), wanted)
    torch.testing.assert_close(
        cell.scores(X)[0, 0], torch.stack([a @ X[0, 0] for a in cell.narrow]).norm(dim=1)
    )


def test_autonomous_experts_learn_to_choose():
    cell = AutonomousExperts(6, 8, experts=5, top_k=2, rank=3).double()
    cell(X).square().sum().backward()
    assert all(bool(p.grad.any()) for p in cell.parameters())
    # One expert's factored gate, its up and its down projection.
    assert sum(p.numel() for p in cell.parameters()) == 5 * (3 * 6 + 8 * 3 + 2 * 8 * 6)


def stir(cell):
    """Every leaf random: at its start a ring's bonds, say, are diagonal."""
    draw = torch.Generator().manual_seed(1)
    for leaf in cell.parameters():
        torch.nn.init.normal_(leaf, generator=draw)
    return cell


COUNTS = {
    "cp": lambda n, i, o, r: r * (n + i + o),
    "tucker": lambda n, i, o, r: r * (n + i + o) + r**3,
    "ring": lambda n, i, o, r: r * r * (n + i + o),
    "train": lambda n, i, o, r: r * n + r * r * i + r * o,
}


@pytest.mark.parametrize("form", COUNTS)
def test_multilinear_experts_are_the_dense_sum(form):
    cell = MultilinearExperts(6, 4, experts=5, rank=3, form=form).double()
    stir(cell)
    one = torch.cat((X, torch.ones(3, 5, 1)), -1)
    wanted = torch.einsum("btn,bti,nio->bto", cell.gates(X), one, cell.dense())
    torch.testing.assert_close(cell(X), wanted)
    assert sum(f.numel() for f in cell.factors) == COUNTS[form](5, 7, 4, 3)
    cell(X).square().sum().backward()
    assert all(bool(p.grad.any()) for p in cell.parameters())


def test_the_dense_weights_are_the_decompositions():
    n, i, o = MultilinearExperts(6, 4, experts=5, rank=3).factors
    cell = MultilinearExperts(6, 4, experts=5, rank=3)
    torch.testing.assert_close(cell.dense()[2, 1, 3], (n[2] * i[1] * o[3]).sum())
    ring = stir(MultilinearExperts(6, 4, experts=5, rank=3, form="ring"))
    n, i, o = ring.factors
    torch.testing.assert_close(ring.dense()[2, 1, 3], (n[:, 2] @ i[:, 1] @ o[:, 3]).trace())
    tucker = MultilinearExperts(6, 4, experts=5, rank=3, form="tucker")
    n, i, o, core = tucker.factors
    wanted = sum(
        n[2, a] * i[1, b] * o[3, c] * core[a, b, c]
        for a in range(3) for b in range(3) for c in range(3)
    )  # fmt: skip
    torch.testing.assert_close(tucker.dense()[2, 1, 3], wanted)


def test_entmax_is_the_projection_it_is_defined_as():
    p = entmax15(X)
    torch.testing.assert_close(p.sum(-1), torch.ones(3, 5, dtype=torch.float64))
    assert bool((p == 0).any())
    # Optimality of max p.x + (4/3) sum(p - p^1.5): on the support x - 2 sqrt(p) is one number.
    level = X - 2 * p.sqrt()
    for row, values in zip(p.flatten(0, 1), level.flatten(0, 1), strict=True):
        inside = values[row > 0]
        torch.testing.assert_close(inside, inside[:1].expand_as(inside))
        assert bool((values[row == 0] <= inside[0] + 1e-12).all())
    assert torch.autograd.gradcheck(entmax15, X[0].clone().requires_grad_())
    even = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(entmax15(even), torch.full_like(even, 0.25))
    entmax15(even)[:, 0].sum().backward()
    assert bool(even.grad.isfinite().all())


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="top_k=6 is outside 1 to 5"):
        AutonomousExperts(6, 8, experts=5, top_k=6, rank=3)
    with pytest.raises(ValueError, match="rank=0"):
        MultilinearExperts(6, 4, experts=5, rank=0)
    with pytest.raises(ValueError, match="none of cp"):
        MultilinearExperts(6, 4, experts=5, rank=2, form="hosvd")
