"""The stages end to end on tiny inputs; what happens after a kill, and on wrong parameters and missing folders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stages.common.results import COLUMNS, read_parquet
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.params import load_params
from stages.elsa import data, evaluate, finetune, prepare, pretrain, report, training
from stages.elsa.params import ElsaParams, Recipe, Trunk
from stages.elsa.textures import make_textures
from stages.elsa.variants import VARIANTS, build_network
from tests.common.stages import Settings, killed_stage, open_workspace, preset, stage, write_params

ABLATIONS = (
    "window-no-bias", "window-1-head", "window-2x-heads", "elsa-no-ghost", "elsa-1-head", "elsa-2x-heads",
)  # fmt: skip


def tiny(scale: str = "quick") -> Settings:
    """A preset cut down to seconds: few steps of a narrow trunk with 3 x 3 kernels."""
    settings = preset("elsa", scale)
    settings["trunk"].update(embed_dim=8, depths=[1, 1], num_heads=[2, 4], window_size=3, mlp_ratio=1.0)
    for step in ("pretrain", "finetune"):
        if settings[step]:
            settings[step].update(steps=6, batch=10, warmup=2)
    return settings


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the stages read of the repository; one worker, few images, no MLflow, no measuring."""
    monkeypatch.setattr(
        report, "operator_cost", lambda backend: [1.0, 8.0 if backend == "reference" else 1.0, 8.0]
    )
    monkeypatch.setattr(report, "mixer_cost", lambda mixer, shape: [1.0, 2.0, 3.0])
    monkeypatch.setattr(prepare, "TEST", 20)
    monkeypatch.setattr(
        prepare, "TEXTURES", {name: (60, turn) for name, (_, turn) in prepare.TEXTURES.items()}
    )
    return open_workspace(tmp_path, monkeypatch)


def run_all(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("elsa", settings)
    stage(prepare.main, monkeypatch)
    for seed in settings["seeds"]:
        for mixer in settings["mixers"]:
            stage(pretrain.main, monkeypatch, "--mixer", mixer, "--seed", seed)
        stage(finetune.main, monkeypatch, "--seed", seed)
    stage(evaluate.main, monkeypatch)
    stage(report.main, monkeypatch)


def test_quick_stages_end_to_end(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny()
    settings["seeds"] = [0, 1]
    settings["ablations"] = list(ABLATIONS)
    run_all(settings, monkeypatch)
    output = workspace / "reports" / "elsa" / "quick"
    results = read_parquet(output / "results.parquet")
    assert list(results.columns) == list(COLUMNS)
    assert results["value"].notna().all()
    trained = results[results["metric"] == "top1"]
    assert set(trained.loc[trained["setting"] == "pretrain", "method"]) == {
        *settings["mixers"], *ABLATIONS,
    }  # fmt: skip
    assert set(trained.loc[trained["setting"] == "finetune", "method"]) == set(settings["mixers"])
    claims = {claim["id"]: claim for claim in json.loads((output / "claims.json").read_text())}
    assert claims["1"]["verdict"] == claims["2"]["verdict"] == "supported"
    assert claims["7a"]["verdict"] == "supported"  # of the stand-in costs: 8 against 1
    assert claims["7b"]["verdict"] == "not supported"  # 8 against 8
    assert claims["8"]["verdict"] == "not tested at this scale"
    assert {"3a", "3b", "4", "5a", "5b", "6"} <= set(claims)
    table = (output / "table.md").read_text()
    for title in ("(T1)", "(T4)", "(T5)", "(T6)", "(T7)"):
        assert title in table
    assert "configuration reconstructed" in table
    first = {path.name: path.read_bytes() for path in output.iterdir()}
    stage(report.main, monkeypatch)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == first
    before = load_file(workspace / "runs/elsa/quick/pretrain/elsa-0/elsa.safetensors")
    after = load_file(workspace / "runs/elsa/quick/finetune/0/elsa.safetensors")
    assert before.keys() == after.keys()
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_a_killed_training_ends_with_the_same_bytes(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed in its fourth step, after a checkpoint before every step, and run again."""
    write_params("elsa", tiny())
    stage(prepare.main, monkeypatch)
    arguments = ("--mixer", "depthwise", "--seed", 0)
    stage(pretrain.main, monkeypatch, *arguments)
    path = workspace / "runs/elsa/quick/pretrain/depthwise-0/depthwise.safetensors"
    whole = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    # asked once for each of two groups of parameters
    killed_stage(pretrain.main, monkeypatch, training, "learning_rate", 7, *arguments)
    assert not path.exists()
    assert list((workspace / ".encore" / "work").glob("elsa-pretrain-*/depthwise.ckpt"))
    steps: list[int] = []
    rate = training.learning_rate

    def noted(step: int, recipe: Recipe) -> float:
        steps.append(step)
        return rate(step, recipe)

    monkeypatch.setattr(training, "learning_rate", noted)
    stage(pretrain.main, monkeypatch, *arguments)
    assert sorted(set(steps)) == [3, 4, 5]
    assert path.read_bytes() == whole


def test_fine_tuning_starts_from_the_pretrained_weights(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny()
    settings.update(seeds=[0], mixers=["depthwise"], ablations=[])
    settings["finetune"].update(lr=1e-12, min_lr=0.0, weight_decay=0.0)  # stays where it starts
    write_params("elsa", settings)
    stage(prepare.main, monkeypatch)
    stage(pretrain.main, monkeypatch, "--mixer", "depthwise", "--seed", 0)
    stage(finetune.main, monkeypatch, "--seed", 0)
    runs = workspace / "runs" / "elsa" / "quick"
    before = load_file(runs / "pretrain" / "depthwise-0" / "depthwise.safetensors")
    after = load_file(runs / "finetune" / "0" / "depthwise.safetensors")
    for name in before.keys() - {"head.weight", "head.bias"}:
        torch.testing.assert_close(after[name], before[name], atol=1e-8, rtol=0)
    assert not torch.equal(after["head.weight"], before["head.weight"])


def test_real_preset_on_a_stand_in(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs as bytes, crop and flip, bfloat16, no second data set."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (60, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(60) % 10
    stand_in = {
        "train_x": pixels,
        "train_y": labels,
        "test_x": pixels[:20].clone(),
        "test_y": labels[:20].clone(),
    }
    monkeypatch.setattr(prepare, "read_cifar10", lambda: stand_in)
    settings = tiny("real")
    settings.update(seeds=[0], mixers=["window", "elsa"], ablations=["elsa-mul-add"])
    run_all(settings, monkeypatch)
    results = read_parquet(workspace / "reports" / "elsa" / "real" / "results.parquet")
    assert set(results.loc[results["metric"] == "top1", "method"]) == {"window", "elsa", "elsa-mul-add"}
    assert set(results.loc[results["metric"] == "top1", "data"]) == {"cifar10"}


def test_paper_preset_on_a_stand_in(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes of tiny pictures in folders, with the authors' augmentation, mixup and stochastic depth."""
    monkeypatch.setitem(data.CLASSES, "imagenet", 2)
    monkeypatch.setitem(data.SIZES, "imagenet", 32)
    monkeypatch.setattr(data, "TEST_RESIZE", 36)
    monkeypatch.setattr(data, "worker_count", lambda: 0)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("n01440764", "n01514668"):
            folder = workspace / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                picture = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(picture).save(folder / f"{index}.jpeg")
    settings = tiny("paper")
    settings.update(image_folder=str(workspace / "images"), mixers=["elsa"], ablations=[])
    settings["pretrain"].update(batch=4, steps=3)
    write_params("elsa", settings)
    run_all(settings, monkeypatch)
    results = read_parquet(workspace / "reports" / "elsa" / "paper" / "results.parquet")
    assert set(results.loc[results["metric"] == "top1", "method"]) == {"elsa"}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_row_can_be_built_and_trained(name: str) -> None:
    """All share the trunk: only parameters of the mixers differ."""
    trunk = Trunk(**tiny()["trunk"])
    torch.manual_seed(0)
    model, window = (build_network(row, trunk, 28, 10, 0.0) for row in (name, "window"))
    model(torch.randn(2, 3, 28, 28)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    def shared(network: torch.nn.Module) -> dict[str, torch.Size]:
        return {key: p.shape for key, p in network.named_parameters() if ".attn." not in key}

    assert shared(model) == shared(window)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixers": ["best"]}, r"elsa\.mixers\.0 = 'best'"),
        ({"mixers": ["elsa", "elsa"]}, "names a value twice"),
        ({"seeds": []}, r"elsa\.seeds"),
        ({"extra": 1}, "unknown key"),
        ({"trunk": {**preset("elsa", "quick")["trunk"], "window_size": 4}}, "must be odd"),
        ({"trunk": {**preset("elsa", "quick")["trunk"], "num_heads": [5, 5]}}, "must divide"),
        ({"pretrain": {**preset("elsa", "quick")["pretrain"], "lr": 0}}, r"elsa\.pretrain\.lr = 0"),
    ],
)
def test_wrong_parameters_are_told_in_one_line(workspace: Path, change: Settings, message: str) -> None:
    write_params("elsa", {**preset("elsa", "quick"), **change})
    with pytest.raises(ParameterError, match=message) as error:
        load_params(ElsaParams, "elsa")
    assert "\n" not in str(error.value)


def test_missing_folder_is_told_in_one_line(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("elsa", preset("elsa", "paper"))
    with pytest.raises(ParameterError, match=r"image_folder: missing"):
        stage(prepare.main, monkeypatch)
    (workspace / "images" / "train" / "n01440764").mkdir(parents=True)
    write_params("elsa", {**preset("elsa", "paper"), "image_folder": str(workspace / "images")})
    with pytest.raises(InputError, match="train: has 1 class folders, 1000 are expected"):
        stage(prepare.main, monkeypatch)
    assert not (workspace / "data" / "elsa" / "paper").exists()


def test_unknown_cell_is_told_in_one_line(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("elsa", tiny())
    with pytest.raises(ParameterError, match="invalid choice: 'best'"):
        stage(pretrain.main, monkeypatch, "--mixer", "best", "--seed", 0)


def test_damaged_data_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("elsa", tiny())
    stage(prepare.main, monkeypatch)
    path = workspace / "data" / "elsa" / "quick" / "textures.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"textures\.safetensors: damaged"):
        stage(pretrain.main, monkeypatch, "--mixer", "window", "--seed", 0)
    assert not (workspace / "runs").exists()


def test_textures_have_the_cards_shape() -> None:
    """Ten classes in equal shares, and neither colour nor brightness tells them apart."""
    x, y = make_textures(1000, 0.0, torch.Generator().manual_seed(0))
    assert x.shape == (1000, 3, 28, 28)
    assert y.bincount().tolist() == [100] * 10
    means = torch.stack([x[y == label].mean((0, 2, 3)) for label in range(10)])
    assert float(means.std(0).max()) < 0.1
    again, _ = make_textures(1000, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(x, again)


def test_learning_rate_warms_up_and_ends_low() -> None:
    recipe = Recipe(
        **{**preset("elsa", "quick")["pretrain"], "steps": 100, "warmup": 10, "lr": 1.0, "min_lr": 0.1}
    )
    rates = [training.learning_rate(step, recipe) for step in range(100)]
    assert rates[9] == pytest.approx(1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
