"""The stages end to end on tiny inputs; resume; the real and paper presets on stand-ins; wrong input; a user's folder."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from stages.common.results import COLUMNS, read_parquet
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.files import sha256
from stages.common.stage.params import load_params
from stages.transfgu import (
    cluster,
    evaluate,
    features,
    prepare,
    pretrain,
    pseudo_label,
    report,
    segment,
    train,
    training,
)
from stages.transfgu.method.vision_transformer import VisionTransformer
from stages.transfgu.official import to_official
from stages.transfgu.params import TransfguParams
from tests.common.browser import browser, console_problems, emulate, needs_browser, requested_urls
from tests.common.stages import Settings, killed_stage, open_workspace, preset, stage, write_params


def tiny(scale: str) -> Settings:
    """A preset at seconds."""
    settings = preset("transfgu", scale)
    settings.update(seeds=[0])
    settings["pretrain"].update(steps=2, batch=2, warmup=1, prototypes=8, hidden=8, bottleneck=8)
    settings["train"].update(epochs=3, batch=2, start=1, intervals=[1], repeat=1, width=12, heads=2)
    settings["rivals"].update(rounds=1, steps=2, batch=2, width=4)
    settings["cluster"]["n_init"] = 1
    if scale == "quick":
        settings["data"].update(train=4, test=4, pretrain=8)
        settings["backbone"].update(width=12, depth=2, heads=2)
    return settings


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the stages read of the repository; one worker, no MLflow."""
    monkeypatch.setattr(report, "REPEATS", 1)
    return open_workspace(tmp_path, monkeypatch)


def run_all(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("transfgu", settings)
    stage(prepare.main, monkeypatch)
    for seed in settings["seeds"]:
        for main in (pretrain.main, features.main, cluster.main, pseudo_label.main):
            stage(main, monkeypatch, "--seed", seed)
        for method in settings["methods"]:
            stage(train.main, monkeypatch, "--method", method, "--seed", seed)
    for main in (evaluate.main, report.main):
        stage(main, monkeypatch)


def test_quick_stages_end_to_end(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("quick")
    settings["methods"] += ["shuffled"]
    run_all(settings, monkeypatch)
    output = workspace / "reports" / "transfgu" / "quick"
    results = read_parquet(output / "results.parquet")
    assert list(results.columns) == list(COLUMNS)
    assert set(results["table"]) == {"T1", "T3", "T4", "T5"}
    assert results["value"].between(0, 100).all()
    assert {"picie", "stego", "transfgu-random", "transfgu-shuffled"} <= set(
        results[results["table"] == "T1"]["method"]
    )
    claims = {claim["id"]: claim for claim in json.loads((output / "claims.json").read_text())}
    assert {"1a", "1b", "2a", "2b", "3", "4a", "4b", "4c", "5a", "5b", "5c", "6a", "6b", "7", "8"} == set(
        claims
    )
    assert claims["4a"]["verdict"] == "supported"
    assert claims["7"]["verdict"] == "not tested at this scale"
    files = {"predictions.svg", "concepts.svg", "iou-by-class.svg", "ablation.svg", "table.md", "claims.md"}
    assert files <= {path.name for path in output.iterdir()}
    first = {path.name: path.read_bytes() for path in output.iterdir()}
    stage(report.main, monkeypatch)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == first
    # the same seed gives the same bytes
    heads = workspace / "runs/transfgu/quick/train/transfgu-0/transfgu.safetensors"
    before = heads.read_bytes()
    stage(train.main, monkeypatch, "--method", "transfgu", "--seed", 0)
    assert heads.read_bytes() == before


@pytest.mark.parametrize("step", ["pretrain", "train"])
def test_a_killed_training_ends_with_the_same_bytes(
    step: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny("quick")
    settings["pretrain"]["steps"] = 4
    settings["methods"] = ["transfgu"]
    write_params("transfgu", settings)
    stage(prepare.main, monkeypatch)
    for main in (pretrain.main, features.main, cluster.main, pseudo_label.main):
        stage(main, monkeypatch, "--seed", 0)
    module = {"pretrain": pretrain, "train": training}[step]
    main = {"pretrain": pretrain.main, "train": train.main}[step]
    arguments = ["--seed", 0] if step == "pretrain" else ["--method", "transfgu", "--seed", 0]
    stage(main, monkeypatch, *arguments)
    name = "pretrain/0/dino" if step == "pretrain" else "train/transfgu-0/transfgu"
    path = workspace / f"runs/transfgu/quick/{name}.safetensors"
    expected = path.read_bytes()
    shutil.rmtree(path.parent)
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    killed_stage(main, monkeypatch, module, "tick", 3, *arguments)
    assert not path.exists()
    assert list((workspace / ".encore" / "work").rglob("*.ckpt"))
    stage(main, monkeypatch, *arguments)
    assert path.read_bytes() == expected


def camvid_stand_in(mirror: Path) -> None:
    """Two frames a split of noise, in the real files' form, and a registry that knows them."""
    rng = np.random.default_rng(0)
    (mirror / "segmentation").mkdir(parents=True)
    registry: Settings = {"segmentation": {"files": {}}}
    for split in ("train", "val", "test"):
        rows = []
        for index in range(2):
            image, label = io.BytesIO(), io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (36, 48, 3), dtype=np.uint8)).save(image, "WEBP")
            Image.fromarray(rng.integers(0, 12, (36, 48), dtype=np.uint8)).save(label, "PNG")
            rows.append(
                {"name": f"{split}{index}", "image_webp": image.getvalue(), "label_png": label.getvalue()}
            )
        path = mirror / "segmentation" / f"camvid_{split}.parquet"
        pd.DataFrame(rows).to_parquet(path)
        registry["segmentation"]["files"][path.name] = {"sha256": sha256(path)}
    Path("data/registry.yaml").unlink()
    Path("data/registry.yaml").write_text(yaml.safe_dump(registry))


def test_real_preset_starts_on_camvids_form(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camvid_stand_in(workspace / "mirror")
    monkeypatch.setenv("ENCORE_MIRROR", str(workspace / "mirror"))
    settings = tiny("real")
    settings["data"].update(height=64, width=64)
    settings["backbone"].update(width=12, depth=2, heads=2, native=4)
    settings["pretrain"].update(global_size=32, local_size=16, locals=1)
    settings["windows"].update(size=32)
    settings["methods"] = ["transfgu", "ablation"]
    run_all(settings, monkeypatch)
    arrays = load_file(workspace / "data/transfgu/real/0/images.safetensors")
    assert (arrays["train"].shape, arrays["test"].shape) == ((4, 3, 128, 128), (2, 3, 64, 64))
    assert set(arrays["label"].unique().tolist()) <= {*range(11), 255}
    claims = json.loads((workspace / "reports/transfgu/real/claims.json").read_text())
    assert {claim["id"] for claim in claims if claim["verdict"] == "inconclusive"} >= {"6a", "6b"}


def test_real_preset_needs_the_mirror(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("transfgu", tiny("real"))
    with pytest.raises(InputError, match="set ENCORE_MIRROR"):
        stage(prepare.main, monkeypatch)
    assert not (workspace / "data" / "transfgu" / "real").exists()


@pytest.fixture
def dino_file(workspace: Path) -> Path:
    """A small backbone in the form of a full DINO checkpoint."""
    torch.manual_seed(0)
    state = to_official(VisionTransformer(8, 64, 2, 1, 4))
    nested = {f"module.backbone.{name}": value for name, value in state.items()}
    torch.save({"teacher": {**nested, "module.head.mlp.0.weight": torch.zeros(2)}, "epoch": 3}, "dino.pth")
    return workspace / "dino.pth"


def test_paper_preset_starts_on_folders(
    dino_file: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind, end in (("images", "jpg"), ("annotations", "png")):
            folder = workspace / "sets" / "MSCOCO" / kind / f"{split}2017"
            folder.mkdir(parents=True)
            for index in range(count):
                shape = (40, 48, 3) if kind == "images" else (40, 48)
                Image.fromarray(rng.integers(0, 182, shape, dtype=np.uint8)).save(folder / f"{index}.{end}")
    (workspace / "coarse.json").write_text(json.dumps({value: value % 27 for value in range(182)}))
    settings = tiny("paper")
    settings["data"].update(root="sets", height=64, width=64)
    settings["backbone"].update(weights="dino.pth", width=64, depth=2, heads=1, native=4)
    settings["windows"].update(foreground=False, size=32)
    settings["methods"] = ["transfgu"]
    run_all(settings, monkeypatch)
    results = read_parquet(workspace / "reports/transfgu/paper/results.parquet")
    assert (results["method"] == "transfgu").any()
    (workspace / "sets/MSCOCO/annotations/val2017/0.png").unlink()
    with pytest.raises(InputError, match=r"0\.png: no such file"):
        stage(prepare.main, monkeypatch)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("data", {"name": "coco"}, r"transfgu\.data\.name = 'coco'"),
        ("data", {"train": 0}, "partscenes is generated"),
        ("data", {"name": "voc"}, "give the folder of voc"),
        ("cluster", {"background": True}, "stuff must be 0"),
        ("cluster", {"things": 0}, r"transfgu\.cluster\.things = 0"),
        ("train", {"start": 3}, "untrained head"),
        ("train", {"extra": 1}, "unknown key"),
    ],
)
def test_wrong_parameters_are_told_in_one_line(
    workspace: Path, section: str, change: Settings, message: str
) -> None:
    settings = preset("transfgu", "quick")
    settings[section].update(change)
    write_params("transfgu", settings)
    with pytest.raises(ParameterError, match=message) as error:
        load_params(TransfguParams, "transfgu")
    assert "\n" not in str(error.value)


def test_a_batch_larger_than_the_data_is_told(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("quick")
    settings["train"]["batch"] = 5
    settings["methods"] = ["transfgu"]
    with pytest.raises(ParameterError, match=r"train\.batch = 5: an epoch has 4 images"):
        run_all(settings, monkeypatch)


def photographs(folder: Path, count: int) -> None:
    """Pictures of different sizes, one in a subfolder, one of a single colour."""
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count - 1):
        pixels = rng.integers(0, 255, (50 + index, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("more" if index else "") / f"{index}.jpg")
    Image.new("L", (40, 30), 128).save(folder / "flat.png")


def run_segment(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    stage(segment.main, monkeypatch, *arguments, "--size", 64, "--epochs", 3)


@pytest.mark.parametrize("kind", ["all", "stuff", "background"])
def test_a_folder_of_your_own(
    kind: str,
    dino_file: Path,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pycocotools import mask as coco

    photographs(workspace / "mine", 4)
    options = {
        "all": ["--things", 5],
        "stuff": ["--things", 3, "--stuff", 2],
        "background": ["--things", 3, "--background"],
    }
    run_segment(monkeypatch, "mine", "out", "--backbone", "dino.pth", *options[kind])
    content = json.loads((workspace / "out/annotations.json").read_text())
    assert {image["file_name"] for image in content["images"]} == {
        "0.jpg",
        "more/1.jpg",
        "more/2.jpg",
        "flat.png",
    }
    for image in content["images"]:
        with Image.open(workspace / "out/masks" / f"{image['file_name']}.png") as picture:
            mask = np.array(picture)
        assert mask.shape == (image["height"], image["width"])
        segments = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        decoded = {a["category_id"]: coco.decode(a["segmentation"]) for a in segments}
        assert sum(part.astype(int) for part in decoded.values()).min() == 1  # every pixel once
        assert all((mask == concept)[part > 0].all() for concept, part in decoded.items())
    page = (workspace / "out/index.html").read_text()
    assert page.count("<section>") == len(content["categories"])
    assert "data:image/jpeg;base64," in page
    assert "4 images" in capsys.readouterr().out


@needs_browser
def test_the_gallery_opens_quietly_and_shows_every_picture(
    dino_file: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs(workspace / "mine", 4)
    Image.new("RGBA", (30, 60), (200, 30, 90, 128)).save(workspace / "mine" / "a <b> & 'c'.png")
    run_segment(monkeypatch, "mine", "out", "--backbone", "dino.pth", "--things", 3)
    url = (workspace / "out/index.html").as_uri()
    with browser(workspace / "profile") as driver:
        emulate(driver, 390, 800)
        console_problems(driver), requested_urls(driver)
        driver.get(url)
        driver.execute_script("for (const image of document.images) image.loading = 'eager'")
        loaded = "Promise.all([...document.images].map(i => i.decode())).then(() => arguments[0](true))"
        assert driver.execute_async_script(loaded)
        assert console_problems(driver) == []
        assert requested_urls(driver) == [url]
        shares = driver.execute_script(
            "return [...document.querySelectorAll('h2 small')].map(s => parseFloat(s.textContent))"
        )
        assert len(shares) == 3
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(100, abs=0.2)
        titles = driver.execute_script("return [...document.images].map(i => i.title)")
        assert "a <b> & 'c'.png, concepts" in titles
        wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert driver.execute_script(wide)


def test_one_image_of_one_colour_has_fewer_windows_than_concepts(
    dino_file: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "mine").mkdir()
    Image.new("RGB", (48, 32), (200, 30, 90)).save(workspace / "mine" / "flat.png")
    run_segment(monkeypatch, "mine", "out", "--backbone", "dino.pth", "--things", 4)
    record = json.loads((workspace / "out/concepts.json").read_text())
    # equal windows may differ in their last bit, so it need not be three
    assert record["empty"] == record["sizes"].count(0) >= 1
    assert f"{record['empty']} concepts have no window of their own" in capsys.readouterr().out
    with Image.open(workspace / "out/masks/flat.png.png") as picture:
        assert np.array(picture).shape == (32, 48)
    assert all(value.isfinite().all() for value in load_file(workspace / "out/head.safetensors").values())


def test_wrong_folders_are_told_and_nothing_is_left(
    dino_file: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "empty").mkdir()
    with pytest.raises(InputError, match="has no images"):
        run_segment(monkeypatch, "empty", "out", "--backbone", "dino.pth")
    with pytest.raises(InputError, match="no such folder"):
        run_segment(monkeypatch, "absent", "out", "--backbone", "dino.pth")
    with pytest.raises(ParameterError, match="exists"):
        run_segment(monkeypatch, "empty", "empty", "--backbone", "dino.pth")
    with pytest.raises(ParameterError, match="--things = 0"):
        run_segment(monkeypatch, "empty", "out", "--things", 0)
    photographs(workspace / "mine", 2)
    with pytest.raises(ParameterError, match="lies inside mine"):
        run_segment(monkeypatch, "mine", "mine/out", "--backbone", "dino.pth")
    (workspace / "mine" / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.png: not a readable image"):
        run_segment(monkeypatch, "mine", "out", "--backbone", "dino.pth")
    Image.new("I;16", (40, 30), 500).save(workspace / "mine" / "broken.png")
    with pytest.raises(InputError, match=r"broken\.png: .*'I;16'; save it with 8 bits"):
        run_segment(monkeypatch, "mine", "out", "--backbone", "dino.pth")
    (workspace / "mine" / "broken.png").unlink()
    with pytest.raises(ParameterError, match="timm has no such model"):
        run_segment(monkeypatch, "mine", "out", "--backbone", "timm:nothing")
    assert not (workspace / "out").exists()
