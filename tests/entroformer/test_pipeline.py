"""The stages end to end on tiny inputs; the real and paper presets on a stand-in for the photographs."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from stages.common import datasets
from stages.common.results import COLUMNS, read_parquet
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.files import sha256
from stages.common.stage.params import load_params
from stages.common.stage.tracking import RunLog
from stages.entroformer import evaluate, prepare, pretrain, report, train, training
from stages.entroformer.anchors import ANCHORS, anchor
from stages.entroformer.cells import METHODS, codec_spec, jobs_of
from stages.entroformer.claims import rate_distortion
from stages.entroformer.data import TrainingCrops
from stages.entroformer.dead_leaves import dead_leaves
from stages.entroformer.method.codec import ImageCodec
from stages.entroformer.method.metrics import bd_rate, ms_ssim, psnr
from stages.entroformer.params import EntroformerParams
from tests.common.stages import Settings, open_workspace, preset, stage, write_params

TINY = {
    "dim": 8, "depth": 1, "heads": 2, "dim_head": 4, "topk": 4, "pretrain_steps": 2, "steps": 2, "batch": 2, "crop": 64,
    "latents": 3, "hyper_channels": 2, "mlp_ratio": 1, "position_num": 3,
}  # fmt: skip


def tiny(scale: str) -> Settings:
    settings = preset("entroformer", scale)
    settings.update(seeds=settings["seeds"][:2], topk_sweep=[2, -1], qualities=[20, 60], launch="python")
    settings["data"].update(train=4, test_crops=3, crop=64, test_pictures=1)
    for track in settings["tracks"].values():
        track.update(TINY)
        if track["transform"] == "conv":
            track.update(channels=4)
    return settings


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the stages read of the repository; one worker, no MLflow."""
    monkeypatch.setattr(report, "SMALL", (64, 64))
    monkeypatch.setattr(report, "LARGE", (64, 128))
    return open_workspace(tmp_path, monkeypatch)


def run_all(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("entroformer", settings)
    stage(prepare.main, monkeypatch)
    for seed in settings["seeds"]:
        stage(pretrain.main, monkeypatch, "--seed", seed)
        for family in settings["families"]:
            stage(train.main, monkeypatch, "--family", family, "--seed", seed)
    stage(evaluate.main, monkeypatch)
    stage(report.main, monkeypatch)


def test_quick_stages_end_to_end(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_all(tiny("quick"), monkeypatch)
    output = workspace / "reports" / "entroformer" / "quick"
    results = read_parquet(output / "results.parquet")
    assert list(results.columns) == list(COLUMNS)
    assert set(results["table"]) == {"rates", "files", "anchors"}
    assert results["value"].notna().all()
    for metric in ("latents exact", "picture exact"):
        assert (results.loc[results["metric"] == metric, "value"] == 1).all()
    claims = {claim["id"]: claim for claim in json.loads((output / "claims.json").read_text())}
    assert {
        "1e-context",
        "1e-hyper",
        "1c-context",
        "2a",
        "2b",
        "3a",
        "3b",
        "4a",
        "4b",
        "5a",
        "5b",
        "5c",
        "6a",
        "6b",
    } <= set(claims)
    assert claims["4a"]["verdict"] == "supported"
    for number in ("2c", "6c", "6d", "7a", "7b", "8"):
        assert claims[number]["verdict"] == "not tested at this scale"
    table = (output / "table.md").read_text()
    assert "published change" in table
    assert (workspace / "reports" / "index.html").exists()
    first = {path.name: path.read_bytes() for path in output.iterdir()}
    stage(evaluate.main, monkeypatch)
    stage(report.main, monkeypatch)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == first


def stand_in(root: Path) -> None:
    """A few small pictures with a manifest, as the data set `images` has them."""
    rows = []
    names = [
        "bsds500/train/a.jpg",
        "bsds500/test/b.jpg",
        "bsds500/val/c.jpg",
        "kodak/kodim01.png",
        "kodak/kodim02.png",
    ]
    for number, picture in enumerate(dead_leaves(len(names), 176, 240, np.random.default_rng(0))):
        path = root / "images" / names[number]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
        rows.append({"path": names[number], "sha256": sha256(path)})
    with (root / "images" / "MANIFEST.csv").open("w") as file:
        writer = csv.DictWriter(file, ["path", "sha256"])
        writer.writeheader()
        writer.writerows(rows)
    registry = {"images": {"files": {"MANIFEST.csv": {"sha256": sha256(root / "images" / "MANIFEST.csv")}}}}
    datasets.REGISTRY.write_text(yaml.safe_dump(registry))


@pytest.mark.parametrize("scale", ["real", "paper"])
def test_photographs_end_to_end(scale: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(workspace / "mirror")
    monkeypatch.setenv("ENCORE_MIRROR", str(workspace / "mirror"))
    settings = tiny(scale)
    settings["seeds"] = [0]
    for track in settings["tracks"].values():
        track["methods"] = [
            m
            for m in track["methods"]
            if m in ("cnn-serial", "ent-serial", "ent-two-pass", "serial-deep-prior")
        ]
    run_all(settings, monkeypatch)
    results = read_parquet(workspace / "reports" / "entroformer" / scale / "results.parquet")
    assert set(results["data"]) == {"kodak"}
    claims = json.loads((workspace / "reports" / "entroformer" / scale / "claims.json").read_text())
    assert {"5b", "7b", "8"} <= {claim["id"] for claim in claims}
    damaged = workspace / "mirror" / "images" / "kodak" / "kodim01.png"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"kodim01.png: missing, or its sha256"):
        stage(prepare.main, monkeypatch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qualities": [0]}, r"qualities.0 = 0: must be greater than or equal to 1"),
        ({"families": ["cnn", "cnn"]}, r"names a value twice"),
        ({"tracks.latents.lambdas": [0.1]}, r"a fixed transform has no trade-off"),
        ({"tracks.codec.crop": 96}, r"a conv track needs crops of a multiple of 64"),
        ({"tracks.codec.position_num": 4}, r"position_num: must be odd"),
        ({"tracks.codec.methods": ["gpt"]}, r"tracks.codec.methods.0 = 'gpt'"),
        ({"data.colour": 1}, r"entroformer.data.colour: unknown key"),
    ],
)
def test_wrong_parameters_are_one_line(workspace: Path, change: Settings, message: str) -> None:
    settings = preset("entroformer", "quick")
    for key, value in change.items():
        inner, path = settings, key.split(".")
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value
    write_params("entroformer", settings)
    with pytest.raises(ParameterError, match=message) as caught:
        load_params(EntroformerParams, "entroformer")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("transform", ["latents", "codec"])
def test_a_training_that_was_killed_ends_with_the_same_weights(
    transform: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny("quick")
    write_params("entroformer", settings)
    stage(prepare.main, monkeypatch)
    params = load_params(EntroformerParams, "entroformer")
    track = params.tracks[transform]  # type: ignore[index]
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    crops = TrainingCrops(Path("data/entroformer/quick"), 64)

    def fit(name: str, killed_at: int | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        codec = ImageCodec(codec_spec(METHODS["ent-two-pass"], track))
        checkpoint = Checkpoint(workspace / name)
        original = training.clip

        def dying(inner: ImageCodec) -> None:
            nonlocal killed_at
            if killed_at == 0:
                raise KeyboardInterrupt
            killed_at = None if killed_at is None else killed_at - 1
            original(inner)

        with RunLog("entroformer", name, name) as log:
            monkeypatch.setattr(training, "clip", dying)
            try:
                training.train(codec, crops, track, 6, 0.05, 0, log, checkpoint, random_masks=True)
            finally:
                monkeypatch.setattr(training, "clip", original)
        return codec.state_dict()

    whole = fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("killed", killed_at=4)
    assert Checkpoint(workspace / "killed").load() is not None
    resumed = fit("killed")
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_every_method_belongs_to_one_cell() -> None:
    for scale in ("quick", "real", "paper"):
        params = EntroformerParams.model_validate(preset("entroformer", scale))
        jobs = [job for family in params.families for job in jobs_of(family, params)]
        assert len(jobs) == len(set(jobs))
        asked = sum(
            len(t.lambdas) * sum(METHODS[m].family in params.families for m in t.methods)
            for t in params.tracks.values()
        )
        assert len(jobs) == asked


def test_warm_start_takes_all_but_the_start_token() -> None:
    params = EntroformerParams.model_validate(tiny("quick"))
    track = params.tracks["latents"]
    pretrained, serial = (ImageCodec(codec_spec(METHODS[m], track)) for m in ("ent-two-pass", "ent-serial"))
    token = serial.entropy.context.start_11D.clone()  # type: ignore[union-attr,operator]
    train.start(serial, pretrained, warm=True)
    assert torch.equal(serial.entropy.context.start_11D, token)  # type: ignore[union-attr,arg-type]
    for name, value in pretrained.entropy.state_dict().items():
        assert torch.equal(value, serial.entropy.state_dict()[name])


def test_anchors_get_better_with_quality() -> None:
    picture = dead_leaves(1, 64, 80, np.random.default_rng(1))[0]
    rgb = picture.permute(1, 2, 0).contiguous().numpy()
    for name in ANCHORS:
        files = [anchor(name, rgb, quality) for quality in (10, 50, 90)]
        sizes = [size for size, _ in files]
        psnrs = [psnr(picture, torch.from_numpy(out.copy()).permute(2, 0, 1)) for _, out in files]
        assert sizes == sorted(sizes)
        assert psnrs == sorted(psnrs)


def test_metrics_refuse_what_they_cannot_compare() -> None:
    rates, psnrs = np.array([0.1, 0.2, 0.4, 0.8]), np.array([28.0, 31, 34, 37])
    assert bd_rate(rates, psnrs, rates * 0.9, psnrs) == pytest.approx(-10)
    with pytest.raises(ValueError, match="at least 4 points"):
        bd_rate(rates[:3], psnrs[:3], rates, psnrs)
    with pytest.raises(ValueError, match="has to rise"):
        bd_rate(rates, psnrs[::-1], rates, psnrs)
    with pytest.raises(ValueError, match="no common range"):
        bd_rate(rates, psnrs, rates, psnrs + 20)
    with pytest.raises(ValueError, match="more than 160 pixels"):
        ms_ssim(torch.zeros(1, 3, 160, 200), torch.zeros(1, 3, 160, 200))


def test_bd_rate_claim_from_given_curves() -> None:
    params = EntroformerParams.model_validate({**preset("entroformer", "real"), "seeds": [0, 1]})
    rows = []
    for method, factor in (("cnn-serial", 1.0), ("ent-serial", 0.88), ("jpeg", 2.0), ("webp", 1.5)):
        for seed in (0, 1):
            for i, (bpp, db) in enumerate(((0.1, 28.0), (0.2, 31.0), (0.4, 34.0), (0.8, 37.0))):
                table = "anchors" if method in ANCHORS else "files"
                shared = {"table": table, "method": method, "setting": f"p{i}", "seed": seed}
                numbers = {"bpp": bpp * factor * (1 + 0.001 * seed), "PSNR": db}
                rows += [{**shared, "metric": metric, "value": value} for metric, value in numbers.items()]
    claims = {claim.id: claim for claim in rate_distortion(pd.DataFrame(rows), params)}
    assert claims["7a"].effect == pytest.approx(12, abs=0.2)
    assert claims["7a"].verdict == "supported"
    assert claims["7b"].verdict == "supported"
