"""The stages end to end on tiny clips; resume; the real and paper presets on stand-in folders; bad videos; wrong input."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from stages.common.results import COLUMNS, read_parquet
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.params import load_params
from stages.common.video.writing import encode_video
from stages.motionrgbd import evaluate, finetune, prepare, pretrain, report, training
from stages.motionrgbd.cells import visible
from stages.motionrgbd.data import open_clips
from stages.motionrgbd.method.dsn import inception_dsn
from stages.motionrgbd.method.dtn import DTN
from stages.motionrgbd.method.rcm import RCM
from stages.motionrgbd.method.unimodal import UnimodalNet
from stages.motionrgbd.networks import ROWS
from stages.motionrgbd.official import to_official
from stages.motionrgbd.params import MotionrgbdParams
from tests.common.stages import Settings, killed_stage, open_workspace, preset, stage, write_params

NETWORK = {
    "spatial": "plain", "widths": [4, 6], "strides": [4, 2], "dim": 64, "frames": [2, 3, 4], "depth": 1, "heads": 2,
    "head_dim": 8, "hidden": 16, "rcm_hidden": 8,
}  # fmt: skip


def tiny(scale: str) -> Settings:
    """A preset at seconds."""
    settings = preset("motionrgbd", scale)
    settings.update(seeds=[0, 1], methods=["full", "ablation"], fusions=["fusion"])
    settings["network"].update(NETWORK)
    settings["pretrain"]["recipe"].update(epochs=2, batch=4, warmup=1)
    settings["finetune"].update(epochs=1, batch=4, warmup=1)
    settings["ablation"].update(per_class=1, rows=["full", "no-rcm"])
    if scale == "quick":
        settings["data"].update(train=1, test=1, frames=5, side=16, resize=[16, 16], shift=1)
    return settings


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the stages read of the repository; one worker, no MLflow, forward passes of one frame."""
    monkeypatch.setattr(report, "SPEED_SHAPE", (1, 12, 3, 32, 32))
    monkeypatch.setattr(report, "SPEED_PAIRS", 2)
    return open_workspace(tmp_path, monkeypatch)


def run_all(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("motionrgbd", settings)
    stage(prepare.main, monkeypatch)
    for seed in settings["seeds"]:
        for method in settings["methods"]:
            stage(pretrain.main, monkeypatch, "--method", method, "--seed", seed)
        for fusion in settings["fusions"]:
            stage(finetune.main, monkeypatch, "--method", fusion, "--seed", seed)
    for main in (evaluate.main, report.main):
        stage(main, monkeypatch)


def claims_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {claim["id"]: claim for claim in json.loads((folder / "claims.json").read_text())}


def test_quick_stages_end_to_end(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("quick")
    settings["fusions"] = ["fusion", "interaction"]
    settings["ablation"]["rows"] += [
        "random-map",
        "dsn-mean",
        "dsn-lstm",
        "3d-cnn",
        "branch-3",
        "half-window",
    ]
    run_all(settings, monkeypatch)
    output = workspace / "reports" / "motionrgbd" / "quick"
    results = read_parquet(output / "results.parquet")
    assert list(results.columns) == list(COLUMNS)
    assert set(results["table"]) == {"main", "ablation", "fusion"}
    assert results[results["unit"] == "%"]["value"].between(0, 100).all()
    assert set(results[results["table"] == "fusion"]["method"]) == {
        "averaged probabilities", "averaged log-probabilities", "capf", "concat", "no-spatial", "no-temporal",
        "no-auxiliary",
    }  # fmt: skip
    assert set(results[results["table"] == "ablation"]["method"]) == set(settings["ablation"]["rows"])
    claims = claims_of(output)
    numbers = "1a 1b 2a 2b 2c 2d 3a 3b 4a 4b 5a 5b 5c 5d 6a 6b 7 8"
    assert list(claims) == numbers.split()
    assert claims["5b"]["verdict"] == "not tested at this scale"  # its row was not asked for
    assert claims["5a"]["n"] == 2
    assert claims["8"]["verdict"] == "not tested at this scale"
    files = {"accuracy.svg", "factors.svg", "samples.png", "table.md", "claims.md", "timings.json"}
    assert files <= {path.name for path in output.iterdir()}
    table = (output / "table.md").read_text()
    for title in ("(A)", "(B)", "(C)", "(D)", "(E)", "(F)", "Published"):
        assert title in table
    assert "0 clips are left out" in table
    with Image.open(workspace / "runs/motionrgbd/quick/evaluate/samples-rgb.gif") as gif:
        assert gif.n_frames == 5  # type: ignore[attr-defined]
    first = {path.name: path.read_bytes() for path in output.iterdir()}
    stage(report.main, monkeypatch)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == first
    # the same seed gives the same bytes
    for step, main, name in (
        ("pretrain/full-0", pretrain.main, "full"),
        ("finetune/fusion-0", finetune.main, "fusion"),
    ):
        folder = workspace / "runs/motionrgbd/quick" / step
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        stage(main, monkeypatch, "--method", name, "--seed", 0)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("step", ["pretrain", "finetune"])
def test_a_killed_training_ends_with_the_same_bytes(
    step: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny("quick")
    settings["pretrain"]["recipe"]["epochs"] = settings["finetune"]["epochs"] = 3
    write_params("motionrgbd", settings)
    stage(prepare.main, monkeypatch)
    stage(pretrain.main, monkeypatch, "--method", "full", "--seed", 0)
    name = "full" if step == "pretrain" else "fusion"
    main = {"pretrain": pretrain.main, "finetune": finetune.main}[step]
    arguments = ["--method", name, "--seed", 0]
    stage(main, monkeypatch, *arguments)
    folder = workspace / "runs/motionrgbd/quick" / step / f"{name}-0"
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    # in the second job, after its first epoch of four steps
    killed_stage(main, monkeypatch, training, "tick", 18, *arguments)
    assert not folder.exists()
    assert list((workspace / ".encore" / "work").rglob("*.ckpt"))
    stage(main, monkeypatch, *arguments)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected


def test_every_row_trains_and_is_tested(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("quick")
    settings.update(seeds=[0], methods=["full", "ablation"])
    settings["pretrain"]["recipe"]["epochs"] = 1
    settings["ablation"]["rows"] = list(ROWS)
    run_all(settings, monkeypatch)
    results = read_parquet(workspace / "reports/motionrgbd/quick/results.parquet")
    rows = results[(results["table"] == "ablation") & (results["metric"] == "top-1")]
    assert set(rows["method"]) == set(ROWS)


def test_visible_part_of_a_label() -> None:
    label = torch.arange(16)
    assert visible(label, "rgb").unique().numel() == visible(label, "depth").unique().numel() == 8
    # trajectory x glove, whatever the push is; trajectory x push, whatever the glove is
    assert torch.equal(visible(label ^ 1, "rgb"), visible(label, "rgb"))
    assert torch.equal(visible(label ^ 2, "depth"), visible(label, "depth"))
    assert not torch.equal(visible(label ^ 2, "rgb"), visible(label, "rgb"))


def clip(frames: int, height: int = 24, width: int = 32, seed: int = 0, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, channels, height, width), generator=generator).to(torch.uint8)


def write_video(path: Path, frames: Tensor, fps: float = 30.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_video(frames, fps))


def isogd(root: Path, per_split: int = 4, frames: int = 20, classes: int = 2) -> list[str]:
    """A stand-in in IsoGD's layout (lossless H.264 under the names of its AVI files); returns the training lines."""
    found = []
    for split in ("train", "valid"):
        lines = []
        for number in range(per_split):
            names = [f"{split}/001/{kind}_{number:05d}.avi" for kind in ("M", "K")]
            write_video(root / names[0], clip(frames, seed=number))
            write_video(root / names[1], clip(frames, seed=100 + number, channels=1))
            lines.append(f"{names[0]} {names[1]} {number % classes + 1}")
        (root / f"{split}_list.txt").write_text("\n".join(lines) + "\n")
        if split == "train":
            found = lines
    return found


def nvgesture(root: Path, frames: int = 26) -> None:
    """A stand-in in NvGesture's layout, gestures inside longer videos."""
    for split, count in (("train", 4), ("test", 2)):
        lines = []
        for number in range(count):
            folder = f"./Video_data/class_{number % 2 + 1:02d}/{split}{number}"
            for seed, name in enumerate(("sk_color", "sk_depth")):
                write_video(root / folder / f"{name}.avi", clip(frames, seed=10 * number + seed))
            lines.append(
                f"path:{folder} duo_left:duo_left:3:22 color:sk_color:3:23 depth:sk_depth:3:23 label:{number % 2}"
            )
        (root / f"nvgesture_{split}_correct_cvpr2016.lst").write_text("\n".join(lines) + "\n")


def folder_settings(scale: str, root: Path) -> Settings:
    settings = tiny(scale)
    settings.update(seeds=[0])
    settings["data"].update(
        root=str(root), frames=6, side=16, resize=[20, 20], classes=2, window=3, workers=2
    )
    settings["pretrain"]["recipe"]["batch"] = settings["finetune"]["batch"] = 2
    return settings


def test_real_preset_starts_on_nvgestures_layout(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvgesture(workspace / "nv")
    run_all(folder_settings("real", workspace / "nv"), monkeypatch)
    claims = claims_of(workspace / "reports/motionrgbd/real")
    assert claims["1a"]["verdict"] == "not tested at this scale"
    assert claims["4b"]["verdict"] == "inconclusive"  # one seed
    clips = json.loads((workspace / "data/motionrgbd/real/0/clips.json").read_text())
    assert [len(clips[split]) for split in ("train", "test")] == [4, 2]
    assert {(entry["rgb_first"], entry["frames"]) for entry in clips["train"]} == {(3, 20)}


def test_paper_preset_starts_on_isogds_layout_and_a_released_file(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isogd(workspace / "iso")
    settings = folder_settings("paper", workspace / "iso")
    settings["network"].update(
        spatial="inception", heads=1, head_dim=64, frames=[2, 3, 4], rcm_hidden=8, strict_spatial=False
    )
    settings["ablation"]["rows"] = ["full"]
    settings["methods"] = ["full"]
    net = UnimodalNet(inception_dsn(64), RCM(6, 8, 64), DTN((2, 3, 4), 64, 1, 1, 64, 16, 0.7), 64, 27)
    state = {f"module.{name}": value for name, value in to_official(net).items()}
    torch.save({"model": state, "epoch": 3, "bestacc": 0.9}, workspace / "jester.pth")
    settings["pretrain"]["released"] = str(workspace / "jester.pth")
    settings["data"].update(side=32, resize=[36, 36])
    run_all(settings, monkeypatch)
    claims = claims_of(workspace / "reports/motionrgbd/paper")
    assert {"8a", "8b", "8c"} <= claims.keys()
    assert claims["8c"]["verdict"] == "inconclusive"
    assert "jester.pth" in (workspace / "reports/motionrgbd/paper/table.md").read_text()


def test_frame_folders_are_read(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = workspace / "frames"
    lines = {"train": [], "test": []}  # type: dict[str, list[str]]
    for split, count in (("train", 2), ("test", 2)):
        for number in range(count):
            for kind in ("rgb", "depth"):
                folder = root / kind / f"{split}{number}"
                folder.mkdir(parents=True)
                for frame, image in enumerate(clip(18, seed=number)):
                    Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{frame:06d}.png")
            lines[split].append(f"{split}{number} 18 {number}")
    for split in lines:
        (root / f"{split}.txt").write_text("\n".join(lines[split]) + "\n")
    settings = folder_settings("real", root)
    settings["data"].update(name="frames", train_list="train.txt", test_list="test.txt")
    write_params("motionrgbd", settings)
    stage(prepare.main, monkeypatch)
    params = load_params(MotionrgbdParams, "motionrgbd")
    clips = open_clips(
        workspace / "data/motionrgbd/real/0", "test", ["rgb", "depth"], params.data, torch.device("cpu")
    )
    views = list(clips.batches([(torch.tensor([0]), None), (torch.tensor([1, 0]), None)]))
    assert [len(view["rgb"].x_BTCHW) for view in views] == [1, 2]
    assert torch.equal(views[0]["rgb"].x_BTCHW[0], views[1]["depth"].x_BTCHW[1])
    assert views[1]["rgb"].guidance_BTHW.shape == (2, 6, 16, 16)


def test_both_modalities_get_the_same_crop_and_frames(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = workspace / "iso"
    isogd(root)
    for number in range(4):  # depth as colour, so that both can be compared
        shutil.copy(root / f"train/001/M_{number:05d}.avi", root / f"train/001/K_{number:05d}.avi")
    settings = folder_settings("paper", root)
    settings["data"].update(flip=0.5, rotation=[0.5, 10.0])
    write_params("motionrgbd", settings)
    stage(prepare.main, monkeypatch)
    params = load_params(MotionrgbdParams, "motionrgbd")
    clips = open_clips(
        workspace / "data/motionrgbd/paper/0", "train", ["rgb", "depth"], params.data, torch.device("cpu")
    )
    ask = torch.arange(4), torch.Generator().manual_seed(3)
    (views,) = list(clips.batches([ask]))
    red = views["rgb"].x_BTCHW[:, :, 0]
    assert torch.equal(red, views["depth"].x_BTCHW[:, :, 0])  # depth is one channel, three times
    (again,) = list(clips.batches([(torch.arange(4), torch.Generator().manual_seed(3))]))
    assert torch.equal(again["rgb"].x_BTCHW, views["rgb"].x_BTCHW)
    (other,) = list(clips.batches([(torch.arange(4), torch.Generator().manual_seed(4))]))
    assert not torch.equal(other["rgb"].x_BTCHW, views["rgb"].x_BTCHW)


def spoilt(root: Path) -> None:
    """Training clips 0 to 5 of a stand-in, each bad in another way; 6 and 7 are good."""
    isogd(root, per_split=8)
    folder = root / "train/001"
    whole = (folder / "M_00000.avi").read_bytes()
    (folder / "M_00000.avi").write_bytes(whole[: len(whole) // 2])  # truncated
    write_video(folder / "M_00001.avi", clip(20), fps=15.0)  # wrong frame rate
    (folder / "K_00002.avi").unlink()  # missing partner
    (folder / "K_00003.avi").write_bytes(b"")  # zero frames
    write_video(folder / "K_00004.avi", clip(20, height=48, channels=1))  # another size
    write_video(folder / "K_00005.avi", clip(30, channels=1))  # not as long as its partner


def test_bad_videos_are_named_skipped_and_counted(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = workspace / "iso"
    spoilt(root)
    for kind in ("M", "K"):  # too short: no fault of the file
        write_video(root / f"valid/001/{kind}_00007.avi", clip(10, channels=3 if kind == "M" else 1))
    settings = folder_settings("paper", root)
    settings["data"]["expect_fps"] = 30.0
    settings.update(methods=["full"], fusions=["fusion"])
    write_params("motionrgbd", settings)
    stage(prepare.main, monkeypatch)
    left_out = json.loads((workspace / "data/motionrgbd/paper/0/left_out.json").read_text())
    words = {
        "M_00000": "truncated", "M_00001": "15 frames a second", "K_00002": "missing", "K_00003": "not a video",
        "K_00004": "48 x 32", "K_00005": "has 30 frames",
    }  # fmt: skip
    assert len(left_out["bad"]) == len(words)
    for name, word in words.items():
        (reason,) = [reason for reason in left_out["bad"] if name in reason.partition(":")[0]]
        assert word in reason
    assert left_out["short"] == 1
    clips = json.loads((workspace / "data/motionrgbd/paper/0/clips.json").read_text())
    assert [Path(entry["rgb"]).stem for entry in clips["train"]] == ["M_00006", "M_00007"]
    assert len(clips["test"]) == 7
    table = report.data_lines(left_out, load_params(MotionrgbdParams, "motionrgbd"))
    assert "6 clips are left out because a file is bad" in table
    assert "1 because they have fewer than 17 frames" in table
    assert "K_00002.avi: missing" in table


def test_bad_videos_are_refused_by_name(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt(workspace / "iso")
    settings = folder_settings("paper", workspace / "iso")
    settings["data"]["on_bad"] = "refuse"
    write_params("motionrgbd", settings)
    with pytest.raises(InputError, match=r"M_00000\.avi: .*set on_bad to skip"):
        stage(prepare.main, monkeypatch)
    assert not (workspace / "data/motionrgbd/paper").exists()


def test_no_usable_video_is_an_error(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = workspace / "iso"
    isogd(root, per_split=2)
    shutil.rmtree(root / "valid")
    write_params("motionrgbd", folder_settings("paper", root))
    with pytest.raises(InputError, match=r"no usable video \(2 skipped"):
        stage(prepare.main, monkeypatch)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train/001/M_00000.avi 3", "line 5: not of the layout isogd"),
        ("train/001/M_00000.avi train/001/K_00000.avi 9", "line 5: label 8; there are 2 classes"),
    ],
)
def test_a_wrong_line_is_named(
    line: str, message: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = isogd(workspace / "iso")
    (workspace / "iso" / "train_list.txt").write_text("\n".join([*lines, line]))
    write_params("motionrgbd", folder_settings("paper", workspace / "iso"))
    with pytest.raises(InputError, match=message):
        stage(prepare.main, monkeypatch)


def test_a_missing_list_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("motionrgbd", folder_settings("real", workspace / "nowhere"))
    with pytest.raises(InputError, match=r"nowhere/nvgesture_train.*cannot be read"):
        stage(prepare.main, monkeypatch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"side": 32.0}}, r"data\.side = 32\.0"),
        ({"data": {"resize": [8, 8]}}, "must not be smaller than data.side"),
        ({"data": {"root": None, "name": "isogd"}}, "give the folder of isogd"),
        ({"network": {"frames": [2, 3, 99]}}, "a clip has 5 frames"),
        ({"network": {"strides": [2]}}, "one for each of network.widths"),
        ({"network": {"dim": 50}}, "multiple of 64"),
        ({"methods": ["ablation"]}, "'full' must be among them"),
        ({"colour": 1}, r"motionrgbd\.colour: unknown key"),
    ],
)
def test_wrong_parameters_are_told_in_one_line(
    change: Settings, message: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny("quick")
    for key, value in change.items():
        if isinstance(value, dict):
            settings[key].update(value)
        else:
            settings[key] = value
    write_params("motionrgbd", settings)
    with pytest.raises(ParameterError, match=message) as error:
        stage(prepare.main, monkeypatch)
    assert "\n" not in str(error.value)
    assert not (workspace / "data" / "motionrgbd").exists()


def test_a_batch_larger_than_the_data_is_told(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny("quick")
    settings["pretrain"]["recipe"]["batch"] = 17
    write_params("motionrgbd", settings)
    stage(prepare.main, monkeypatch)
    with pytest.raises(ParameterError, match=r"recipe\.batch = 17: there are 16 clips"):
        stage(pretrain.main, monkeypatch, "--method", "full", "--seed", 0)


def test_a_damaged_input_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("motionrgbd", tiny("quick"))
    stage(prepare.main, monkeypatch)
    path = workspace / "data/motionrgbd/quick/0/train.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"train\.safetensors: damaged"):
        stage(pretrain.main, monkeypatch, "--method", "full", "--seed", 0)


def test_seeds_have_worlds_of_their_own(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("motionrgbd", tiny("quick"))
    stage(prepare.main, monkeypatch)
    clips = [
        load_file(workspace / f"data/motionrgbd/quick/{seed}/{split}.safetensors")["rgb"]
        for seed in (0, 1)
        for split in ("train", "test")
    ]
    assert len({part.numpy().tobytes() for part in clips}) == 4
