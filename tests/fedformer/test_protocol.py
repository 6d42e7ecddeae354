"""Borders, windows and errors are the published protocol's: Repeat-last needs no training, so it shows any
slip.
"""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from stages.common.results import published
from stages.common.stage.errors import InputError
from stages.fedformer.cells import Job, setting_of
from stages.fedformer.data import Series, make_series, read_benchmark, split_borders, windows_of
from stages.fedformer.errors import forecast_metrics, window_errors
from stages.fedformer.generated import generate
from stages.fedformer.method.linear import RepeatLast
from stages.fedformer.params import FedformerParams
from tests.fedformer.mirror import in_mirror_or_skip

SETTINGS = {
    "ili": (24, 36, 48, 60),
    "exchange": (96, 192, 336, 720),
    "etth1": (96, 192, 336, 720),
    "etth2": (96, 720),  # the card verified these two
}


def real_params() -> FedformerParams:
    with open("conf/fedformer/real.yaml") as file:
        return FedformerParams.model_validate(yaml.safe_load(file))


def benchmark(data) -> Series:
    return read_benchmark(in_mirror_or_skip(data))


@pytest.mark.parametrize("data", SETTINGS)
def test_repeat_last_reproduces_published_errors_to_three_decimals(data):
    recipe, series = real_params().data[data], benchmark(data)
    table = published("fedformer")
    table = table[table["table"] == "third_party_repeat_last"].set_index(["setting", "metric"])["value"]
    for horizon in SETTINGS[data]:
        squared, absolute = window_errors(RepeatLast(horizon), series, "test", recipe, horizon)
        ours = forecast_metrics(squared, absolute, drop_last_compat=32)
        for metric, value in ours.items():
            expected = float(table[setting_of(Job(data, "M", horizon), recipe), metric])
            assert abs(value - expected) <= 0.0005 + 1e-6, (data, horizon, metric)


def test_all_windows_of_ili_give_the_card_s_errors():
    recipe, series = real_params().data["ili"], benchmark("ili")
    for horizon, expected in {24: 6.213, 36: 7.714, 48: 7.851, 60: 6.885}.items():
        squared, absolute = window_errors(RepeatLast(horizon), series, "test", recipe, horizon)
        mse = forecast_metrics(squared, absolute, None)["mse"]
        assert mse == pytest.approx(expected, abs=0.0005)


def test_borders_and_window_counts():
    ett = split_borders(17420, 30 * 24)
    assert ett == (8640, 11520, 14400)
    counts = [len(windows_of(ett, split, 96, 96)) for split in ("train", "val", "test")]
    assert counts == [8449, 2785, 2785]
    assert [
        len(windows_of(split_borders(966, None), split, 36, 24)) for split in ("train", "val", "test")
    ] == [617, 74, 170]
    assert len(windows_of((10, 12, 14), "train", 8, 8)) == 0


def test_generated_series_has_the_spectrum_it_claims():
    dates, values = generate()
    assert len(dates) == len(values) == 4000
    difference = np.diff(values, axis=0)  # takes the trend away
    power = np.abs(np.fft.rfft(difference[: 24 * 160], axis=0)) ** 2
    frequencies = np.fft.rfftfreq(24 * 160)
    for column in power.T:
        strongest = {round(1 / frequencies[i], 1) for i in np.argsort(column)[-3:]}
        assert strongest == {24.0, 12.0, 3.2}
    again = generate()[1]
    assert np.array_equal(values, again)


def test_univariate_is_the_target_column():
    series = make_series(*generate(), split_borders(4000, None), "h")
    assert torch.equal(series.only_target().values_TC[:, 0], series.values_TC[:, -1])


def test_a_wrong_file_under_a_benchmark_s_name(tmp_path, monkeypatch):
    (tmp_path / "timeseries").mkdir()
    pd.DataFrame({"date": ["2020-01-01"], "OT": [1.0]}).to_csv(
        tmp_path / "timeseries" / "weather.csv", index=False
    )
    monkeypatch.setenv("ENCORE_MIRROR", str(tmp_path))
    with pytest.raises(InputError, match="Weather has 52696 of 21, and OT last"):
        read_benchmark("weather")
