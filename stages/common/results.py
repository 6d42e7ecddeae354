"""Results are tidy: one row per number, one parquet file per paper and scale; tables, figures and claims read only it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from stages.common.stage.errors import InputError
from stages.common.stage.files import write_atomic

COLUMNS = {
    "paper": "str",
    "table": "str",
    "method": "str",
    "setting": "str",
    "metric": "str",
    "value": "float64",
    "unit": "str",
    "seed": "int64",
    "scale": "str",
    "data": "str",
    "run_id": "str",
    "git_rev": "str",
}
PUBLISHED = Path("reports/published")


def results_frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Rows with exactly the keys of `COLUMNS` as a frame, in a defined order."""
    frame = pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(COLUMNS)
    keys = ["table", "data", "method", "setting", "metric", "seed"]
    return frame.sort_values(keys, kind="stable", ignore_index=True)


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame atomically; the same rows give the same bytes."""
    write_atomic(path, frame.to_parquet(index=False))


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a parquet file.

    Raises:
        InputError: the file is missing, truncated or not parquet.
    """
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise InputError(f"{path}: missing; run `dvc repro` of its stage first") from None
    except Exception as error:  # pyarrow raises several kinds, depending on where the damage is
        raise InputError(
            f"{path}: damaged ({str(error).splitlines()[0][:120]}); `dvc checkout` restores it"
        ) from None


def published(paper: str) -> pd.DataFrame:
    """Published numbers of a paper: table, method, setting, metric, value, unit, source."""
    return pd.read_csv(PUBLISHED / f"{paper}.csv")
