"""Latency of a backbone predicted from a table of measured convolutions (card, section 6).

A table row is one convolution: kind, batch, input channels, input side, output channels, kernel, stride, whether it is
fused with an addition, and its milliseconds. Measured rows are few; between them the predictor interpolates over
(output channels, side), then over the channel ratio, then over the batch.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.spatial import QhullError
from torch import nn

from stages.zendet.method.structure import ConvSpec, Structure, convolutions


class ConvQuery(NamedTuple):
    """One convolution as tables know it; `side` is that of its square input, `fused` 1 where a sum follows."""

    depthwise: bool
    cin: int
    side: int
    cout: int
    kernel: int
    stride: int
    fused: int


class TableRow(NamedTuple):
    """A measured convolution."""

    query: ConvQuery
    batch: int
    ms: float


Group = tuple[bool, int, int, int]  # depthwise, stride, fused, kernel


class _Surface:
    """Milliseconds over (output channels, side) from scattered points: linear inside their hull, nearest outside."""

    def __init__(self, points: Sequence[tuple[int, int]], ms: Sequence[float]) -> None:
        xy, values = np.array(points, dtype=float), np.array(ms)
        self.nearest = NearestNDInterpolator(xy, values, rescale=True)
        try:
            self.linear: LinearNDInterpolator | None = LinearNDInterpolator(xy, values)
        except (QhullError, ValueError):  # fewer than three points, or all on a line
            self.linear = None

    def __call__(self, cout: int, side: int) -> float:
        value = float(self.linear(cout, side)) if self.linear is not None else math.nan
        return value if value >= 0 else float(self.nearest(cout, side))  # nan is outside the hull


class LatencyTable:
    """Predicts milliseconds of single convolutions and of whole backbones."""

    def __init__(self, rows: Iterable[TableRow]) -> None:
        """Rows of side 4 and with negative times are left out, as in the authors' code."""
        grouped: dict[Group, dict[int, dict[float, list[TableRow]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(list))
        )
        for row in rows:
            if row.query.side != 4 and row.ms >= 0:
                grouped[_group(row.query)][row.batch][_ratio(row.query)].append(row)
        self._surfaces = {
            group: {
                batch: {
                    ratio: _Surface([(r.query.cout, r.query.side) for r in part], [r.ms for r in part])
                    for ratio, part in sorted(ratios.items())
                }
                for batch, ratios in sorted(batches.items())
            }
            for group, batches in grouped.items()
        }
        self._known: dict[tuple[ConvQuery, int], float] = {}

    def predict_op(self, query: ConvQuery, batch: int) -> float:
        """Milliseconds of one convolution on a batch.

        Raises:
            KeyError: the table has no row of this kind, kernel, stride and fusion.
        """
        if (query, batch) not in self._known:
            self._known[query, batch] = self._predict(query, batch)
        return self._known[query, batch]

    def _predict(self, query: ConvQuery, batch: int) -> float:
        if _group(query) not in self._surfaces:
            kind = "depthwise" if query.depthwise else "regular"
            raise KeyError(
                f"no {kind} convolution of kernel {query.kernel}, stride {query.stride}, fused {query.fused} in the table"
            )
        batches = self._surfaces[_group(query)]
        if batch in batches:
            return _over_ratios(batches[batch], query)
        return _line([float(b) for b in batches], [_over_ratios(r, query) for r in batches.values()], batch)

    def predict_network(self, structure: Structure, side: int, batch: int) -> float:
        """Milliseconds of a backbone on a batch of square images: the sum over its convolutions."""
        return sum(self.predict_op(query, batch) for query in network_queries(structure, side))


def _group(query: ConvQuery) -> Group:
    return query.depthwise, query.stride, query.fused, query.kernel


def _ratio(query: ConvQuery) -> float:
    """Input over output channels, cut to two digits; 0 for images and for depthwise convolutions."""
    return 0.0 if query.depthwise or query.cin == 3 else math.trunc(100 * query.cin / query.cout) / 100


def _over_ratios(surfaces: dict[float, _Surface], query: ConvQuery) -> float:
    exact = 0.0 if _ratio(query) == 0 else query.cin / query.cout  # only the table's ratios are cut
    if exact in surfaces:
        return surfaces[exact](query.cout, query.side)
    ratios: list[float] = []
    values: list[float] = []
    for listed, surface in surfaces.items():
        if listed > 0:
            value = surface(query.cout, query.side)
            if len(values) < 2 or value > values[-1]:  # times must grow with the ratio
                ratios.append(listed)
                values.append(value)
    result = _line(ratios, values, exact)
    return result if result >= 0 else values[0] * exact / ratios[0]


def _line(x: Sequence[float], y: Sequence[float], at: float) -> float:
    """Piecewise linear through (x, y), going on straight beyond the ends."""
    if len(x) == 1:
        return y[0]
    right = min(max(int(np.searchsorted(x, at)), 1), len(x) - 1)
    slope = (y[right] - y[right - 1]) / (x[right] - x[right - 1])
    return y[right - 1] + slope * (at - x[right - 1])


def network_queries(structure: Structure, side: int) -> list[ConvQuery]:
    """The convolutions of a backbone as a table knows them; the last one of a bottleneck is fused with the shortcut."""
    return [_query(conv, side) for conv in convolutions(structure)]


def _query(conv: ConvSpec, side: int) -> ConvQuery:
    fused = int(conv.role == "conv3" and conv.shortcut)
    depthwise = conv.groups > 1
    return ConvQuery(depthwise, conv.cin, side // conv.shrink, conv.cout, conv.kernel, conv.stride, fused)


@torch.no_grad()
def profile_cpu(queries: Iterable[ConvQuery], batch: int, repeats: int = 5) -> list[TableRow]:
    """Measure convolutions on this machine's CPU: the median of some runs, with a ReLU, and a sum where fused."""
    rows = []
    for query in dict.fromkeys(queries):
        groups = query.cin if query.depthwise else 1
        conv = nn.Conv2d(
            query.cin,
            query.cout,
            query.kernel,
            query.stride,
            (query.kernel - 1) // 2,
            bias=False,
            groups=groups,
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = torch.randn(batch, query.cin, query.side, query.side).to(memory_format=torch.channels_last)
        shortcut = conv(x)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            y = conv(x)
            torch.relu_(y.add_(shortcut) if query.fused else y)
            seconds.append(time.perf_counter() - start)
        rows.append(TableRow(query, batch, 1e3 * float(np.median(seconds))))
    return rows


def cpu_grid(side: int, depthwise: bool, largest: float = 4e8) -> list[ConvQuery]:
    """Convolutions to measure so that a table covers the search spaces for images of this side.

    Those of more than `largest` multiply-adds are left to interpolation.
    """
    queries = [ConvQuery(False, 3, side, cout, 3, 2, 0) for cout in (8, 16, 32, 64)]
    for shrink in (2, 4, 8, 16, 32):
        for cout in (8, 32, 128, 512, 2048):
            here = max(1, side // shrink)
            for fused in (0, 1):
                for ratio in (0.25, 1, 4):
                    queries.append(ConvQuery(False, max(1, round(ratio * cout)), here, cout, 1, 1, fused))
            for kernel in (1, 3, 5):
                for stride in (1, 2):
                    if kernel > 1 or stride == 2:
                        queries.append(ConvQuery(depthwise, cout, here, cout, kernel, stride, 0))
    return [query for query in queries if _macs(query) <= largest]


def _macs(query: ConvQuery) -> float:
    per_output = query.kernel**2 * (1 if query.depthwise else query.cin)
    return query.cout * per_output * (query.side / query.stride) ** 2
