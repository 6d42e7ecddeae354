"""The public files that some tests need."""

import pytest

from stages.common.datasets import in_mirror
from stages.fedformer.data import BENCHMARKS
from stages.fedformer.params import DataName


def in_mirror_or_skip(data: DataName) -> DataName:
    """The name, if `$ENCORE_MIRROR/timeseries` has its file; the test is skipped otherwise."""
    file = BENCHMARKS[data].file
    if not in_mirror("timeseries", file) and not in_mirror("timeseries", f"{file}.gz"):
        pytest.skip(f"ENCORE_MIRROR has no timeseries/{file} or {file}.gz")
    return data
