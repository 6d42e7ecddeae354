"""The stages end to end on tiny clouds; the real and paper presets on stand-ins; wrong and damaged input."""

import json
from pathlib import Path

import pytest

from stages.chex.points import prepare, pretrain
from stages.chex.points.params import PointsParams
from stages.common.results import COLUMNS, read_parquet
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.params import load_params
from tests.chex.pipelines import open_pipeline, run_all
from tests.chex.points.test_points import write_modelnet10, write_modelnet40
from tests.common.stages import Settings, preset, stage, write_params

NAME = "chex-points"


def tiny(scale: str) -> Settings:
    """A preset at seconds."""
    settings = preset(NAME, scale)
    settings["data"]["points"] = 16
    settings["net"].update(shared=[8, 12, 16], hidden=[12])
    settings["recipe"].update(steps=20, batch=4)
    settings["prune"].update(flops=[0.5], explore=0.7, period=0.2)
    return settings


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(prepare, "TRAIN", 48)
    monkeypatch.setattr(prepare, "TEST", 40)
    return open_pipeline(tmp_path, monkeypatch)


def test_quick_stages_end_to_end(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("quick")
    settings["seeds"] = [0, 1]
    before = run_all(NAME, settings, monkeypatch)
    output = workspace / "reports" / NAME / "quick"
    results = read_parquet(output / "results.parquet")
    assert list(results.columns) == list(COLUMNS)
    assert set(results["method"]) == {"dense", *settings["methods"]}
    assert not results.duplicated(["method", "setting", "metric", "seed"]).any()
    assert results["value"].notna().all()
    slim = results[(results["metric"] == "macs_fraction") & (results["method"] != "dense")]
    assert slim["value"].between(0.2, 0.5).all()
    claims = {claim["id"]: claim for claim in json.loads((output / "claims.json").read_text())}
    assert set(claims) == {"8a", "8b", "5a", "5b"}
    assert claims["5a"]["verdict"] == claims["5b"]["verdict"] == "supported"
    assert claims["8a"]["n"] == 2
    assert {"table.md", "timings.json", "accuracy-against-flops.svg", "widths-over-training.svg"} <= {
        path.name for path in output.iterdir()
    }
    assert run_all(NAME, settings, monkeypatch) == before


@pytest.mark.parametrize("scale", ["real", "paper"])
def test_presets_start_on_a_stand_in(scale: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny(scale)
    settings.update(seeds=[0], methods=["l1", "chex"])
    settings["data"]["root"] = "modelnet"
    (write_modelnet10 if scale == "real" else write_modelnet40)(workspace / "modelnet")
    run_all(NAME, settings, monkeypatch)
    results = read_parquet(workspace / "reports" / NAME / scale / "results.parquet")
    assert set(results["data"]) == {"modelnet10" if scale == "real" else "modelnet40"}
    assert (results["metric"] == "class_accuracy").any()


def test_a_claim_needs_its_rows(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("quick")
    settings.update(seeds=[0], methods=["l1"])
    run_all(NAME, settings, monkeypatch)
    claims = json.loads((workspace / "reports" / NAME / "quick" / "claims.json").read_text())
    verdicts = {claim["id"]: claim["verdict"] for claim in claims}
    assert verdicts["8a"] == verdicts["8b"] == "not tested at this scale"


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (None, {"methods": ["best"]}, r"chex-points\.methods\.0 = 'best'"),
        (None, {"seeds": [0, 0]}, "names a value twice"),
        (None, {"extra": 1}, "unknown key"),
        ("data", {"root": "folder"}, "solids are generated"),
        ("data", {"points": 4}, r"chex-points\.data\.points = 4"),
        ("net", {"shared": []}, r"chex-points\.net\.shared"),
        ("net", {"dropout": 1.0}, r"chex-points\.net\.dropout = 1\.0"),
        ("prune", {"flops": [1.5]}, r"chex-points\.prune\.flops\.0 = 1\.5"),
    ],
)
def test_wrong_parameters_are_told_in_one_line(
    workspace: Path, section: str | None, change: Settings, message: str
) -> None:
    settings = preset(NAME, "quick")
    (settings[section] if section else settings).update(change)
    write_params(NAME, settings)
    with pytest.raises(ParameterError, match=message) as error:
        load_params(PointsParams, NAME)
    assert "\n" not in str(error.value)


def test_a_batch_larger_than_the_data_is_told(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("quick")
    settings["recipe"]["batch"] = 49
    write_params(NAME, settings)
    with pytest.raises(ParameterError, match=r"chex-points\.recipe\.batch = 49: must not exceed the 48"):
        stage(prepare.main, monkeypatch)


def test_missing_folders_and_damaged_files_are_told(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("real")
    write_params(NAME, settings)
    with pytest.raises(ParameterError, match=r"chex-points\.data\.root: missing"):
        stage(prepare.main, monkeypatch)
    settings["data"]["root"] = "nowhere"
    write_params(NAME, settings)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        stage(prepare.main, monkeypatch)
    assert not (workspace / "data" / NAME).exists()
    write_params(NAME, tiny("quick"))
    stage(prepare.main, monkeypatch)
    prepared = workspace / "data" / NAME / "quick" / "points.safetensors"
    prepared.write_bytes(prepared.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"points\.safetensors: damaged"):
        stage(pretrain.main, monkeypatch, "--seed", 0)
    assert not (workspace / "runs").exists()
