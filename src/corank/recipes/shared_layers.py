"""Layers that have their weights in common."""

from __future__ import annotations

from ..metrics import euclidean
from ..registry import Paper, Recipe, method
from ..rewrites import by_site, shared_mean, truncation
from .grouping import sandwich


@method(
    Paper(
        "Subformer: Exploring Weight Sharing for Parameter Efficiency in Generative Transformers",
        "2101.00234",
        "the abstract and the README of the authors' code: all layers but the first and the last "
        "share their weights, embeddings are factorised; the body was not read",
        "for a model at hand, where the authors train from scratch: the shared weight starts as "
        "the layers' mean and embeddings as their truncated SVD, without self-attention between "
        "the factors, which would be a layer of its own; norms and biases are not shared; a "
        "budget may leave some weights unshared",
    ),
    area="compress",
    laws=("shares_layers",),
)
def subformer() -> Recipe:
    """One weight for each place in all layers but the first and the last; low-rank embeddings.

    Embeddings are factorised where the targets have them (targets="all"); a rank is theirs. First
    and last are those of the targeted layers. Made to be trained afterwards (`heal_minutes=`).
    """
    embeddings, layers = truncation(euclidean()), shared_mean()
    family = by_site(
        lambda site: embeddings if site.kind == "embedding" else layers, embeddings, layers
    )
    return Recipe(family, group=sandwich, allocate="greedy")
