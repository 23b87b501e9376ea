"""Weights as stacks of terms, of which as many are kept as there is room for."""

from __future__ import annotations

from ..metrics import second_moment
from ..registry import Paper, Recipe, method
from ..rewrites import iterated_signs, smoothing
from ..rewrites.scales import by_rms


@method(
    Paper(
        "BitStack: Fine-Grained Size Control for Compressed Large Language Models in Variable "
        "Memory Environments",
        "2410.23918",
        "iterative absolute value decomposition of weights scaled by the inputs' norms, with the "
        "README's 16 terms of rank 16",
        "terms go where they lower the scaled error most, not by measured perplexity; a file holds "
        "the terms in one sequence for each weight, and their errors, which order all of them",
    ),
    area="compress",
    laws=("stacks",),
)
def bitstack(rank: int = 16, terms: int = 16) -> Recipe:
    """Signs times a low-rank matrix of magnitudes, again for what is left, as often as fits.

    rank: of each term, an eighth of the weight's smaller side where that is less.
    `keep=1.0` makes all terms that store less than the weight: saved so, the model can be loaded at
    any smaller size, `corank.load(path, size=...)`.
    """
    for name, number in (("rank", rank), ("terms", terms)):
        if number < 1:
            raise ValueError(f"{name}={number} is below 1")
    stack = iterated_signs(rank, terms)
    family = smoothing(stack, by_rms, second_moment(), frozenset({"square_mean"}))
    return Recipe(family, allocate="greedy")
