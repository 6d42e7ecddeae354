"""Symbols to bytes and back with `constriction`'s range coder: first in, first out, as decoding needs it.

The coder is given integer frequencies that sum to 2^24, which is its own precision: nothing is rounded on the way.
"""

from collections.abc import Iterator
from typing import Protocol

import constriction
import numpy as np

from stages.entroformer.method.likelihood import PRECISION
from stages.entroformer.method.quantise import LOW

FAMILY = constriction.stream.model.Categorical(perfect=False)
CHUNK = 16384  # symbols at once: bounds the memory of their frequencies


class Frequencies(Protocol):
    """Of each of some symbols the integer frequencies of -128 .. 127, made when they are needed."""

    def __len__(self) -> int: ...

    def rows(self, part: slice) -> np.ndarray:
        """Frequencies of some of the symbols: `[N, 256]`, each row sums to 2^24."""
        ...


def _chunks(frequencies: Frequencies) -> Iterator[np.ndarray]:
    for start in range(0, len(frequencies), CHUNK):
        yield (frequencies.rows(slice(start, start + CHUNK)) / 2**PRECISION).astype(np.float32)


class SymbolEncoder:
    """Collects symbols; `to_bytes` gives the file's part."""

    def __init__(self) -> None:
        self.coder = constriction.stream.queue.RangeEncoder()

    def encode(self, values: np.ndarray, frequencies: Frequencies) -> None:
        """Add integers of -128 .. 127, each with its own frequencies."""
        symbols = (values - LOW).astype(np.int32)
        for start, rows in zip(range(0, len(symbols), CHUNK), _chunks(frequencies), strict=True):
            self.coder.encode(symbols[start : start + CHUNK], FAMILY, rows)

    def to_bytes(self) -> bytes:
        """All of it, in little-endian words of 32 bits; trailing zero bytes of the last word are left out."""
        return self.coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


class SymbolDecoder:
    """Gives symbols back in the order in which they were added."""

    def __init__(self, content: bytes) -> None:
        padded = content + b"\0" * (-len(content) % 4)
        self.coder = constriction.stream.queue.RangeDecoder(
            np.frombuffer(padded, dtype="<u4").astype(np.uint32)
        )

    def decode(self, frequencies: Frequencies) -> np.ndarray:
        """The next integers, one for each row of frequencies."""
        parts = [self.coder.decode(FAMILY, rows) for rows in _chunks(frequencies)]
        return np.concatenate(parts).astype(np.int64) + LOW
