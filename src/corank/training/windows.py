"""A stream of tokens as rows of one length."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import final

from ..errors import DataError


@final
class Windows:
    """Rows {"input_ids", "labels"} cut from a stream of tokens, made when they are asked for.

    Each is at most `length` tokens with its prefix and suffix; the last may be shorter, and is left
    out where it would hold one token of text, which nothing can be learnt from.
    """

    def __init__(
        self, ids: array[int], length: int, prefix: Sequence[int] = (), suffix: Sequence[int] = ()
    ) -> None:
        self.ids, self.prefix, self.suffix = ids, list(prefix), list(suffix)
        self.body = length - len(self.prefix) - len(self.suffix)  #: tokens of text in a row
        if self.body < 1:
            raise DataError(f"sequence_length={length} leaves no room for text")
        rest = len(ids) % self.body
        self._count = len(ids) // self.body + (rest > 1)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        text = self.ids[index * self.body : (index + 1) * self.body].tolist()
        row = self.prefix + text + self.suffix
        return {"input_ids": row, "labels": list(row)}

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        return (self[i] for i in range(self._count))
