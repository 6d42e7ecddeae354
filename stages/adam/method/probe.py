"""What is measured along the way, with exact gradients: averages over time, extremes, and values at chosen times.

Never stores iterates: sums are kept, and copied at the marked times, so that one batch of runs serves every horizon.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def log_spaced(T: int, per_octave: int = 4) -> list[int]:
    """About `per_octave` times per doubling from 1 to T, both included."""
    octaves = max(1, (T - 1).bit_length())
    points = torch.logspace(0, octaves, octaves * per_octave + 1, base=2.0, dtype=torch.float64)
    return sorted({min(T, round(float(p))) for p in points})


class GradientProbe:
    """Means over time of named quantities, each [...runs], and their last values.

    Args:
        marks: numbers of steps after which to keep the sums; means can be asked for between any two of them.
    """

    def __init__(self, marks: Iterable[int]) -> None:
        self.marks = {0, *marks}
        self.steps = 0
        self._sums: dict[str, Tensor] = {}
        self._sums_at: dict[str, dict[int, Tensor]] = {}
        self.now_at: dict[str, dict[int, Tensor]] = {}
        self.range_at: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
        self._ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def see(self, **values: Tensor) -> None:
        """Add the quantities of one step."""
        self.steps += 1
        marked = self.steps in self.marks
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            if marked:
                self._sums_at.setdefault(name, {})[self.steps] = self._sums[name]
                self.now_at.setdefault(name, {})[self.steps] = value

    def see_range(self, **values: Tensor) -> None:
        """Widen the ranges so far by the entries over the last dimension [..., d]; call it after `see`."""
        for name, value in values.items():
            low, high = value.amin(-1), value.amax(-1)
            if name in self._ranges:
                low = torch.minimum(low, self._ranges[name][0])
                high = torch.maximum(high, self._ranges[name][1])
            self._ranges[name] = (low, high)
            if self.steps in self.marks:
                self.range_at.setdefault(name, {})[self.steps] = (low, high)

    def mean(self, name: str, until: int, since: int = 0) -> Tensor:
        """Mean of a quantity over the steps [since, until), both of them marks."""
        total = self._sums_at[name][until]
        if since:
            total = total - self._sums_at[name][since]
        return total / (until - since)

    def tail(self, name: str, until: int) -> Tensor:
        """Mean over the second half of the steps before `until`; `until // 2` must be a mark."""
        return self.mean(name, until, until // 2)
