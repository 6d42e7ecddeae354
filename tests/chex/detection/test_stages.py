"""The stages end to end on a few scenes; real and paper presets on a stand-in; wrong and damaged input; a kill."""

import json
from pathlib import Path

import pytest

from stages.chex.detection import prepare, pretrain, prune
from stages.chex.detection.params import DetectionParams
from stages.common.dense.params import DenseData
from stages.common.dense.scene_folders import write_coco_scenes
from stages.common.results import COLUMNS, read_parquet
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.params import load_params
from tests.chex.pipelines import open_pipeline, run_all
from tests.common.stages import Settings, preset, stage, write_params
from tests.common.workspace import tree

NAME = "chex-detection"


def tiny(scale: str) -> Settings:
    """A preset at seconds."""
    settings = preset(NAME, scale)
    settings.update(seeds=[0], launch="python")
    settings["data"].update(train_images=8, val_images=4)
    for detector in settings["detectors"].values():
        detector["recipe"].update(steps=8, batch=2, warmup=1, workers=0, precision="float32")
        detector["prune"].update(flops=[0.5], explore=0.7, period=0.25)
    return settings


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return open_pipeline(tmp_path, monkeypatch)


def test_quick_stages_end_to_end(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("quick")
    before = run_all(NAME, settings, monkeypatch)
    output = workspace / "reports" / NAME / "quick"
    results = read_parquet(output / "results.parquet")
    assert list(results.columns) == list(COLUMNS)
    assert set(results["table"]) == {"T2", "T3"}
    assert set(results["method"]) == {"dense", *settings["methods"]}
    assert not results.duplicated(["table", "method", "setting", "metric", "seed"]).any()
    assert results["value"].notna().all()
    assert results[results["metric"] == "segm_AP"]["table"].eq("T3").all()
    slim = results[(results["metric"] == "macs_fraction") & (results["method"] != "dense")]
    assert slim["value"].between(0.4, 0.5).all()
    claims = {claim["id"]: claim for claim in json.loads((output / "claims.json").read_text())}
    compared = {
        f"8{letter}-{what}" for letter in "ab" for what in ("ssd-box", "mask-rcnn-box", "mask-rcnn-mask")
    }
    assert set(claims) == {*compared, "8c", "8d", "8e", "5a", "5b"}
    assert claims["5a"]["verdict"] == claims["5b"]["verdict"] == "supported"
    assert claims["8c"]["verdict"] == "not tested at this scale"
    table = (output / "table.md").read_text()
    assert "CHEX-2" in table  # published rows beside ours
    assert "ap-against-flops-ssd.svg" in {path.name for path in output.iterdir()}
    assert run_all(NAME, settings, monkeypatch) == before


@pytest.mark.parametrize("scale", ["real", "paper"])
def test_presets_start_on_a_stand_in(scale: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """COCO's layout with a few scenes; the quick body stands for ResNet-50, which test_detection analyses at full size."""
    scenes = DenseData.model_validate({**preset(NAME, "quick")["data"], "train_images": 8, "val_images": 4})
    write_coco_scenes(scenes, workspace / "coco")
    settings = tiny(scale)
    settings["data"]["root"] = "coco"
    settings.update(classes=6, methods=["l1", "chex"])
    for detector in settings["detectors"].values():
        detector["net"] = "quick"
    run_all(NAME, settings, monkeypatch)
    results = read_parquet(workspace / "reports" / NAME / scale / "results.parquet")
    assert set(results["data"]) == {"folder"}
    claims = json.loads((workspace / "reports" / NAME / scale / "claims.json").read_text())
    verdicts = {claim["id"]: claim["verdict"] for claim in claims}
    assert (verdicts["8c"] == "not tested at this scale") == (scale == "real")


def test_a_killed_stage_goes_on(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in its last job, with a checkpoint after every step, it ends with the bytes of a whole run."""
    settings = tiny("quick")
    settings["methods"] = ["chex"]
    write_params(NAME, settings)
    stage(prepare.main, monkeypatch)
    stage(pretrain.main, monkeypatch, "--seed", 0)
    stage(prune.main, monkeypatch, "--method", "chex", "--seed", 0)
    folder = workspace / "runs" / NAME / "quick" / "prune" / "chex-0"
    whole = tree(folder)
    monkeypatch.setattr("stages.chex.loop.CHECKPOINT_SECONDS", 0.0)
    ticks = 0

    def tick(steps: int = 1) -> None:
        nonlocal ticks
        ticks += steps
        if ticks == 13:  # the fifth step of the second detector
            raise KeyboardInterrupt

    monkeypatch.setattr("stages.chex.loop.tick", tick)
    monkeypatch.setattr("stages.chex.pruning.run_jobs", lambda work, jobs: [(job, work(job)) for job in jobs])
    with pytest.raises(KeyboardInterrupt):
        stage(prune.main, monkeypatch, "--method", "chex", "--seed", 0)
    assert tree(folder) == whole  # what was there is untouched
    (work,) = (workspace / ".encore" / "work").iterdir()
    assert {path.name for path in work.iterdir()} >= {"mask-rcnn-0.5.json", "ssd-0.5.ckpt"}
    stage(prune.main, monkeypatch, "--method", "chex", "--seed", 0)
    assert tree(folder) == whole


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["methods"], ["best"], r"chex-detection\.methods\.0 = 'best'"),
        (["classes"], 7, "scenes have 6"),
        (["detectors"], {}, r"chex-detection\.detectors"),
        (["detectors", "yolo"], {}, r"chex-detection\.detectors\.yolo"),
        (["detectors", "ssd", "net"], "resnet18", r"detectors\.ssd\.net = 'resnet18'"),
        (["detectors", "ssd", "recipe", "extra"], 1, "unknown key"),
        (["detectors", "ssd", "prune", "flops"], [0.0], r"prune\.flops\.0 = 0\.0"),
        (["data", "scenes"], None, "needs scenes"),
    ],
)
def test_wrong_parameters_are_told_in_one_line(
    workspace: Path, path: list[str], value: object, message: str
) -> None:
    settings = preset(NAME, "quick")
    inner = settings
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    write_params(NAME, settings)
    with pytest.raises(ParameterError, match=message) as error:
        load_params(DetectionParams, NAME)
    assert "\n" not in str(error.value)


def test_missing_and_damaged_input_is_told(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("real")
    write_params(NAME, settings)
    with pytest.raises(ParameterError, match=r"chex-detection\.data\.root: missing"):
        stage(prepare.main, monkeypatch)
    settings["data"]["root"] = "nowhere"
    write_params(NAME, settings)
    with pytest.raises(InputError, match=r"instances_train2017\.json: not found"):
        stage(prepare.main, monkeypatch)
    assert list((workspace / "data" / NAME).iterdir()) == []
    write_params(NAME, tiny("quick"))
    stage(prepare.main, monkeypatch)
    annotations = workspace / "data" / NAME / "quick" / "coco" / "annotations" / "instances_val2017.json"
    annotations.write_text(annotations.read_text().replace("bbox", "box"))
    with pytest.raises(InputError, match=r"instances_val2017\.json: damaged"):
        stage(pretrain.main, monkeypatch, "--seed", 0)
    assert not (workspace / "runs").exists()
