"""The stages end to end on tiny inputs: reports, resuming, wrong parameters; real and paper presets on stand-ins."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from stages.common.results import COLUMNS, read_parquet
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.params import load_params
from stages.common.stage.run import ROOT
from stages.elsa import data, evaluate, finetune, prepare, pretrain, report, training
from stages.elsa.cells import network, run_log
from stages.elsa.data import ArrayData
from stages.elsa.params import ElsaParams
from stages.elsa.textures import CLASSES, make_textures
from stages.elsa.variants import VARIANTS, build_network, rows_of

Settings = dict[str, Any]
CPU = torch.device("cpu")


def preset(scale: str) -> Settings:
    return yaml.safe_load((ROOT / "conf" / "elsa" / f"{scale}.yaml").read_text())


def tiny() -> Settings:
    settings = preset("quick")
    settings.update(seeds=[0, 1], mixers=["window", "depthwise", "elsa"])
    settings["trunk"].update(embed_dim=12, depths=[1, 1], num_heads=[2, 2])
    settings["pretrain"].update(steps=4, batch=10, warmup=1)
    settings["finetune"].update(steps=2, batch=10, warmup=1)
    return settings


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the stages read of the repository; little data, one worker, no MLflow, nothing timed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENCORE_JOBS", "1")
    monkeypatch.delenv("ENCORE_MIRROR", raising=False)
    monkeypatch.setattr(report, "start_sync", lambda: None)
    monkeypatch.setattr(report, "mixer_cost", lambda mixer, shape: [1.0, 2.0, 3.0])
    monkeypatch.setattr(
        report, "operator_cost", lambda backend: [1.0, 8.0 if backend == "reference" else 1.0, 3.0]
    )
    monkeypatch.setattr(
        evaluate, "MODELS", {name: evaluate.MODELS[name] for name in list(evaluate.MODELS)[:3]}
    )
    monkeypatch.setattr(prepare, "TEST", 20)
    monkeypatch.setattr(prepare, "TEXTURES", {"textures": (30, 0.0), "textures-turned": (20, 0.4)})
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "published").symlink_to(ROOT / "reports" / "published")
    return tmp_path


def stage(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["stage", *map(str, arguments)])
    main()


def write_params(settings: Settings) -> None:
    Path("params.yaml").write_text(yaml.safe_dump({"elsa": settings}))


def train_all(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params(settings)
    stage(prepare.main, monkeypatch)
    for seed in settings["seeds"]:
        for mixer in settings["mixers"]:
            stage(pretrain.main, monkeypatch, "--mixer", mixer, "--seed", seed)
        stage(finetune.main, monkeypatch, "--seed", seed)


def test_quick_stages_end_to_end(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_all(tiny(), monkeypatch)
    stage(evaluate.main, monkeypatch)
    stage(report.main, monkeypatch)
    output = workspace / "reports" / "elsa" / "quick"
    results = read_parquet(output / "results.parquet")
    assert list(results.columns) == list(COLUMNS)
    assert set(results["table"]) == {"T1", "T4", "exact"}
    top1 = results[results["metric"] == "top1"]
    assert len(top1) == 2 * (5 + 3)  # two seeds: three mixers and two ablations, three of them fine-tuned
    assert top1["value"].between(0, 100).all()
    claims = {claim["id"]: claim for claim in json.loads((output / "claims.json").read_text())}
    assert set(claims) == {"1", "2", "3a", "3b", "4", "5a", "5b", "6", "7a", "7b", "8"}
    assert claims["1"]["verdict"] == claims["2"]["verdict"] == claims["7a"]["verdict"] == "supported"
    assert claims["7b"]["verdict"] == "not supported"  # the stand-in costs say so
    assert claims["5a"]["verdict"] == claims["8"]["verdict"] == "not tested at this scale"
    table = (output / "table.md").read_text()
    assert "29,140,978" in table
    assert "not the paper's setting" in table
    first = {path.name: path.read_bytes() for path in output.iterdir()}
    stage(report.main, monkeypatch)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == first


def test_fine_tuning_starts_from_the_pretrained_weights(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**tiny(), "seeds": [0], "mixers": ["depthwise"], "ablations": []}
    settings["finetune"].update(lr=1e-12, min_lr=0.0, weight_decay=0.0)
    train_all(settings, monkeypatch)
    runs = workspace / "runs" / "elsa" / "quick"
    before = load_file(runs / "pretrain" / "depthwise-0" / "depthwise.safetensors")
    after = load_file(runs / "finetune" / "0" / "depthwise.safetensors")
    for name, value in before.items():
        assert (
            name.startswith("head.") != torch.allclose(after[name], value, atol=1e-8) or name == "head.bias"
        )


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["elsa", "window"])
def test_resumed_training_ends_with_the_same_bytes(
    name: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny()
    settings["pretrain"].update(drop_path=0.5, augment="crop-flip", steps=5, mixup=0.5)
    write_params(settings)
    stage(prepare.main, monkeypatch)
    params = load_params(ElsaParams, "elsa")
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)

    def weights(checkpoint: Path, stop: int | None = None) -> dict[str, Tensor]:
        model = network(params, "pretrain", name, 0, CPU)
        images = ArrayData(Path("data/elsa/quick/textures.safetensors"), params.pretrain, CPU)
        clean = Checkpoint.save

        def save(self: Checkpoint, state: dict[str, Any]) -> None:
            clean(self, state)
            if state["step"] == stop:
                raise Killed

        monkeypatch.setattr(Checkpoint, "save", save)
        with run_log(params, "pretrain", name, 0) as log:
            training.fit(model, images, params.pretrain, 0, log, Checkpoint(checkpoint))
        return model.state_dict()

    whole = weights(workspace / "whole.ckpt")
    with pytest.raises(Killed):
        weights(workspace / "broken.ckpt", stop=3)
    monkeypatch.undo()
    monkeypatch.chdir(workspace)
    resumed = weights(workspace / "broken.ckpt")
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (None, "mixers", ["swin"], r"elsa\.mixers\.0 = 'swin'"),
        (None, "ablations", ["elsa-mul", "elsa-mul"], r"elsa\.ablations = .*twice"),
        ("pretrain", "batch", 0, r"elsa\.pretrain\.batch = 0"),
        ("pretrain", "epochs", 3, r"elsa\.pretrain\.epochs: unknown key; allowed here: data, steps"),
        ("trunk", "window_size", 6, "must be odd"),
        ("trunk", "num_heads", [3, 6, 12], "as many as depths"),
        ("trunk", "num_heads", [5, 6], "must divide 24 channels"),
    ],
)
def test_wrong_parameters_are_one_line(
    section: str | None,
    key: str,
    value: object,
    message: str,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = preset("quick")
    (settings[section] if section else settings)[key] = value
    write_params(settings)
    with pytest.raises(ParameterError, match=message) as error:
        stage(prepare.main, monkeypatch)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    assert not (workspace / "data").exists()


def test_damaged_weights_are_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_all({**tiny(), "seeds": [0]}, monkeypatch)
    path = Path("runs/elsa/quick/pretrain/elsa-0/elsa.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"elsa-0/elsa\.safetensors: damaged"):
        stage(finetune.main, monkeypatch, "--seed", 0)


def test_imagenet_needs_its_folder(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params(preset("paper"))
    with pytest.raises(ParameterError, match=r"elsa\.image_folder: missing"):
        stage(prepare.main, monkeypatch)
    (workspace / "images" / "train" / "n01440764").mkdir(parents=True)
    write_params({**preset("paper"), "image_folder": "images"})
    with pytest.raises(InputError, match="has 1 class folders, 1000 are expected"):
        stage(prepare.main, monkeypatch)


def test_paper_preset_starts_on_a_stand_in(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setitem(data.CLASSES, "imagenet", 2)
    for split in ("train", "val"):
        for wnid in ("n01440764", "n01443537"):
            folder = workspace / "images" / split / wnid
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (60, 50), (90 * number, 80, 40)).save(folder / f"{number}.JPEG")
    settings = {
        **preset("paper"),
        "image_folder": "images",
        "mixers": ["elsa"],
        "ablations": [],
        "seeds": [0],
    }
    settings["pretrain"].update(steps=1, batch=2, warmup=0, precision="float32")
    settings["trunk"].update(embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])
    train_all(settings, monkeypatch)
    stage(evaluate.main, monkeypatch)
    results = read_parquet(Path("runs/elsa/paper/evaluate/results.parquet"))
    assert (results[results["metric"] == "top1"]["data"] == "imagenet").all()
    assert list(Path("runs/elsa/paper/finetune/0").iterdir()) == [
        Path("runs/elsa/paper/finetune/0/MANIFEST.json")
    ]


@pytest.mark.parametrize("scale", ["quick", "real", "paper"])
def test_every_row_of_a_preset_builds(scale: str) -> None:
    params = ElsaParams.model_validate(preset(scale))
    recipe = params.pretrain
    rows = [row for mixer in params.mixers for row in rows_of(mixer, params.ablations)]
    assert set(rows) == {*params.mixers, *params.ablations}
    with torch.device("meta"), torch.no_grad():
        for row in rows:
            model = build_network(row, params.trunk, data.SIZES[recipe.data], data.CLASSES[recipe.data], 0.0)
            side = data.SIZES[recipe.data]
            assert model(torch.empty(1, 3, side, side)).shape == (1, data.CLASSES[recipe.data])


def test_the_seven_networks_are_there() -> None:
    assert sorted(variant.net for variant in VARIANTS.values() if variant.net) == [1, 2, 3, 4, 5, 6, 7]


def test_textures_are_balanced_seeded_and_without_a_colour_cue() -> None:
    x, y = make_textures(400, 0.0, torch.Generator().manual_seed(3))
    again, _ = make_textures(400, 0.0, torch.Generator().manual_seed(3))
    assert torch.equal(x, again)
    assert y.bincount().tolist() == [400 // CLASSES] * CLASSES
    means = torch.stack([x[y == label].mean((0, 2, 3)) for label in range(CLASSES)])
    assert float(means.std(0).max()) < 0.06  # of images whose mean alone varies by .17
