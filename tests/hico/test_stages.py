"""The stages end to end on tiny inputs; real and paper presets on a stand-in for the real folders; faults."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.common.results import COLUMNS, read_parquet
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.params import load_params
from stages.common.video.reading import VideoError
from stages.common.video.writing import encode_video
from stages.hico import evaluate, finetune, prepare, pretrain, report, theory, training
from stages.hico.params import HicoParams
from tests.common.stages import Settings, open_workspace, preset, stage, write_params


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the stages read of the repository; one thread, one worker, no MLflow."""
    return open_workspace(tmp_path, monkeypatch)


def tiny(monkeypatch: pytest.MonkeyPatch, **changes: object) -> Settings:
    """The quick preset at seconds' cost."""
    for name, value in {"VIDEOS": 8, "SECONDS": 12.0, "TRAIN_CLIPS": 2, "TEST_CLIPS": 2}.items():
        monkeypatch.setattr(prepare, name, value)
    for name in ("TRAIN_LOCALISED", "TEST_LOCALISED"):
        monkeypatch.setattr(prepare, name, 4)
    settings = preset("hico", "quick")
    settings.update(seeds=[0, 1], methods=["scratch", "simclr", "simclr-trimmed", "vcl-1", "hico"], workers=0)
    settings["pretrain"].update(length=4, batch=4)
    settings["finetune"].update(epochs=1)
    settings["theory"].update(seeds=3, steps=50)
    settings.update(changes)
    return settings


def run_cell(method: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for main in (pretrain.main, finetune.main):
        stage(main, monkeypatch, "--method", method, "--seed", seed)


def run_all(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("hico", settings)
    stage(prepare.main, monkeypatch)
    for seed in settings["seeds"]:
        for method in settings["methods"]:
            run_cell(method, seed, monkeypatch)
    for main in (theory.main, evaluate.main, report.main):
        stage(main, monkeypatch)


def test_quick_stages_end_to_end(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny(monkeypatch)
    run_all(settings, monkeypatch)
    output = workspace / "reports/hico/quick"
    results = read_parquet(output / "results.parquet")
    assert list(results.columns) == list(COLUMNS)
    assert set(results["table"]) == {"A", "F", "G", "H", "data"}
    assert results["value"].notna().all()
    assert set(results["method"]) > set(settings["methods"])
    metrics = set(results["metric"])
    assert {
        "action linear",
        "action LFT",
        "action fine-tuned",
        "topic 1-NN",
        "topic AUC",
        "R@1",
        "mAP",
    } <= metrics
    auc = results[results["metric"] == "topic AUC"]
    assert set(auc["method"]) == {"scratch", "hico"}  # who has a topic predictor
    claims = {claim["id"]: claim for claim in json.loads((output / "claims.json").read_text())}
    assert set(claims) == {"1", "2", "3a", "3b", "4", "5a", "5b", "6a", "6b", "7", "8a", "8b"}
    for number in ("5a", "5b", "6a", "7", "8a"):
        assert claims[number]["verdict"] == "not tested at this scale"
    assert claims["1"]["n"] == 2
    assert claims["6b"]["n"] == 3
    table = (output / "table.md").read_text()
    for heading in "ABCDEFG":
        assert f"## {heading}. " in table
    assert "not run at this scale" in table
    assert "60.4" in table  # published
    assert (workspace / "runs/hico/quick/pretrain/hico-0/clips.png").exists()
    first = {path.name: path.read_bytes() for path in output.iterdir()}
    stage(report.main, monkeypatch)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == first


def weights(workspace: Path, method: str = "hico", seed: int = 0) -> bytes:
    return (workspace / f"runs/hico/quick/pretrain/{method}-{seed}/model.safetensors").read_bytes()


def test_same_seed_same_bytes_whoever_loads(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bytes] = []
    for workers, in_memory in ((0, True), (2, False)):
        write_params("hico", tiny(monkeypatch, workers=workers, in_memory=in_memory))
        if not found:
            stage(prepare.main, monkeypatch)
        stage(pretrain.main, monkeypatch, "--method", "hico", "--seed", 0)
        found.append(weights(workspace))
    assert found[0] == found[1]
    stage(pretrain.main, monkeypatch, "--method", "hico", "--seed", 1)
    assert weights(workspace, seed=1) != found[0]


@pytest.mark.parametrize("method", ["hico", "simclr-trimmed"])
def test_killed_and_run_again(method: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("hico", tiny(monkeypatch))
    stage(prepare.main, monkeypatch)
    stage(pretrain.main, monkeypatch, "--method", method, "--seed", 0)
    whole = weights(workspace, method)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    real, calls = training.cosine_warmup_lr, []

    def killed(*arguments: float) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "cosine_warmup_lr", killed)
    with pytest.raises(KeyboardInterrupt):
        stage(pretrain.main, monkeypatch, "--method", method, "--seed", 0)
    calls.clear()
    calls.extend([1] * 3)
    stage(pretrain.main, monkeypatch, "--method", method, "--seed", 0)
    assert len(calls) == 3 + 2  # two of four steps were left
    assert weights(workspace, method) == whole


def test_a_damaged_input_is_named_and_nothing_is_overwritten(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params("hico", tiny(monkeypatch))
    stage(prepare.main, monkeypatch)
    run_cell("vcl-1", 0, monkeypatch)
    before = weights(workspace, "vcl-1")
    file = workspace / "data/hico/quick/0/untrimmed/0003.mp4"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"0003\.mp4: damaged"):
        stage(pretrain.main, monkeypatch, "--method", "vcl-1", "--seed", 0)
    assert weights(workspace, "vcl-1") == before


def footage(path: Path, seconds: float, fps: float = 15.0, seed: int = 0) -> None:
    """A stand-in for a real video: noise of 32 x 40."""
    frames = np.random.default_rng(seed).integers(0, 256, (round(seconds * fps), 3, 32, 40), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_video(torch.from_numpy(frames), fps))


def stand_in(root: Path) -> None:
    """Few and tiny videos where Breakfast, UCF101, HMDB51, ActivityNet, UK400 and K400 would be."""
    for person in ("P03", "P20", "P21"):
        for number, recipe in enumerate(("tea", "juice")):
            path = root / "breakfast" / person / "cam01" / f"{person}_{recipe}.avi"
            footage(path, 12, seed=number)
            path.with_name(f"{path.name}.labels").write_text(
                f"1-30 SIL\n31-120 pour_{recipe}\n121-180 stir\n"
            )
    for target in ("ucf101", "hmdb51"):
        for split in ("train", "test"):
            lines = []
            for label, name in enumerate(("run", "jump")):
                for number in range(2):
                    file = f"videos/{name}/{split}{number}.avi"
                    footage(root / target / file, 3, seed=10 * label + number)
                    lines.append(f"{file} {label}")
            (root / target / f"{target}_{split}_list.txt").write_text("\n".join(lines) + "\n")
    database: dict[str, Settings] = {}
    for number, sport in enumerate(("Surfing", "Knitting") * 2):
        identity, subset = f"id-{number}", "training" if number < 2 else "validation"
        footage(root / "activitynet" / "videos" / f"v_{identity}.mp4", 8, seed=number)
        segment = {"segment": [2.0, 5.0 + number], "label": sport}
        database[identity] = {"duration": 8.0, "subset": subset, "annotations": [segment]}
    database["gone"] = {"duration": 9.0, "subset": "training", "annotations": []}
    database["secret"] = {"duration": 9.0, "subset": "testing", "annotations": []}
    (root / "activitynet" / "activity_net.v1-3.min.json").write_text(json.dumps({"database": database}))
    pieces, listed = [], []
    for name in ("aa", "b_b"):
        for start in (0, 5000):
            end = start + 5000
            footage(root / "uk400" / "train" / f"v_{name}_{start:07d}_{end:07d}.mp4", 5, seed=start)
            pieces.append(f"{name},{start:07d},{end:07d}")
        footage(root / "k400" / "videos" / f"{name}.mp4", 6)
        listed.append(f"videos/{name}.mp4 0")
    (root / "uk400" / "training.txt").write_text("\n".join(pieces) + "\n")
    (root / "k400" / "kinetics400_train_list.txt").write_text("\n".join(listed) + "\n")


def shrunk(scale: str, root: Path) -> Settings:
    """A preset as it is, but for sizes: the smallest network, few steps, 32-bit."""
    settings = preset("hico", scale)
    settings.update(video_root=str(root), seeds=[0], net="s3d-tiny", workers=0)
    settings["clip"].update(height=24, width=32, size=24, frames=4, rate=16)
    settings["pretrain"].update(length=1, batch=2, precision="float32", hidden=8, out=8, predictor=8)
    settings["finetune"].update(epochs=1, batch=2, views=2)
    settings["theory"].update(seeds=2, steps=20)
    if settings["bmn"]:
        settings["bmn"].update(places=8, durations=8, points=4, width=4, epochs=2, batch=2, proposals=10)
    return settings


def test_real_preset_starts_on_a_stand_in(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = workspace / "video"
    stand_in(root)
    (root / "breakfast/P20/cam01/P20_tea.avi").write_bytes(b"not a video")
    short = root / "breakfast/P21/cam01/P21_tea.avi.labels"
    short.write_text("1-30 SIL\n31-120 pour_tea\n121-140 stir\n")
    settings = shrunk("real", root)
    settings["methods"] = ["simclr", "simclr-trimmed", "hico"]
    run_all(settings, monkeypatch)
    results = read_parquet(workspace / "reports/hico/real/results.parquet")
    assert set(results[results["table"] == "A"]["data"]) == {"breakfast", "ucf101", "hmdb51"}
    assert set(results[results["table"] == "G"]["data"]) == {"breakfast"}
    reasons = json.loads((workspace / "data/hico/real/0/skipped.json").read_text())
    assert any("P20_tea.avi" in reason and "not a video" in reason for reason in reasons)
    assert any("shorter than two clips" in reason for reason in reasons)
    counted = results[(results["table"] == "data") & (results["metric"] == "left out in preparation")]
    assert set(counted["value"]) == {float(len(reasons))}
    assert (
        f"left out in preparation: {len(reasons)}" in (workspace / "reports/hico/real/table.md").read_text()
    )


def test_paper_preset_starts_on_a_stand_in(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = workspace / "video"
    stand_in(root)
    settings = shrunk("paper", root)
    settings["methods"] = ["hico", "hico-trimmed"]
    run_all(settings, monkeypatch)
    claims = json.loads((workspace / "reports/hico/paper/claims.json").read_text())
    assert {c["id"]: c["verdict"] for c in claims}["7"] == "inconclusive"  # one seed: no interval
    results = read_parquet(workspace / "reports/hico/paper/results.parquet")
    located = results[results["table"] == "G"]
    assert set(located["data"]) == {"activitynet"}
    assert set(located["metric"]) == {"mAP@0.5", "mAP@0.75", "mAP@0.95", "mAP", "AR@100", "AUC"}
    assert set(results[results["table"] == "A"]["data"]) == {"ucf101", "hmdb51"}
    assert "boundary-matching network" in (workspace / "reports/hico/paper/table.md").read_text()
    reasons = json.loads((workspace / "data/hico/paper/0/skipped.json").read_text())
    assert [reason for reason in reasons if "v_gone.mp4" in reason and "no such file" in reason]
    assert not [reason for reason in reasons if "secret" in reason]


def test_annotations_that_are_none_are_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = workspace / "video"
    stand_in(root)
    write_params("hico", shrunk("paper", root))
    listing = root / "activitynet" / "activity_net.v1-3.min.json"
    for content in ("{", '{"database": {"a": {"subset": "training"}}}', '{"database": []}'):
        listing.write_text(content)
        with pytest.raises(InputError, match=r"v1-3\.min\.json: not ActivityNet's annotations"):
            stage(prepare.main, monkeypatch)
    listing.unlink()
    with pytest.raises(InputError, match=r"v1-3\.min\.json: no such file"):
        stage(prepare.main, monkeypatch)


def test_bad_videos_are_refused_or_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = workspace / "video"
    stand_in(root)
    bad = root / "uk400" / "train" / "v_aa_0005000_0010000.mp4"
    footage(bad, 5, fps=30)  # another rate than the piece before it
    settings = shrunk("paper", root)
    write_params("hico", {**settings, "on_bad": "refuse"})
    with pytest.raises(VideoError, match=r"v_aa_0000000.*other frame rates.*set on_bad to skip"):
        stage(prepare.main, monkeypatch)
    assert not (workspace / "data/hico/paper").exists()
    write_params("hico", settings)
    stage(prepare.main, monkeypatch)
    assert "frame rates" in (workspace / "data/hico/paper/0/skipped.json").read_text()
    for path in (root / "uk400" / "train").glob("*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="untrimmed: no usable video"):
        stage(prepare.main, monkeypatch)
    (root / "uk400" / "training.txt").write_text("one line without times\n")
    with pytest.raises(InputError, match=r"training\.txt:1: .* is not what is expected"):
        stage(prepare.main, monkeypatch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["hico", "best"]}, r"hico\.methods\.1 = 'best'"),
        ({"seeds": [0, 0]}, "names a value twice"),
        ({"targets": ["generated", "ucf101"]}, "'generated' stands alone"),
        ({"trimmed": None}, "a method trains on trimmed video"),
        ({"on_bad": "ignore"}, r"hico\.on_bad = 'ignore'"),
        ({"bmn": {**preset("hico", "paper")["bmn"], "durations": 101}}, "more than the 100 places"),
        ({"extra": 1}, "unknown key"),
    ],
)
def test_wrong_parameters_are_told_in_one_line(workspace: Path, change: Settings, message: str) -> None:
    write_params("hico", {**preset("hico", "quick"), **change})
    with pytest.raises(ParameterError, match=message) as error:
        load_params(HicoParams, "hico")
    assert "\n" not in str(error.value)


def test_missing_folders_are_told_in_one_line(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("hico", preset("hico", "real"))
    with pytest.raises(ParameterError, match="video_root: missing"):
        stage(prepare.main, monkeypatch)
    write_params("hico", {**preset("hico", "real"), "video_root": str(workspace / "nowhere")})
    with pytest.raises(InputError, match=r"breakfast: has no"):
        stage(prepare.main, monkeypatch)
    assert not (workspace / "data/hico").exists() or not any((workspace / "data/hico").iterdir())
