"""Clusters of points of which only the inner products are known."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_finite


def k_means(products: Tensor, count: int, rounds: int = 100) -> Tensor:
    """The cluster (points,) of each of the points with these inner products (points, points).

    Lloyd's algorithm on squared distances to the clusters' means, from the point nearest to the
    mean of all and then always the one farthest from those taken: nothing is drawn. Each of the
    `count` clusters has a point; they are numbered by their first ones.

    Raises ValueError for a count outside 1 to the number of points, and what is no square matrix.
    """
    check_finite(products, "products")
    points = len(products)
    if products.shape != (points, points) or not 1 <= count <= points:
        raise ValueError(
            f"products must be square and count 1 to its side: {tuple(products.shape)}, {count}"
        )
    products = products.double()
    labels = _nearest(_start(products, count), products)
    for _ in range(rounds):
        before, labels = labels, _filled(_distances(products, labels, count))
        if torch.equal(before, labels):
            break
    seen = torch.tensor([int((labels == c).nonzero()[0]) for c in range(count)])
    return seen.argsort().argsort()[labels.cpu()]


def _start(products: Tensor, count: int) -> list[int]:
    chosen = [
        int(_distances(products, torch.zeros_like(products[0], dtype=torch.long), 1).argmin())
    ]
    while len(chosen) < count:
        nearest = _apart(products, chosen).amin(1)
        nearest[chosen] = -1.0  # also where points coincide
        chosen.append(int(nearest.argmax()))
    return chosen


def _apart(products: Tensor, others: list[int]) -> Tensor:  # (points, others)
    """Squared distances to some of the points."""
    squares = products.diagonal()
    return squares[:, None] + squares[others] - 2 * products[:, others]


def _nearest(chosen: list[int], products: Tensor) -> Tensor:
    labels = _apart(products, chosen).argmin(1)
    labels[chosen] = torch.arange(len(chosen), device=labels.device)
    return labels


def _distances(products: Tensor, labels: Tensor, count: int) -> Tensor:  # (points, count)
    """Squared distances to the means of the clusters, less each point's own square."""
    member = torch.nn.functional.one_hot(labels, count).to(products)
    share = member / member.sum(0)
    return (share * (products @ share)).sum(0) - 2 * products @ share


def _filled(distances: Tensor) -> Tensor:
    """The nearest cluster of each point; one that is nobody's takes the point it is nearest to."""
    labels = distances.argmin(1)
    for cluster in range(distances.shape[1]):
        if not (labels == cluster).any():
            sizes = labels.bincount(minlength=distances.shape[1])
            far = distances[:, cluster].masked_fill(sizes[labels] < 2, torch.inf)
            labels[far.argmin()] = cluster
    return labels
