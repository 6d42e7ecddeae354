"""Markdown tables with ours and the published numbers side by side."""

from collections.abc import Sequence

import numpy as np
import pandas as pd


def mean_std(values: Sequence[float] | pd.Series, digits: int = 2) -> str:
    """`93.51 ± 0.42` over seeds (sample standard deviation); one value stands alone; none is a dash."""
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        return "–"
    if array.size == 1:
        return f"{array[0]:.{digits}f}"
    return f"{array.mean():.{digits}f} ± {array.std(ddof=1):.{digits}f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub-flavoured markdown table; columns after the first are right-aligned."""
    lines = [
        "| " + " | ".join(header) + " |",
        "|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"
