"""The authors' files: checkpoints by their names, latency tables."""

from pathlib import Path

import pytest
import torch

from stages.common.stage.errors import InputError
from stages.zendet.detector import build_detector
from stages.zendet.latency_table import read_latency_table
from stages.zendet.method.latency import ConvQuery
from stages.zendet.method.masternet import MasterNet
from stages.zendet.method.structure import resnet_structure
from stages.zendet.official import load_official_backbone, load_official_detector
from stages.zendet.params import Detector

STRUCTURE = resnet_structure(8, (8, 8, 8, 8), (1, 1, 1, 1))
STEM = "block_list.0.conv1.weight"
RELEASED = Detector(channels=32, convs=4, levels=5, groups=32, sizes=[800], longest=1333, zero_residual=False)
THEIRS = {  # MMDetection's names by ours
    "head.": "bbox_head.",
    **{f"backbone.fpn.inner_blocks.{i}.0.": f"neck.lateral_convs.{i}.conv." for i in range(3)},
    **{f"backbone.fpn.layer_blocks.{i}.0.": f"neck.fpn_convs.{i}.conv." for i in range(3)},
    **{f"backbone.fpn.extra_blocks.convs.{i}.": f"neck.fpn_convs.{3 + i}.conv." for i in range(2)},
}


def stem(net: torch.nn.Module) -> torch.Tensor:
    return net.get_parameter(STEM)


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A detector's tensors under the authors' names, in an mmcv checkpoint."""
    torch.manual_seed(0)
    model = build_detector(STRUCTURE, "gfl", 3, RELEASED).eval()
    state = {}
    for name, value in model.state_dict().items():
        prefix = next((p for p in THEIRS if name.startswith(p)), "")
        state[THEIRS.get(prefix, "") + name.removeprefix(prefix)] = value
    assert {"backbone.body.block_list.0.conv1.weight", "neck.fpn_convs.4.conv.bias"} <= set(state)
    assert {"bbox_head.cls_convs.3.gn.bias", "bbox_head.scales.4.scale", "bbox_head.reg_conf.2.bias"} <= set(
        state
    )
    assert {"bbox_head.integral.project", "bbox_head.gfl_reg.weight"} <= set(state)
    path = tmp_path / "latest.pth"
    torch.save({"meta": {"epoch": 73}, "state_dict": state}, path)
    return path, model


def test_detector_loads_by_the_authors_names(checkpoint: tuple[Path, torch.nn.Module]) -> None:
    path, model = checkpoint
    loaded = load_official_detector(path, STRUCTURE, classes=3)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    body = load_official_backbone(path, STRUCTURE)
    assert torch.equal(stem(body), model.get_parameter(f"backbone.body.{STEM}"))


def test_backbone_loads_with_module_prefix(tmp_path: Path) -> None:
    body = MasterNet(STRUCTURE)
    state = {f"module.{name}": value for name, value in body.state_dict().items()}
    torch.save(state, tmp_path / "student_best-params_rank0.pth")
    loaded = load_official_backbone(tmp_path / "student_best-params_rank0.pth", STRUCTURE)
    assert torch.equal(stem(loaded), stem(body))


def test_wrong_checkpoints_are_told(checkpoint: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    path, _ = checkpoint
    deeper = resnet_structure(8, (8, 8, 8, 8), (2, 1, 1, 1))
    wider = resnet_structure(8, (8, 8, 8, 16), (1, 1, 1, 1))
    for structure in (deeper, wider):
        for load in (load_official_backbone, load_official_detector):
            with pytest.raises(InputError, match="not this"):
                load(path, structure)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(path.read_bytes()[:100])
    for file in (broken, tmp_path / "absent.pth"):
        with pytest.raises(InputError) as error:
            load_official_detector(file, STRUCTURE)
        assert "\n" not in str(error.value)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "harmed"),)

    torch.save({"state_dict": Harm()}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match="not a checkpoint"):
        load_official_backbone(tmp_path / "bad.pth", STRUCTURE)
    assert not (tmp_path / "harmed").exists()


def test_latency_table(tmp_path: Path) -> None:
    path = tmp_path / "conv_data.out"
    path.write_text(
        "{Regular,1,16,7,7,16,1,1,0} 0.5\n{Regular,1,16,4,4,16,1,1,0} 9\n{Regular,1,16,8,8,16,1,1,0} -1\n"
    )
    table = read_latency_table(path)
    assert table.predict_op(ConvQuery(False, 16, 7, 16, 1, 1, 0), 1) == 0.5
    with pytest.raises(KeyError, match="no depthwise convolution of kernel 5"):
        table.predict_op(ConvQuery(True, 16, 7, 16, 5, 1, 0), 1)
    path.write_text("{Regular,1,16,7,7,16,1,1,0} 0.5\nnonsense\n")
    with pytest.raises(InputError, match="line 2"):
        read_latency_table(path)
