"""Released files (dual-head models, starts, class means) and the command that ranks a user's folders."""

import csv
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from stages.common.stage.errors import InputError, ParameterError
from stages.uot import rank
from stages.uot.method.backbones import build_backbone, features, projection_from
from stages.uot.method.dual_head import DualHeadModel
from stages.uot.official import from_official, load_class_means, load_official, load_start


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(models.resnet18(weights=None, num_classes=7).state_dict(), path)
    return path


def test_torchvision_start_has_the_same_features(resnet18: Path) -> None:
    state = load_start(resnet18, "resnet18")
    assert projection_from(state) is None
    backbone = build_backbone("resnet18").eval()
    backbone.load_state_dict({key.removeprefix("backbone."): value for key, value in state.items()})
    reference = models.resnet18(weights=None, num_classes=7).eval()
    reference.load_state_dict(torch.load(resnet18, weights_only=True))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(reference.fc(features(backbone, x)), reference(x))


def test_moco_start_keeps_the_projection(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = models.resnet50(weights=None, num_classes=8)
    encoder.fc = torch.nn.Sequential(torch.nn.Linear(2048, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8))
    own = {f"module.encoder_q.{name}": value for name, value in encoder.state_dict().items()}
    path = tmp_path / "moco.pth.tar"
    torch.save({"epoch": 800, "state_dict": {**own, "module.queue": torch.zeros(3)}}, path)
    state = load_start(path, "resnet50")
    backbone, projection = build_backbone("resnet50").eval(), projection_from(state)
    backbone.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    )
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(features(backbone, x, projection), encoder.eval()(x), atol=1e-5)
    with pytest.raises(InputError, match="not a checkpoint of resnet18"):
        load_start(path, "resnet18")


def test_released_model_round_trip(tmp_path: Path, resnet18: Path) -> None:
    model = DualHeadModel(build_backbone("resnet18"), 512, 6, 4)
    state = {f"module.{name.removeprefix('backbone.')}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    loaded = load_official(tmp_path / "model.pth")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    plain = from_official(torch.load(resnet18, weights_only=True))
    assert plain.fc_up.out_features == 7
    del state["module.layer1.0.conv1.weight"]
    with pytest.raises(ValueError, match="not a ResNet"):
        from_official(state)
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="no fc_up"):
        load_official(tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="not a checkpoint"):
        load_official(tmp_path / "broken.pth")


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("code ran",))


def test_class_means_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "means.pkl"
    means = np.arange(6.0).reshape(2, 3)
    path.write_bytes(pickle.dumps(means, protocol=3))
    assert load_class_means(path).tolist() == means.tolist()
    path.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(InputError, match="not allowed"):
        load_class_means(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(InputError, match="not a matrix"):
        load_class_means(path)
    with pytest.raises(InputError, match="no such file"):
        load_class_means(tmp_path / "absent.pkl")
    assert "code ran" not in capsys.readouterr().out


def write_images(folder: Path, classes: dict[str, tuple[int, int, int]], count: int, seed: int = 0) -> None:
    """Small noisy pictures, each class of one colour."""
    generator = np.random.default_rng(seed)
    for name, colour in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.clip(np.array(colour) + generator.normal(0, 25, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}_{index}.png")


def run_rank(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["rank", *map(str, arguments)])
    rank.main()


def test_rank_puts_the_class_of_the_targets_colour_first(
    tmp_path: Path, resnet18: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "source", {"blue": (0, 0, 230), "green": (0, 200, 0), "red": (230, 0, 0)}, 3)
    write_images(tmp_path / "target", {"crimson": (225, 10, 10)}, 3, seed=1)
    weights, table = ["--weights", resnet18], tmp_path / "list.csv"
    run_rank(monkeypatch, tmp_path / "source", tmp_path / "target", *weights, "--k", 2, "--csv", table)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert rows[0]["class"] == "red"
    assert rows[0]["nearest target class"] == "crimson"
    assert rows[0]["images"] == "3"
    distances = [float(row["distance"]) for row in rows]
    assert distances == sorted(distances)


def test_rank_says_what_is_wrong_in_one_line(
    tmp_path: Path, resnet18: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tmp_path / "good"
    write_images(good, {"a": (0, 0, 0), "b": (200, 200, 200)}, 1)
    weights = ["--weights", resnet18]
    (tmp_path / "empty" / "a").mkdir(parents=True)
    (tmp_path / "splits" / "train").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "splits" / "train" / "x.png")
    (tmp_path / "broken" / "a").mkdir(parents=True)
    (tmp_path / "broken" / "a" / "x.jpg").write_bytes(b"no picture")
    (tmp_path / "flat").mkdir()
    for folder, message in {
        "absent": "no such folder", "empty": "has no images", "splits": "holds the splits train, not classes",
        "broken": "x.jpg: not a readable image", "flat": "has no class folders",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=message) as error:
            run_rank(monkeypatch, tmp_path / folder, good, *weights)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no such file"):
        run_rank(monkeypatch, good, good, "--weights", tmp_path / "absent.pth")
    with pytest.raises(ParameterError, match="--k = 0"):
        run_rank(monkeypatch, good, good, *weights, "--k", 0)
    with pytest.raises(ParameterError, match="--method"):
        run_rank(monkeypatch, good, good, *weights, "--method", "best")
