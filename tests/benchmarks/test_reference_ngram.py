"""The 3-gram baseline against a plain dictionary implementation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks.reference.ngram import Trigram

WORDS = 5
Grams = Counter[tuple[int, ...]]


def _stream(seed: int, tokens: int) -> list[int]:
    generator = np.random.default_rng(seed)
    return [int(word) for word in generator.integers(0, WORDS - 1, tokens)]


def _discount(counts: Grams) -> float:
    once = sum(count == 1 for count in counts.values())
    twice = sum(count == 2 for count in counts.values())
    return (once + 0.5) / (once + 2 * twice + 1)


def _brute_force(stream: list[int], gram: tuple[int, int, int]) -> float:
    trigrams: Grams = Counter(zip(stream, stream[1:], stream[2:], strict=False))
    bigrams: Grams = Counter(key[1:] for key in trigrams)
    unigrams: Grams = Counter(key[1:] for key in bigrams)
    probability = 1 / WORDS
    for order, counts in ((1, unigrams), (2, bigrams), (3, trigrams)):
        wanted: tuple[int, ...] = gram[3 - order :]
        followers = {key: count for key, count in counts.items() if key[:-1] == wanted[:-1]}
        if not followers:
            continue
        discount, total = _discount(counts), sum(followers.values())
        kept = max(followers.get(wanted, 0) - discount, 0.0)
        probability = (kept + discount * len(followers) * probability) / total
    return probability


def _all_grams() -> list[tuple[int, int, int]]:
    return [(a, b, c) for a in range(WORDS) for b in range(WORDS) for c in range(WORDS)]


@pytest.mark.parametrize("tokens", [6, 30, 400])
def test_probabilities_equal_the_definition(tokens: int) -> None:
    stream = _stream(0, tokens)
    model = Trigram(np.array(stream), WORDS)
    found = [model.probabilities(np.array(gram))[0] for gram in _all_grams()]
    assert np.allclose(found, [_brute_force(stream, gram) for gram in _all_grams()], rtol=1e-12)


def test_probabilities_of_a_context_sum_to_one() -> None:
    model = Trigram(np.array(_stream(1, 40)), WORDS)
    found = np.array([model.probabilities(np.array(gram))[0] for gram in _all_grams()])
    assert np.allclose(found.reshape(-1, WORDS).sum(1), 1.0)  # unseen contexts too


def test_perplexity_leaves_out_each_windows_first_token() -> None:
    model = Trigram(np.array(_stream(2, 60)), WORDS)
    stream = _stream(3, 11)  # windows of 4: two whole ones, a remainder of 3
    losses = [
        -np.log(_brute_force(_stream(2, 60), gram))
        for i, gram in enumerate(zip([0, *stream], stream, stream[1:8], strict=False), start=1)
        if i % 4 != 0
    ]
    assert len(losses) == 6
    assert model.perplexity(np.array(stream), 4) == pytest.approx(np.exp(np.mean(losses)))
