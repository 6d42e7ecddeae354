"""The stages end to end on tiny inputs; what happens after a kill, and on wrong parameters and missing folders."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.common.dense import training
from stages.common.dense.params import DenseData, Recipe
from stages.common.dense.scene_folders import write_ade_scenes, write_coco_scenes
from stages.common.results import COLUMNS, read_parquet
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.files import output_dir
from stages.common.stage.params import load_params
from stages.elsa.dense import evaluate, prepare, report, train
from stages.elsa.dense.networks import build_network, full_size, load_pretrained
from stages.elsa.dense.params import ElsaDenseParams
from stages.elsa.params import Trunk
from stages.elsa.variants import build_network as build_classifier
from tests.common.stages import Settings, killed_stage, open_workspace, preset, stage, write_params

PAPER = "elsa-dense"
DETECTION = {
    "channels": 8, "box_features": 8, "mask_channels": [8], "proposals": 20, "regions": 8, "detections": 5, "drop_path": 0.0,
}  # fmt: skip


def tiny(scale: str = "quick") -> Settings:
    """A preset cut down to seconds: few steps of a narrow trunk with 3 x 3 kernels on few images."""
    settings = preset(PAPER, scale)
    settings["launch"] = "python"
    settings["trunk"].update(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=3, mlp_ratio=1.0
    )
    settings["detection"].update(DETECTION)
    settings["segmentation"].update(channels=8, auxiliary_channels=8)
    for task in ("detection", "segmentation"):
        settings[task]["data"].update(train_images=8, val_images=4)
        settings[task]["recipe"].update(steps=4, batch=4, warmup=1, workers=0)
    return settings


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the stages read of the repository; one worker, no MLflow."""
    return open_workspace(tmp_path, monkeypatch)


def run_all(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params(PAPER, settings)
    stage(prepare.main, monkeypatch)
    for seed in settings["seeds"]:
        for mixer in settings["mixers"]:
            stage(train.main, monkeypatch, "--mixer", mixer, "--seed", seed)
    stage(evaluate.main, monkeypatch)
    stage(report.main, monkeypatch)


def stand_ins(folder: Path, size: int = 64) -> tuple[Path, Path]:
    """Folders laid out like COCO and ADE20K."""
    style = {"size": size, "objects": [1, 3], "look": "wavy"}
    data = DenseData.model_validate(
        {"kind": "scenes", "root": None, "train_images": 10, "val_images": 4, "scenes": style}
    )
    write_coco_scenes(data, folder / "coco")
    write_ade_scenes(data, folder / "ade")
    return folder / "coco", folder / "ade"


def test_quick_stages_end_to_end(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny()
    settings.update(seeds=[0, 1], mixers=["window", "depthwise", "elsa"])
    run_all(settings, monkeypatch)
    output = workspace / "reports" / PAPER / "quick"
    results = read_parquet(output / "results.parquet")
    assert list(results.columns) == list(COLUMNS)
    assert results["value"].notna().all()
    trained = results[results["metric"].isin(["box_ap", "mask_ap", "miou", "miou_ms_flip"])]
    assert len(trained) == 2 * 3 * 4
    assert trained["value"].between(0, 100).all()
    claims = {claim["id"]: claim for claim in json.loads((output / "claims.json").read_text())}
    assert claims["D1"]["verdict"] == "supported"
    assert {f"D{n}{letter}" for n in (2, 3) for letter in "abc"} <= set(claims)
    assert claims["D2c"]["n"] == 2  # box and mask AP may be 0 in all rows after so few steps
    gaps = results[results["metric"] == "miou"].pivot(index="seed", columns="method", values="value")
    assert claims["D2c"]["effect"] == pytest.approx((gaps["elsa"] - gaps["window"]).mean())
    assert claims["D4a"]["verdict"] == "not tested at this scale"
    table = (output / "table.md").read_text()
    for text in (
        "(T2)",
        "(T3)",
        "45.7 (readme)",
        "47.9 (readme)",
        "small scale, not the paper's setting",
        "**ELSA**",
    ):
        assert text in table
    first = {path.name: path.read_bytes() for path in output.iterdir()}
    stage(report.main, monkeypatch)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == first
    weights = workspace / "runs" / PAPER / "quick" / "train" / "elsa-0"
    before = {path.name: path.read_bytes() for path in weights.iterdir()}
    shutil.rmtree(weights)
    stage(train.main, monkeypatch, "--mixer", "elsa", "--seed", 0)
    assert {path.name: path.read_bytes() for path in weights.iterdir()} == before


def test_a_killed_training_ends_with_the_same_bytes(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed in the detector's third step, after a checkpoint before every step, and run again."""
    write_params(PAPER, tiny())
    stage(prepare.main, monkeypatch)
    arguments = ("--mixer", "window", "--seed", 0)
    stage(train.main, monkeypatch, *arguments)
    folder = workspace / "runs" / PAPER / "quick" / "train" / "window-0"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    rate = training.learning_rate
    # asked once for each of two groups of parameters
    killed_stage(train.main, monkeypatch, training, "learning_rate", 5, *arguments)
    assert not folder.exists()
    assert list((workspace / ".encore" / "work").glob("elsa-dense-train-*/detection.ckpt"))
    steps: list[tuple[int, float]] = []

    def noted(step: int, recipe: Recipe) -> float:
        steps.append((step, recipe.weight_decay))
        return rate(step, recipe)

    monkeypatch.setattr(train, "run_jobs", lambda work, jobs: ((job, work(job)) for job in jobs))
    monkeypatch.setattr(training, "learning_rate", noted)
    stage(train.main, monkeypatch, *arguments)
    seen = [step for step, _ in steps][::2]  # two groups of parameters
    assert seen == [2, 3, 0, 1, 2, 3]  # the detector goes on, the segmentor starts
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_real_preset_on_stand_in_folders(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coco_root, ade_root = stand_ins(workspace)
    settings = tiny("real")
    settings.update(seeds=[0], mixers=["window", "elsa"])
    settings["detection"].update(sizes=[48, 64], longest=96)
    settings["detection"]["data"]["root"] = str(coco_root)
    settings["segmentation"].update(crop=48, ratios=[0.75, 1.0], pools=[1, 2])
    settings["segmentation"]["data"]["root"] = str(ade_root)
    run_all(settings, monkeypatch)
    results = read_parquet(workspace / "reports" / PAPER / "real" / "results.parquet")
    assert set(results["data"]) == {"coco", "ade20k", "none"}
    assert set(results.loc[results["metric"] == "box_ap", "method"]) == {"window", "elsa"}
    assert "from scratch" in (workspace / "reports" / PAPER / "real" / "table.md").read_text()


def test_paper_preset_on_stand_in_folders(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authors' augmentation, stochastic depth, and a trunk that was trained as a classifier."""
    coco_root, ade_root = stand_ins(workspace)
    settings = tiny("paper")
    settings.update(mixers=["elsa"], pretrained="pretrain")
    settings["detection"].update(sizes=[48, 64], longest=96, drop_path=0.1)
    settings["detection"]["data"]["root"] = str(coco_root)
    settings["segmentation"].update(crop=48, ratios=[0.75, 1.0], pools=[1, 2])
    settings["segmentation"]["data"]["root"] = str(ade_root)
    torch.manual_seed(0)
    classifier = build_classifier("elsa", Trunk(**settings["trunk"]), 96, 10, 0.0)
    with output_dir(workspace / "pretrain" / "elsa-42") as folder:
        save_file(classifier.state_dict(), folder / "elsa.safetensors")
    run_all(settings, monkeypatch)
    output = workspace / "reports" / PAPER / "paper"
    claims = {claim["id"]: claim for claim in json.loads((output / "claims.json").read_text())}
    assert claims["D4a"]["verdict"] == "inconclusive"  # one seed
    assert claims["D2a"]["verdict"] == "not tested at this scale"  # no window attention
    assert "pre-trained trunk" in (output / "table.md").read_text()


def test_the_trunk_starts_from_the_classifier(workspace: Path) -> None:
    write_params(PAPER, tiny())
    params = load_params(ElsaDenseParams, PAPER)
    torch.manual_seed(1)
    state = build_classifier("elsa", params.trunk, 96, 10, 0.0).state_dict()
    path = workspace / "pretrain" / "elsa-0" / "elsa.safetensors"
    path.parent.mkdir(parents=True)
    save_file(state, path)
    model, body = build_network("segmentation", "elsa", 0, 7, params)
    load_pretrained(body, workspace / "pretrain", "elsa", 0)
    inside = model.state_dict()
    for name, value in load_file(path).items():
        if not name.startswith(("head.", "norm.")):
            assert torch.equal(inside[f"body.trunk.{name}"], value)
    _, other = build_network("segmentation", "window", 0, 7, params)
    with pytest.raises(InputError, match=r"elsa-0/elsa\.safetensors: .*Missing key"):
        load_pretrained(other, workspace / "pretrain", "elsa", 0)
    with pytest.raises(InputError, match=r"elsa-1/elsa\.safetensors: not found; elsa-dense\.pretrained"):
        load_pretrained(body, workspace / "pretrain", "elsa", 1)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("detection", {"Swin-T": 48, "ELSA-Swin-T": 49, "Swin-S": 69, "ELSA-Swin-S": 72}),
        ("segmentation", {"Swin-T": 60, "ELSA-Swin-T": 61, "Swin-S": 81, "ELSA-Swin-S": 85}),
    ],
)
def test_full_size_networks_are_as_large_as_published(task: str, expected: dict[str, int]) -> None:
    with torch.device("meta"):
        counts = {
            name: round(sum(p.numel() for p in build().parameters()) / 1e6)
            for name, build in full_size(task).items()  # type: ignore[arg-type]
        }
    assert counts == expected


def test_rows_share_all_but_the_mixers(workspace: Path) -> None:
    """Equal seeds give equal shapes outside the mixers."""
    write_params(PAPER, tiny())
    params = load_params(ElsaDenseParams, PAPER)
    for task in ("detection", "segmentation"):
        shapes = []
        for mixer in ("window", "elsa", "depthwise"):
            model, _ = build_network(task, mixer, 0, 6, params)
            shapes.append({k: v.shape for k, v in model.named_parameters() if ".attn." not in k})
        assert shapes[0] == shapes[1] == shapes[2]


def changed(section: str, **values: object) -> Settings:
    settings = preset(PAPER, "quick")
    settings[section].update(values)
    return settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**preset(PAPER, "quick"), "mixers": ["best"]}, r"elsa-dense\.mixers\.0 = 'best'"),
        ({**preset(PAPER, "quick"), "extra": 1}, "unknown key"),
        (changed("segmentation", crop=32), "crop: needed for augment 'ade20k', and only for it"),
        (changed("segmentation", augment="ade20k"), "crop: needed for augment 'ade20k', and only for it"),
        (changed("detection", augment="none"), r"elsa-dense\.detection\.augment = 'none'"),
        (changed("detection", sizes=[]), r"elsa-dense\.detection\.sizes"),
        (changed("trunk", window_size=4), "must be odd"),
    ],
)
def test_wrong_parameters_are_told_in_one_line(workspace: Path, settings: Settings, message: str) -> None:
    write_params(PAPER, settings)
    with pytest.raises(ParameterError, match=message) as error:
        load_params(ElsaDenseParams, PAPER)
    assert "\n" not in str(error.value)


def test_missing_folders_are_told_in_one_line(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("paper")
    write_params(PAPER, settings)
    with pytest.raises(ParameterError, match=r"elsa-dense\.detection\.data\.root: missing; .* like COCO"):
        stage(prepare.main, monkeypatch)
    settings["detection"]["data"]["root"] = settings["segmentation"]["data"]["root"] = "nowhere"
    write_params(PAPER, settings)
    with pytest.raises(InputError, match=r"nowhere/annotations/instances_train2017\.json: not found"):
        stage(prepare.main, monkeypatch)
    assert not list((workspace / "data" / PAPER).iterdir())


def test_damaged_data_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params(PAPER, tiny())
    stage(prepare.main, monkeypatch)
    path = workspace / "data" / PAPER / "quick" / "coco" / "train2017" / "000003.png"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"000003\.png: damaged"):
        stage(train.main, monkeypatch, "--mixer", "window", "--seed", 0)
    assert not (workspace / "runs").exists()
