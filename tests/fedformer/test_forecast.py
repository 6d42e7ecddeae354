"""A user's own CSV file: forecasts, and one line for everything that can be wrong with it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.common.stage.errors import InputError, ParameterError
from stages.fedformer.forecast import forecast


def frame(rows: int = 120, step: str = "D") -> pd.DataFrame:
    t = np.arange(rows)
    return pd.DataFrame(
        {
            "date": pd.date_range("2021-01-31", periods=rows, freq=step),
            "sales": 100 + 10 * np.sin(t * 2 * np.pi / 7),
            "price": 2 + 0.01 * t,
        }
    )


def write(table: pd.DataFrame, folder: Path) -> Path:
    path = folder / "series.csv"
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("model", ["fedformer-f", "fedformer-w", "nlinear", "repeat-last"])
def test_forecast_follows_the_last_row_in_the_file_s_units(model, tmp_path):
    result = forecast(write(frame(), tmp_path), 5, model, input_length=12, width=16, epochs=1)
    assert list(result.table.columns) == ["date", "sales", "price"]
    assert result.table["date"].tolist() == list(pd.date_range("2021-05-31", periods=5, freq="D"))
    assert result.table["sales"].between(50, 150).all()
    assert result.mse > 0
    assert (model == "repeat-last") == (result.mse == result.mse_repeat_last)


def test_same_seed_same_forecast(tmp_path):
    path = write(frame(), tmp_path)
    first, second = (forecast(path, 5, input_length=12, width=16, epochs=1) for _ in range(2))
    pd.testing.assert_frame_equal(first.table, second.table, check_exact=True)


def test_monthly_dates_go_on_by_the_month(tmp_path):
    result = forecast(write(frame(step="MS"), tmp_path), 2, "repeat-last", input_length=12)
    assert result.table["date"].tolist() == [pd.Timestamp("2031-02-01"), pd.Timestamp("2031-03-01")]


def without_date(table):
    return table.drop(columns="date")


def bad_date(table):
    return table.assign(date=["soon", *table["date"].astype(str)[1:]])


def gap(table):
    return table.drop(index=50)


def repeated(table):
    return pd.concat([table[:50], table[49:]])


def not_a_number(table):
    table = table.copy()
    table.loc[3, "sales"] = np.nan
    return table


def text(table):
    return table.assign(sales=["many", *table["sales"].astype(str)[1:]])


def only_dates(table):
    return table[["date"]]


def short(table):
    return table[:20]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_date, "no column 'date'; columns are sales, price"),
        (bad_date, "line 2: 'date' is not a date"),
        (gap, "line 52: 2021-03-23 00:00:00 follows 2021-03-21 00:00:00, but the step is 1 days"),
        (repeated, "line 52: 2021-03-21 00:00:00 follows 2021-03-21 00:00:00"),
        (not_a_number, "line 5: column 'sales' has no finite value"),
        (text, "line 2: column 'sales' is not numeric: 'many'"),
        (only_dates, "no column besides 'date'"),
        (short, "20 rows; input 12 and horizon 5 need 60"),
    ],
)
def test_one_line_says_what_is_wrong(damage, message, tmp_path):
    with pytest.raises(InputError) as error:
        forecast(write(damage(frame()), tmp_path), 5, input_length=12)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_wrong_number(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        forecast(tmp_path / "none.csv", 5)
    with pytest.raises(ParameterError, match="horizon and epochs must be at least 1"):
        forecast(write(frame(), tmp_path), 0)


def test_command(tmp_path):
    path, out = write(frame(), tmp_path), tmp_path / "next.csv"
    command = [
        sys.executable,
        "-m",
        "stages.fedformer.forecast",
        str(path),
        "--horizon",
        "3",
        "--out",
        str(out),
    ]
    done = subprocess.run(
        [*command, "--model", "repeat-last", "--input", "12"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(out)) == 3
    done = subprocess.run([*command, "--input", "200"], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
