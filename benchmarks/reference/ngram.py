"""An interpolated Kneser-Ney 3-gram model of token ids: the baseline the reference model beats.

Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1999),
section 2.7 with one discount per order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def _look_up(keys: Integers, values: Integers, wanted: Integers) -> Integers:
    """The value beside each wanted key in the sorted `keys`, 0 where it is absent."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


@dataclass(frozen=True)
class Level:
    """Counts of the n-grams of one order, keyed as integers in base `words`.

    A discount D is taken from each count; the mass it frees in a context goes to the order below.
    """

    words: int
    grams: Integers
    counts: Integers

    @property
    def discount(self) -> float:
        """D = n1 / (n1 + 2 n2) with n_k the n-grams seen k times, half a gram added to n1."""
        once, twice = (int((self.counts == k).sum()) for k in (1, 2))
        return (once + 0.5) / (once + 2 * twice + 1)

    def interpolate(self, wanted: Integers, below: Floats) -> Floats:
        """Probabilities of the n-grams `wanted`, (tokens,), given those one order below."""
        contexts, first = np.unique(self.grams // self.words, return_index=True)
        totals = np.add.reduceat(self.counts, first)
        kinds = np.diff(np.append(first, len(self.grams)))
        context = wanted // self.words
        total = _look_up(contexts, totals, context)
        kept = np.maximum(_look_up(self.grams, self.counts, wanted) - self.discount, 0)
        freed = self.discount * _look_up(contexts, kinds, context)
        seen = np.maximum(total, 1)
        return np.where(total > 0, kept / seen + freed / seen * below, below)


class Trigram:
    """Interpolated Kneser-Ney probabilities of a token given the two before it.

    Args:
        token_ids: (tokens,), the training stream, at least 3 tokens.
        words: size of the vocabulary; every id lies in [0, words).
    """

    def __init__(self, token_ids: Integers, words: int) -> None:
        stream = np.asarray(token_ids, dtype=np.int64)
        trigrams, counts = np.unique(_trigram_keys(stream, words), return_counts=True)
        # Below the top, a count is the number of different tokens seen before the gram.
        bigrams, followers = np.unique(trigrams % words**2, return_counts=True)
        unigrams, origins = np.unique(bigrams % words, return_counts=True)
        self.words = words
        self.levels = (
            Level(words, unigrams, origins),
            Level(words, bigrams, followers),
            Level(words, trigrams, counts),
        )

    def probabilities(self, token_ids: Integers) -> Floats:
        """The probability of each token but the first two, (tokens - 2,)."""
        keys = _trigram_keys(np.asarray(token_ids, dtype=np.int64), self.words)
        result: Floats = np.full(len(keys), 1 / self.words)
        for order, level in enumerate(self.levels, start=1):
            result = level.interpolate(keys % self.words**order, result)
        return result

    def perplexity(self, token_ids: Integers, sequence_length: int) -> float:
        """Perplexity on the tokens that `benchmarks.reference.evaluate.perplexity` predicts.

        The 3-gram model sees across the windows' borders, which is to its advantage; before the
        stream stands token 0.
        """
        windows = len(token_ids) // sequence_length
        stream = np.concatenate([[0], np.asarray(token_ids)[: windows * sequence_length]])
        losses = -np.log(self.probabilities(stream))  # of the tokens 1, 2, ...
        predicted = np.arange(1, windows * sequence_length) % sequence_length != 0
        return math.exp(losses[predicted].mean())


def _trigram_keys(stream: Integers, words: int) -> Integers:
    return (stream[:-2] * words + stream[1:-1]) * words + stream[2:]
