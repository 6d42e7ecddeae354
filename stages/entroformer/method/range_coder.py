"""Symbols to bytes and back with `constriction`'s range coder: first in, first out, as decoding needs it.

Symbols that are coded together go in the order of their tables, those of one table in their own order: the coder is
called once per table instead of building a model per symbol. It is given integer frequencies that sum to 2^24, which is
its own precision: nothing is rounded on the way.
"""

from collections.abc import Iterator
from typing import Any

import constriction
import numpy as np

from stages.entroformer.method.likelihood import PRECISION, Frequencies
from stages.entroformer.method.quantise import HIGH, LOW


class _Runs:
    """The symbols of one call by table; the models of a set of tables are kept while it is in use."""

    def __init__(self) -> None:
        self.tables: np.ndarray | None = None
        self.models: dict[int, Any] = {}

    def of(self, frequencies: Frequencies) -> Iterator[tuple[np.ndarray, Any]]:
        """Positions of all symbols of a table, and its model; by table."""
        if frequencies.tables is not self.tables:
            self.tables, self.models = frequencies.tables, {}
        order = np.argsort(frequencies.table_N, kind="stable")
        sorted_N = frequencies.table_N[order]
        starts = np.flatnonzero(np.diff(sorted_N, prepend=-1))
        for positions, table in zip(np.split(order, starts[1:]), sorted_N[starts].tolist(), strict=True):
            if table not in self.models:
                share = (frequencies.tables[table] / 2**PRECISION).astype(np.float32)
                self.models[table] = constriction.stream.model.Categorical(share, perfect=False)
            yield positions, self.models[table]


class SymbolEncoder:
    """Collects symbols; `to_bytes` gives the file's part."""

    def __init__(self) -> None:
        self.coder, self.runs = constriction.stream.queue.RangeEncoder(), _Runs()

    def encode(self, values_N: np.ndarray, frequencies: Frequencies) -> None:
        """Add integers of -128 .. 127, each with its own frequencies."""
        symbols_N = (values_N - frequencies.first_N).astype(np.int32)
        for positions, model in self.runs.of(frequencies):
            self.coder.encode(symbols_N[positions], model)

    def to_bytes(self) -> bytes:
        """All of it, in little-endian words of 32 bits; trailing zero bytes of the last word are left out."""
        return self.coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


class SymbolDecoder:
    """Gives symbols back when it is asked in the order in which they were added."""

    def __init__(self, content: bytes) -> None:
        padded = content + b"\0" * (-len(content) % 4)
        words = np.frombuffer(padded, dtype="<u4").astype(np.uint32)
        self.coder, self.runs = constriction.stream.queue.RangeDecoder(words), _Runs()

    def decode(self, frequencies: Frequencies) -> np.ndarray:
        """The next integers, one for each of the frequencies.

        Raises:
            ValueError: a value outside -128 .. 127 comes out, which no encoder has put in.
        """
        values_N = frequencies.first_N.copy()
        for positions, model in self.runs.of(frequencies):
            values_N[positions] += self.coder.decode(model, len(positions))
        if values_N.min(initial=0) < LOW or values_N.max(initial=0) > HIGH:
            raise ValueError(f"latents outside {LOW} .. {HIGH}")
        return values_N
