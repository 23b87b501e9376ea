"""Scatterbrain against softmax attention, written out."""

import math

import pytest
import torch

from corank.cells import scatterbrain


def qkv(n=12, m=12, d=4, scale=1.0):
    draw = torch.Generator().manual_seed(3)

    def one(rows, size):
        return torch.randn(2, 3, rows, size, generator=draw, dtype=torch.float64) * scale

    return one(n, d), one(m, d), one(m, 5)


def softmax(q, k, v, causal=False):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_all_in_the_sparse_part_is_softmax_attention(causal, scale):
    q, k, v = qkv(scale=scale)
    y = scatterbrain(q, k, v, features=8, cluster=12, rounds=1, causal=causal)
    torch.testing.assert_close(y, softmax(q, k, v, causal))


def test_a_pair_that_several_hashes_find_counts_once():
    q, k, v = qkv()
    torch.testing.assert_close(
        scatterbrain(q, k, v, features=8, cluster=12, rounds=3), softmax(q, k, v)
    )


@pytest.mark.parametrize("causal", [False, True])
def test_many_rounds_of_small_clusters_become_softmax_attention(causal):
    q, k, v = qkv(n=7, m=7)
    y = scatterbrain(q, k, v, features=8, cluster=3, rounds=200, causal=causal)
    torch.testing.assert_close(y, softmax(q, k, v, causal))


@pytest.mark.parametrize("causal", [False, True])
def test_features_alone_approach_softmax_attention(causal):
    q, k, v = qkv(scale=0.5)
    y = scatterbrain(q, k, v, features=20000, cluster=1, rounds=1, causal=causal)
    torch.testing.assert_close(y, softmax(q, k, v, causal), atol=0.05, rtol=0.05)


def test_the_sparse_part_helps_where_scores_are_large():
    q, k, v = qkv(n=48, m=48, scale=2.0)
    wanted = softmax(q, k, v)
    low = scatterbrain(q, k, v, features=16, cluster=1, rounds=1)
    both = scatterbrain(q, k, v, features=16, cluster=16, rounds=4)
    assert (both - wanted).norm() < 0.5 * (low - wanted).norm()


def test_lengths_that_no_cluster_divides_and_cross_attention():
    q, k, v = qkv(n=10, m=7)
    y = scatterbrain(q, k, v, cluster=10)
    torch.testing.assert_close(y, softmax(q, k, v))
    assert scatterbrain(q, k, v, cluster=3).shape == y.shape


def test_gradients_reach_everything():
    q, k, v = (t.requires_grad_() for t in qkv())
    scatterbrain(q, k, v, cluster=4).square().sum().backward()
    assert all(bool(t.grad.isfinite().all()) and bool(t.grad.any()) for t in (q, k, v))


def test_bad_sizes_are_refused():
    q, k, v = qkv()
    for wrong in ((q[..., :3], k, v), (q, k, v[..., :5, :]), (q[:1], k, v)):
        with pytest.raises(ValueError, match="do not fit"):
            scatterbrain(*wrong)
    with pytest.raises(ValueError, match="at least 1"):
        scatterbrain(q, k, v, features=0)
    with pytest.raises(ValueError, match="as many queries"):
        scatterbrain(q[..., :5, :], k, v, causal=True)
