"""The stages end to end at a tiny size, CIFAR-10 being a stand-in laid out like the original archive."""

import copy
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from torch import nn

from stages.adam import cifar10
from stages.adam.claims import check_claims
from stages.adam.evaluate import EXPERIMENTS
from stages.adam.params import AdamParams
from stages.common.stage.errors import ParameterError
from stages.common.stage.files import sha256
from stages.common.stage.params import load_params

ROOT = Path(__file__).parents[2]
IMAGES = 16  # per file of the stand-in


def preset(scale: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / f"conf/adam/{scale}.yaml").read_text())


def tiny(scale: str) -> dict[str, Any]:
    """A preset with everything that costs time made small."""
    values = preset(scale)
    values["launch"], values["seeds"] = "python", [0, 1, 2]
    values["rate"] |= {"horizons": [8, 16, 32, 64, 128, 256], "variance_steps": 64}
    values["skewed"]["steps"] = 64
    values["counterexamples"] |= {"steps": 64, "cycle_steps": 64 if scale == "real" else 0}
    values["digits"] |= {"seeds": [0, 1], "steps": 100, "members": ["sgdm", "adam", "rmsprop"]}
    values["minmax"] |= {"horizons": [16, 32], "auc_steps": 100}
    values["compositional"]["horizons"] = [16, 32]
    values["bilevel"] |= {"horizons": [16, 32], "cleaning_seeds": [0, 1], "cleaning_steps": 4}
    if values["cifar10"]:
        values["cifar10"] |= {"seeds": [0], "net": "resnet18", "epochs": 4, "batch": 40}
    return values


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stages.common.report.write.start_sync", lambda: None)
    (tmp_path / "reports/published").mkdir(parents=True)
    shutil.copy(ROOT / "reports/published/adam.csv", "reports/published")
    return tmp_path


def configure(values: dict[str, Any]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump({"adam": values}))


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror with a tiny archive, and a registry that knows its digest."""
    mirror = Path("mirror")
    archive = mirror / "cifar10/cifar-10-binary.tar.gz"
    archive.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with tarfile.open(archive, "w:gz") as tar:
        for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
            records = rng.integers(0, 256, (IMAGES, 1 + 3072), dtype=np.uint8)
            records[:, 0] %= 10
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = records.nbytes
            tar.addfile(info, io.BytesIO(records.tobytes()))
    Path("data").mkdir(exist_ok=True)
    registry = {"cifar10": {"files": {archive.name: {"sha256": sha256(archive)}}}}
    Path("data/registry.yaml").write_text(yaml.safe_dump(registry))
    monkeypatch.setenv("ENCORE_MIRROR", str(mirror))
    small = [nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 8 * 8, 10)]
    monkeypatch.setattr(cifar10, "build_network", lambda name: nn.Sequential(*copy.deepcopy(small)))


def serially(work: Callable[[Any], Any], jobs: list[Any]) -> Iterator[tuple[Any, Any]]:
    """`run_jobs` in this process, where what a test has replaced is seen."""
    for job in jobs:
        yield job, work(job)


def run_stage(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    import_module(f"stages.adam.{name}").main()


def test_quick_preset_end_to_end(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(tiny("quick"))
    for name in ("prepare", *EXPERIMENTS, "evaluate", "report"):
        run_stage(name, monkeypatch)
    folder = Path("reports/adam/quick")
    results = pd.read_parquet(folder / "results.parquet")
    assert set(results["table"]) == {"T1", "T2", "T3", "T4", "T5", "T6"}
    text = (folder / "table.md").read_text()
    assert all(f"## T{i} " in text for i in range(1, 9))
    claims = {claim["id"]: claim for claim in json.loads((folder / "claims.json").read_text())}
    assert {"1-adam", "2-B1-adam", "3c", "4a", "5b-pdsm", "6", "7a", "8a"} <= set(claims)
    assert claims["9a-adabound"]["verdict"] == "not tested at this scale"
    assert claims["3c"]["verdict"] == "supported"
    assert len(list(folder.glob("*.svg"))) == 5
    first = sha256(Path("runs/adam/quick/rate/results.parquet"))
    run_stage("rate", monkeypatch)
    assert sha256(Path("runs/adam/quick/rate/results.parquet")) == first

    # a planted violation in the measurements must turn the verdict
    planted = results.copy()
    chosen = (
        (planted["metric"] == "B1_ratio") & (planted["method"] == "adam") & (planted["setting"] == "T=64")
    )
    assert chosen.sum() == 3
    planted.loc[chosen, "value"] += 2
    verdicts = {c.id: c.verdict for c in check_claims(planted, load_params(AdamParams, "adam"))}
    assert claims["2-B1-adam"]["verdict"] == "supported"
    assert verdicts["2-B1-adam"] == "not supported"
    planted.loc[planted["metric"] == "step_margin", "value"] = 0.9
    verdicts = {c.id: c.verdict for c in check_claims(planted, load_params(AdamParams, "adam"))}
    assert verdicts["2-B2-adam"] == "not supported"


def test_real_preset_trains_on_a_stand_in_and_resumes(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = tiny("real")
    values["cifar10"]["methods"] = ["adabound", "family-increasing"]
    configure(values)
    stand_in(monkeypatch)
    run_stage("prepare", monkeypatch)
    run_stage("cifar10", monkeypatch)
    output = Path("runs/adam/real/cifar10/results.parquet")
    results = pd.read_parquet(output)
    assert set(results["metric"]) == {"train_accuracy", "test_accuracy"}
    assert len(pd.read_parquet(output.with_name("curves.parquet"))) == 2 * 2 * 4
    expected = sha256(output)

    # a training that dies after two epochs goes on from its checkpoint and ends with the same numbers
    monkeypatch.setattr(cifar10, "CHECKPOINT_SECONDS", -1.0)
    whole, epochs = cifar10.train_epoch, []

    def dying(*arguments: Any) -> float:
        epochs.append(arguments[-1])
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(cifar10, "train_epoch", dying)
    monkeypatch.setattr(cifar10, "run_jobs", serially)
    with pytest.raises(KeyboardInterrupt):
        run_stage("cifar10", monkeypatch)
    run_stage("cifar10", monkeypatch)
    assert epochs == [0, 1, 2, 2, 3, 0, 1, 2, 3]
    assert sha256(output) == expected


def test_real_claims_compare_with_the_published_curves(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = tiny("real")
    configure(values)
    stand_in(monkeypatch)
    for name in ("prepare", *EXPERIMENTS[:-1]):
        run_stage(name, monkeypatch)
    accuracies = {"adabound": 94.9, "amsbound": 93.0, "adam": 92.3, "amsgrad": 93.2, "adagrad": 92.7}

    def pretend(job: tuple[Any, int], params: AdamParams, prepared: Path, folder: Path) -> None:
        method, seed = job
        sheet = cifar10.Sheet(params, "cifar10", params.cifar10, [seed])
        for metric in ("train_accuracy", "test_accuracy"):
            value = cifar10.torch.tensor([accuracies.get(method, 90.0) + 0.01 * seed])
            sheet.add("T8", method, "resnet34, 200 epochs", metric, value, "%", cifar10.DATA)
            sheet.curve(method, f"seed {seed}", metric, {1: value})
        sheet.save(f"{method}-{seed}", folder)

    monkeypatch.setattr(cifar10, "train", pretend)
    monkeypatch.setattr(cifar10, "run_jobs", serially)
    configure(values | {"cifar10": values["cifar10"] | {"seeds": [0, 1, 2]}})
    run_stage("cifar10", monkeypatch)
    run_stage("evaluate", monkeypatch)
    run_stage("report", monkeypatch)
    folder = Path("reports/adam/real")
    claims = {claim["id"]: claim["verdict"] for claim in json.loads((folder / "claims.json").read_text())}
    assert claims["9a-adabound"] == claims["9b-adabound"] == "supported"
    assert claims["9a-amsbound"] == claims["9b-amsbound"] == "not supported"
    assert "94.86" in (folder / "table.md").read_text()
    assert (folder / "cifar10.svg").exists()


def test_network_of_the_published_curves() -> None:
    network = cifar10.build_network("resnet34")
    assert sum(p.numel() for p in network.parameters()) == 21_282_122  # as in the repository's model
    assert isinstance(network.maxpool, nn.Identity)


@pytest.mark.parametrize("scale", ["quick", "real", "paper"])
def test_presets_are_valid(scale: str, workspace: Path) -> None:
    configure(preset(scale))
    assert load_params(AdamParams, "adam").scale == scale


@pytest.mark.parametrize(
    ("section", "key", "value", "text"),
    [
        ("rate", "horizons", [512, 256], "does not increase"),
        ("rate", "members", ["adamax"], "adam.rate.members"),
        ("skewed", "betas", [1.0], "adam.skewed.betas"),
        ("digits", "epochs", 3, "unknown key"),
    ],
)
def test_mistakes_in_parameters_are_told(
    workspace: Path, section: str, key: str, value: object, text: str
) -> None:
    values = preset("quick")
    values[section][key] = value
    configure(values)
    with pytest.raises(ParameterError, match=text):
        load_params(AdamParams, "adam")
