"""Low-rank cells against torch's own, and the highway's line."""

import pytest
import torch
from torch import nn

from corank.cells import LowRankGRUCell, LowRankHighway
from corank.operators import LowRank

X = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
H = torch.randn(7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_unit_is_its_equations_with_dense_matrices(diagonal):
    cell = LowRankGRUCell(4, 6, rank=2, diagonal=diagonal).double()
    wu, wr, wm = cell.inputs
    uu, ur, um = (op.dense() for op in cell.states)
    u = torch.sigmoid(X @ wu.T + H @ uu.T + cell.update_bias)
    r = torch.sigmoid(X @ wr.T + H @ ur.T + cell.reset_bias)
    m = torch.tanh(X @ wm.T + (r * H) @ um.T + cell.bias)
    torch.testing.assert_close(cell(X, H), u * H + (1 - u) * m)
    torch.testing.assert_close(cell(X), cell(X, torch.zeros_like(H)))


def test_at_full_rank_it_can_be_torchs_unit_where_the_reset_is_open():
    cell, peer = LowRankGRUCell(4, 6, rank=6, diagonal=False).double(), nn.GRUCell(4, 6).double()
    with torch.no_grad():
        peer.bias_ih.zero_()
        peer.bias_hh.zero_()
        peer.bias_ih[:6] = 50.0  # the reset gate, which torch applies after the matrix
        peer.bias_ih[6:12] = cell.update_bias
        cell.reset_bias.fill_(50.0)
        for ours, ih, hh in zip(
            (1, 0, 2), peer.weight_ih.split(6), peer.weight_hh.split(6), strict=True
        ):
            ih.copy_(cell.inputs[ours])
            hh.copy_(cell.states[ours].dense())
    torch.testing.assert_close(cell(X, H), peer(X, H))


@pytest.mark.parametrize(("diagonal", "tied"), [(False, False), (True, False), (True, True)])
def test_counts(diagonal, tied):
    cell = LowRankGRUCell(4, 6, rank=2, diagonal=diagonal, tied=tied)
    state = 3 * 6 * 2 + (1 if tied else 3) * 2 * 6 + 3 * 6 * diagonal
    assert sum(p.numel() for p in cell.parameters()) == 3 * 4 * 6 + state + 3 * 6
    cell(X.float(), H.float()).sum().backward()
    assert all(p.grad is not None for p in cell.parameters())
    parts = [m for m in cell.modules() if isinstance(m, LowRank)]
    assert (parts[0].a is parts[1].a) == tied


def test_the_highway_is_its_line():
    layer = LowRankHighway(6, rank=2).double()
    t = torch.sigmoid(H @ layer.transform.dense().T - 1)
    wanted = t * torch.relu(H @ layer.main.dense().T + layer.bias) + (1 - t) * H
    torch.testing.assert_close(layer(H), wanted)
    layer(H).sum().backward()
    assert all(bool(p.grad.any()) for p in layer.parameters())


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="rank=0"):
        LowRankGRUCell(4, 6, rank=0)
    with pytest.raises(ValueError, match="width=0"):
        LowRankHighway(0, rank=1)
