"""The stages end to end on tiny inputs; real and paper presets on a stand-in for the real folders."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torchvision import models

from stages.common.results import COLUMNS, read_parquet
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.files import sha256
from stages.common.stage.params import load_params
from stages.uot import (
    concepts,
    evaluate,
    finetune,
    import_released,
    prepare,
    pretrain,
    released,
    report,
    select,
    theory,
)
from stages.uot.params import UotParams
from tests.common.stages import Settings, open_workspace, preset, stage, write_params
from tests.uot.test_official import write_images

CLASSES = {
    "n01440764": "fish",
    "n01514668": "bird",
    "n02085620": "dog",
}  # of the stand-in: WordNet id, concept
COLOURS = (200, 0, 0), (0, 200, 0), (0, 0, 200)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the stages read of the repository; one thread, one worker, no MLflow."""
    return open_workspace(tmp_path, monkeypatch)


def run_all(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("uot", settings)
    stage(prepare.main, monkeypatch)
    for seed in settings["seeds"]:
        stage(pretrain.main, monkeypatch, "--seed", seed)
    stage(select.main, monkeypatch)
    for seed in settings["seeds"]:
        for selection in settings["selections"]:
            stage(finetune.main, monkeypatch, "--selection", selection, "--seed", seed)
    for main in (theory.main, released.main, evaluate.main, report.main):
        stage(main, monkeypatch)


def test_quick_stages_end_to_end(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "SOURCE_IMAGES", 12)
    monkeypatch.setattr(prepare, "TARGET_IMAGES", 10)
    monkeypatch.setattr(prepare, "TEST_IMAGES", 5)
    monkeypatch.setattr(theory, "SAMPLES", (64, 1024))
    settings = preset("uot", "quick")
    settings.update(seeds=[0, 1], selections=["none", "uot", "random", "all"])
    settings["pretrain"]["epochs"] = 1
    settings["finetune"].update(length=5, fraction=0.4, fractions=[1.0], k_sweep=[3], source_weights=[3.0])
    settings["theory"]["trials"] = 4
    run_all(settings, monkeypatch)
    output = workspace / "reports" / "uot" / "quick"
    results = read_parquet(output / "results.parquet")
    assert list(results.columns) == list(COLUMNS)
    assert set(results["table"]) == {"T2", "T5", "T6", "T8"}  # T1 needs released files
    assert results["value"].notna().all()
    claims = {claim["id"]: claim for claim in json.loads((output / "claims.json").read_text())}
    for number in ("1a", "1b", "2", "9"):
        assert claims[number]["verdict"] == "not tested at this scale"
    assert {"3a", "3b", "3c", "4a", "4b", "5a-merged", "6a", "7a", "8a-fine"} <= set(claims)
    assert (workspace / "reports" / "index.html").exists()
    first = {path.name: path.read_bytes() for path in output.iterdir()}
    stage(report.main, monkeypatch)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == first
    ranked = json.loads((workspace / "runs/uot/quick/select/0/merged-concepts.json").read_text())
    used = json.loads(
        next(
            (workspace / "runs/uot/quick/finetune/uot-0").glob("uot-concepts-merged-fraction0.4-K12*.json")
        ).read_text()
    )
    assert used["source_classes"] == sorted(ranked["0.4"]["uot"]["order"][:12])


def stand_in(root: Path, targets: list[str]) -> None:
    """A few tiny pictures where ImageNet and the targets would be."""
    colours = {wnid: colour for (wnid, _), colour in zip(CLASSES.items(), COLOURS, strict=True)}
    write_images(root / "imagenet" / "train", colours, 2)
    for target in targets:
        for split in ("train", "val"):
            write_images(root / target / split, {"one": (180, 20, 0), "two": (0, 20, 180)}, 2)


def stand_in_clone(root: Path) -> None:
    """Drawn class means where the authors' repository has the released ones, of few classes."""
    generator = np.random.default_rng(0)

    def write(path: Path, content: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(content, protocol=2))

    for folder in import_released.FOLDERS.values():
        means = root / folder / "class_mean"
        for name in ("class_mean_unnorm.pkl", "IN_class_mean_unnorm.pkl"):
            write(means / "ImageNet" / name, generator.normal(size=(120, 6)))
        for target in import_released.TARGETS:
            write(means / target / "class_mean_unnorm.pkl", generator.normal(size=(5, 6)))
    names = [*CLASSES, *(f"n{index:08d}" for index in range(120 - len(CLASSES)))]
    concepts = [*CLASSES.values(), *["others"] * (120 - len(CLASSES))]
    for name, column in (("path", names), ("concept", concepts), ("names", names)):
        write(root / "UOT_selection" / f"class_{name}.pkl", column)


def import_stand_in(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert the stand-in clone and register what comes out."""
    stand_in_clone(workspace / "clone")
    monkeypatch.setenv("ENCORE_MIRROR", str(workspace / "mirror"))
    stage(import_released.main, monkeypatch, "clone")
    files = {path.name: {"sha256": sha256(path)} for path in (workspace / "mirror" / "uot").iterdir()}
    registry = workspace / "data" / "registry.yaml"
    registry.unlink()
    registry.write_text(yaml.safe_dump({"uot": {"files": files}}))


def test_released_files_are_told_how_to_get(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("uot", {**preset("uot", "real"), "image_root": str(workspace / "images")})
    stand_in(workspace / "images", preset("uot", "real")["targets"])
    for main in (prepare.main, released.main):
        with pytest.raises(InputError, match=r"import_released CLONE.*ENCORE_MIRROR") as error:
            stage(main, monkeypatch)
        assert "\n" not in str(error.value)
    (workspace / "mirror" / "uot").mkdir(parents=True)
    (workspace / "mirror" / "uot" / "class_means.safetensors").write_bytes(b"something else")
    monkeypatch.setenv("ENCORE_MIRROR", str(workspace / "mirror"))
    with pytest.raises(InputError, match="sha256"):
        stage(released.main, monkeypatch)


def test_import_without_a_mirror_goes_into_data_raw(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_clone(workspace / "clone")
    stage(import_released.main, monkeypatch, "clone")
    written = {path.name for path in (workspace / "data" / "raw" / "uot").iterdir()}
    assert written == {"class_means.safetensors", "imagenet_classes.csv", "selections.json"}
    with pytest.raises(ParameterError, match="a clone of"):
        stage(import_released.main, monkeypatch)


@pytest.mark.parametrize("scale", ["real", "paper"])
def test_presets_start_on_a_stand_in(scale: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = preset("uot", scale)
    settings["targets"] = ["CUB", "pets"] if scale == "real" else ["CUB"]
    stand_in(workspace / "images", settings["targets"])
    import_stand_in(workspace, monkeypatch)
    torch.manual_seed(0)
    torch.save(models.resnet18(weights=None).state_dict(), "resnet18.pth")
    settings["pretraining"]["supervised"]["weights"] = "resnet18.pth"
    if "moco" in settings["pretraining"]:
        encoder = models.resnet50(weights=None)
        encoder.fc = torch.nn.Sequential(torch.nn.Linear(2048, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
        state = {f"module.encoder_q.{name}": value for name, value in encoder.state_dict().items()}
        torch.save({"state_dict": state}, "moco.pth.tar")
        settings["pretraining"]["moco"]["weights"] = "moco.pth.tar"
    settings["image_root"] = str(workspace / "images")
    settings.update(seeds=[0], selections=["none", "uot"] if scale == "real" else ["uot"])
    settings["select"]["k"] = 2
    settings["finetune"].update(length=1, batch=2, precision="float32", fractions=[])
    settings["theory"]["trials"] = 2
    monkeypatch.setattr(theory, "SAMPLES", (64, 1024))
    if scale == "real":
        run_all(settings, monkeypatch)
        results = read_parquet(workspace / "reports" / "uot" / scale / "results.parquet")
        claims = json.loads((workspace / "reports" / "uot" / scale / "claims.json").read_text())
        verdicts = {claim["id"]: claim["verdict"] for claim in claims}
        assert verdicts["1a"] == verdicts["1b"] == "supported"
        listing = json.loads((workspace / "data/uot/real/0/folders.json").read_text())
        assert listing["source"]["groups"] == list(CLASSES.values())
        trained = results[results["table"] == "T2"]
        assert set(trained["data"]) == {"CUB", "pets"}
        assert {"scratch", "vanilla", "uot", "uot-unlabelled"} <= set(trained["method"])
        return
    write_params("uot", settings)
    stage(prepare.main, monkeypatch)
    stage(pretrain.main, monkeypatch, "--seed", 0)
    stage(select.main, monkeypatch)
    monkeypatch.setattr(
        finetune, "jobs_of", lambda selection, params: evaluate.jobs_of(selection, params)[:1]
    )
    stage(finetune.main, monkeypatch, "--selection", "uot", "--seed", 0)
    files = {path.name for path in (workspace / "runs/uot/paper/select/0").iterdir()}
    assert {"supervised-CUB.json", "moco-CUB.json"} <= files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ["concepts", "CUB"]}, "stands alone"),
        ({"targets": ["CUB"]}, "mlp is for the target 'concepts'"),
        ({"selections": ["best"]}, r"uot\.selections\.0 = 'best'"),
        ({"seeds": [0, 0]}, "names a value twice"),
        ({"selections": ["uot", "uot"]}, "names a value twice"),
        ({"extra": 1}, "unknown key"),
    ],
)
def test_wrong_parameters_are_told_in_one_line(workspace: Path, change: Settings, message: str) -> None:
    write_params("uot", {**preset("uot", "quick"), **change})
    with pytest.raises(ParameterError, match=message) as error:
        load_params(UotParams, "uot")
    assert "\n" not in str(error.value)


def test_missing_folders_are_told_in_one_line(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("uot", preset("uot", "real"))
    with pytest.raises(ParameterError, match="image_root: missing"):
        stage(prepare.main, monkeypatch)
    write_params("uot", {**preset("uot", "real"), "image_root": str(workspace / "nowhere")})
    with pytest.raises(InputError, match="no such folder"):
        stage(prepare.main, monkeypatch)
    assert not (workspace / "data" / "uot").exists() or not any((workspace / "data" / "uot").iterdir())


def test_quick_data_has_the_cards_shape() -> None:
    arrays = prepare.concepts(0)
    assert arrays["source_x"].shape == (48 * 300, 144)
    assert sorted(set(arrays["target_group"].tolist())) == [0, 1]
    assert arrays["target_x"].shape == (12 * 200, 144)
    assert len(arrays["mixed_group"]) == 18
    assert concepts.CONCEPTS == 8
