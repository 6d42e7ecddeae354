"""The stages end to end on tiny inputs, on scenes and on a stand-in for COCO; faults."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.common.dense import training
from stages.common.results import COLUMNS, read_parquet
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.params import load_params
from stages.zendet import evaluate, official_search, prepare, report, score_check, search, train
from stages.zendet.params import ZendetParams
from tests.common.stages import Settings, killed_stage, open_workspace, preset, stage, write_params


def tiny(scale: str = "quick") -> Settings:
    """A preset cut down to seconds."""
    settings = preset("zendet", scale)
    settings.update(
        launch="python", seeds=[0, 1], image_size=64, strategies=["resnet", "entropy", "min-entropy"],
        backbones=["resnet", "entropy"], reference={"stem": 8, "mids": [8, 8, 8, 16], "depths": [1, 1, 1, 1]},
        detector={
            "channels": 8, "convs": 1, "levels": 3, "groups": 4, "sizes": [64], "longest": 64,
            "zero_residual": True,
        },
        heads=["gfl"],
        score_check={"structures": 4, "sizes": [64, 32], "batch": 1, "repeats": 2},
    )  # fmt: skip
    settings["search"].update(
        population=8, evaluations=60, zen_evaluations=4, official_evaluations=60, official_seeds=[0, 1]
    )
    settings["data"].update(train_images=8, val_images=4)
    if settings["data"]["scenes"]:
        settings["data"]["scenes"]["size"] = 64
    settings["train"].update(steps=2, batch=4, warmup=1, workers=0)
    return settings


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the stages read of the repository; one worker, no MLflow."""
    return open_workspace(tmp_path, monkeypatch)


def run_all(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("zendet", settings)
    for main in (prepare.main, official_search.main, score_check.main):
        stage(main, monkeypatch)
    for seed in settings["seeds"]:
        for strategy in settings["strategies"]:
            stage(search.main, monkeypatch, "--strategy", strategy, "--seed", seed)
    for backbone in settings["backbones"]:
        stage(train.main, monkeypatch, "--backbone", backbone)
    for main in (evaluate.main, report.main):
        stage(main, monkeypatch)


def test_quick_stages_end_to_end(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny()
    settings["heads"] = ["gfl", "fcos", "retinanet"]
    run_all(settings, monkeypatch)
    output = workspace / "reports" / "zendet" / "quick"
    results = read_parquet(output / "results.parquet")
    assert list(results.columns) == list(COLUMNS)
    assert set(results["table"]) == {"T1", "T2", "T3", "T4", "T5", "F1", "F2"}
    ap = results[(results["table"] == "T1") & (results["metric"] == "AP")]
    assert ap.groupby(["method", "setting"]).size().to_dict() == {
        (backbone, head): 2 for backbone in ("resnet", "entropy") for head in ("gfl", "fcos", "retinanet")
    }
    claims = {claim["id"]: claim for claim in json.loads((output / "claims.json").read_text())}
    assert claims["1a"]["verdict"] == claims["1b"]["verdict"] == claims["4"]["verdict"] == "supported"
    for number in ("5-gfl", "7", "8-S"):
        assert claims[number]["verdict"] == "not tested at this scale"
    first = {path.name: path.read_bytes() for path in output.iterdir()}
    stage(report.main, monkeypatch)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == first


def test_a_training_repeats_and_resumes_to_the_same_bytes(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny()
    settings["seeds"] = [0]
    settings["train"]["steps"] = 4
    write_params("zendet", settings)
    stage(prepare.main, monkeypatch)
    stage(search.main, monkeypatch, "--strategy", "resnet", "--seed", 0)
    stage(train.main, monkeypatch, "--backbone", "resnet")
    path = workspace / "runs/zendet/quick/train/resnet/gfl-0.safetensors"
    once = path.read_bytes()
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    # at the first tick (of the steps that a resumed training skips) and three more: before its third step
    killed_stage(train.main, monkeypatch, training, "tick", 4, "--backbone", "resnet")
    assert list(workspace.glob(".encore/work/zendet-train-*/gfl-0.ckpt"))
    ticks: list[int] = []
    monkeypatch.setattr(training, "tick", lambda count=1: ticks.append(count))
    stage(train.main, monkeypatch, "--backbone", "resnet")
    assert ticks == [1, 1, 1, 1]  # it had saved before its second step: one is skipped, three are taken
    assert path.read_bytes() == once


def stand_in_coco(root: Path) -> None:
    """A few noisy pictures with one or two boxes where COCO would be; category ids have gaps."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", 6), ("val", 3)):
        (root / f"{split}2017").mkdir()
        images, annotations = [], []
        for image in range(1, count + 1):
            name = f"{image:012d}.jpg"
            Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(
                root / f"{split}2017" / name
            )
            images.append({"id": image, "file_name": name, "height": 48, "width": 64})
            for number in range(2):
                annotations.append(
                    {
                        "id": 10 * image + number, "image_id": image, "category_id": (1, 90)[number],
                        "bbox": [4 + 20 * number, 6, 18, 30], "area": 540, "iscrowd": int(number == 1 and image == 1),
                    }
                )  # fmt: skip
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "a"}, {"id": 90, "name": "b"}],
        }
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


@pytest.mark.parametrize("scale", ["real", "paper"])
def test_presets_start_on_a_stand_in(scale: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny(scale)
    settings.update(seeds=[0], strategies=["resnet", "entropy"], backbones=["resnet"])
    settings["data"]["root"] = str(workspace / "coco")
    settings["train"]["steps"] = 1
    stand_in_coco(workspace / "coco")
    run_all(settings, monkeypatch)
    results = read_parquet(workspace / "reports" / "zendet" / scale / "results.parquet")
    ap = results[(results["table"] == "T1") & (results["metric"] == "AP")]
    assert ap["data"].tolist() == ["coco"]


def test_missing_coco_is_told(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("real")
    write_params("zendet", settings)
    with pytest.raises(ParameterError, match=r"data\.root: missing"):
        stage(prepare.main, monkeypatch)
    settings["data"]["root"] = str(workspace / "coco")
    write_params("zendet", settings)
    with pytest.raises(InputError, match=r"instances_train2017\.json: not found"):
        stage(prepare.main, monkeypatch)
    stand_in_coco(workspace / "coco")
    (workspace / "coco/annotations/instances_train2017.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        stage(prepare.main, monkeypatch)
    assert not Path("data/zendet/real").exists()


def test_damaged_scenes_are_told(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("zendet", tiny() | {"seeds": [0]})
    stage(prepare.main, monkeypatch)
    stage(search.main, monkeypatch, "--strategy", "resnet", "--seed", 0)
    file = workspace / "data/zendet/quick/scenes/train2017/000003.png"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"000003\.png: damaged"):
        stage(train.main, monkeypatch, "--backbone", "resnet")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image_size": 100}, "image_size = 100"),
        ({"backbones": ["random"]}, "must be among strategies"),
        ({"strategies": ["random"], "backbones": ["random"]}, "'entropy' is the method"),
        ({"detector": {**tiny()["detector"], "channels": 10}}, "must divide"),
        ({"image_size": 96}, "must be image_size"),
        ({"reference": {"stem": 8, "mids": [8], "depths": [1]}}, "one value for each"),
    ],
)
def test_wrong_parameters_are_told(
    change: Settings, problem: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params("zendet", tiny() | change)
    with pytest.raises(ParameterError, match=problem) as error:
        load_params(ZendetParams, "zendet")
    assert "\n" not in str(error.value)
