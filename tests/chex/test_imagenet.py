"""The paper scale on a tiny stand-in laid out like ImageNet: 1,000 class folders with one small image each."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from stages.chex.data import CLASSES, FolderData
from stages.chex.loop import fit
from stages.chex.method.explorer import ChannelExplorer, ExplorerConfig
from stages.chex.method.resnet import build
from stages.chex.params import ChexParams
from stages.chex.prepare import describe_imagenet
from stages.chex.rows import Schedule
from stages.chex.study import explored
from stages.chex.training import task_of
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.errors import InputError
from stages.common.stage.tracking import RunLog

PRESET = Path(__file__).resolve().parents[2] / "conf" / "chex" / "paper.yaml"


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imagenet")
    for split in ("train", "val"):
        for index in range(CLASSES["imagenet"]):
            folder = root / split / f"n{index:08}"
            folder.mkdir(parents=True)
            Image.new("RGB", (20, 16), (index % 256, index // 4, 90)).save(folder / "0.JPEG")
    return root


@pytest.fixture(scope="module")
def data(imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> FolderData:
    described = tmp_path_factory.mktemp("prepared") / "imagenet.json"
    described.write_text(json.dumps(describe_imagenet(str(imagenet))))
    recipe = ChexParams.model_validate(yaml.safe_load(PRESET.read_text())).data["imagenet"]
    small = recipe.model_copy(update={"net": "resnet18", "batch": 2, "steps": 4, "warmup": 1})
    return FolderData(described, CLASSES["imagenet"], small, torch.device("cpu"))


def test_a_wrong_layout_is_named(imagenet: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 0 class folders, 1000 are expected"):
        describe_imagenet(str(tmp_path))


def test_batches_after_a_resume_are_those_of_an_uninterrupted_epoch(data: FolderData) -> None:
    whole = data.train(seed=3, start=0)
    batches = [next(whole) for _ in range(3)]
    resumed = next(data.train(seed=3, start=2))
    assert torch.equal(resumed[0], batches[2][0])
    assert torch.equal(resumed[1], batches[2][1])
    assert not torch.equal(batches[0][0], batches[1][0])


def test_the_paper_recipe_trains_and_prunes(
    data: FolderData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16, mixup and the explorer's updates on a ResNet-18, four steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stages.chex.loop.MONITORED", 0)
    built = explored(build("resnet18", CLASSES["imagenet"]), "", torch.zeros(1, 3, 224, 224))
    budget = 0.8 * built.dense_macs
    config = ExplorerConfig(t_max=2, period=1, macs_budget=budget)
    explorer = ChannelExplorer(
        built.model, built.groups, config, torch.Generator().manual_seed(0), built.macs
    )
    explorer.initialise()
    schedule = Schedule(4, updates=(1, 2), final_update=3)
    task = task_of(data, schedule, 0)
    assert data.recipe.precision == "bfloat16"
    assert data.recipe.mixup == 0.2
    with RunLog("chex", "stand-in", "stand-in") as log:
        checkpoint = Checkpoint(tmp_path / "x.ckpt")
        history = fit(built.model, explorer, task, schedule, data.device, log, checkpoint)
    assert [entry["step"] for entry in history] == [0, 1, 2]
    assert built.macs.of_masks(explorer.masks) <= budget
    assert all(parameter.isfinite().all() for parameter in built.model.parameters())
