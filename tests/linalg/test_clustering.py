"""k-means from inner products: scikit-learn's from the same start, and its own rules."""

import pytest
import torch

from corank.linalg import k_means


def points(count=30, seed=0):
    g = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(4, 5, generator=g, dtype=torch.float64)
    return centres.repeat(count // 4 + 1, 1)[:count] + torch.randn(count, 5, generator=g).double()


def spread(x, labels):
    return sum(float((x[labels == c] - x[labels == c].mean(0)).square().sum()) for c in set(labels))


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_it_is_as_good_as_scikit_learns_best_of_many_starts(count):
    from sklearn.cluster import KMeans

    x = points()
    labels = k_means(x @ x.mT, count).numpy()
    best = KMeans(count, n_init=10, random_state=0).fit(x.numpy())
    assert spread(x, labels) <= 1.1 * best.inertia_
    centres = torch.stack([x[labels == c].mean(0) for c in range(count)])
    assert (torch.cdist(x, centres).argmin(1).numpy() == labels).all()  # Lloyd's own condition
    again = KMeans(count, init=centres.numpy(), n_init=1).fit(x.numpy())
    assert (again.labels_ == labels).all()


def test_only_inner_products_matter_and_clusters_are_numbered_by_their_first_points():
    x = points()
    q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    labels = k_means(x @ x.mT, 4)
    assert torch.equal(labels, k_means((x @ q) @ (x @ q).mT, 4))
    firsts = [int((labels == c).nonzero()[0]) for c in range(4)]
    assert firsts == sorted(firsts)
    assert firsts[0] == 0


def test_every_cluster_has_a_point_also_where_points_coincide():
    x = torch.ones(5, 2)
    assert sorted(set(k_means(x @ x.mT, 3).tolist())) == [0, 1, 2]
    assert k_means(x @ x.mT, 5).tolist() == [0, 1, 2, 3, 4]
    assert k_means(torch.zeros(3, 3), 2).unique().tolist() == [0, 1]


def test_bad_input_is_refused():
    for count in (0, 4):
        with pytest.raises(ValueError, match="count 1 to its side"):
            k_means(torch.eye(3), count)
    with pytest.raises(ValueError, match="square"):
        k_means(torch.ones(2, 3), 1)
