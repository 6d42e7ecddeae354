"""Released files: round trips of both kinds, and what is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages.common.stage.errors import InputError
from stages.motionrgbd.method.capf import CAPF
from stages.motionrgbd.method.dsn import inception_dsn, plain_dsn
from stages.motionrgbd.method.dtn import DTN
from stages.motionrgbd.method.rcm import RCM
from stages.motionrgbd.method.unimodal import UnimodalNet
from stages.motionrgbd.official import (
    fusion_from_official,
    load_released,
    start_from_released,
    to_official,
    unimodal_from_official,
)


def net(classes: int = 5, rcm: bool = True, frp: bool = True, seed: int = 0) -> UnimodalNet:
    torch.manual_seed(seed)
    module = RCM(6, 8, 64) if rcm else None
    return UnimodalNet(
        inception_dsn(64, frp), module, DTN((2, 3, 4), 64, 2, 1, 64, 16, 0.7), 64, classes
    ).eval()


def fusion() -> CAPF:
    torch.manual_seed(1)
    return CAPF(net(seed=1), net(seed=2), 64, 5, official_reshape=True).eval()


def save(path: Path, state: dict[str, Tensor], prefix: str = "module.") -> Path:
    torch.save({"model": {prefix + name: value for name, value in state.items()}, "epoch": 3}, path)
    return path


@pytest.mark.parametrize(("rcm", "frp"), [(True, True), (False, True), (True, False)])
def test_unimodal_round_trip(rcm: bool, frp: bool) -> None:
    first = net(rcm=rcm, frp=frp)
    again = unimodal_from_official(to_official(first))
    assert [branch.frames for branch in again.dtn.branches] == [2, 3, 4]
    x, guidance = torch.randn(1, 6, 3, 32, 32), torch.rand(1, 6, 32, 32)
    with torch.no_grad():
        assert torch.equal(first(x, guidance, 0.05)[0].merged_BK, again(x, guidance, 0.05)[0].merged_BK)


def test_fusion_round_trip(tmp_path: Path) -> None:
    first = fusion()
    again = load_released(save(tmp_path / "fusion.pth", to_official(first)))
    assert isinstance(again, CAPF)
    x, guidance = torch.randn(1, 6, 3, 32, 32), torch.rand(1, 6, 32, 32)
    with torch.no_grad():
        ours, theirs = first(x, x, guidance, guidance), again(x, x, guidance, guidance)
    assert torch.equal(ours.fused_BK, theirs.fused_BK)
    assert torch.equal(ours.rgb_BK, theirs.rgb_BK)


def test_released_names_and_shapes() -> None:
    state = to_official(net())
    assert state["frp_module.rpconv1d.weight"].shape == (1, 2, 1)
    assert state["Conv3d_1a_7x7.conv3d.weight"].shape == (64, 3, 1, 7, 7)
    assert state["dtn.multi_scale_transformers.0.Mixed_media.b1b.conv3d.weight"].shape[2:] == (3, 1, 1)
    assert "dtn.multi_scale_transformers.1.transformer_enc_large.layers.0.1.fn.fc2.bias" in state
    fused = to_official(fusion())
    assert fused["crossFusion.3.weight"].shape == (64, 64, 1, 1)
    assert fused["fc.weight"].shape == (1, 64, 1, 1)
    assert not any("mlp_head" in name for name in fused)


def change(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    name = "dtn.rcm.linear.bias"
    match kind:
        case "missing":
            return {key: value for key, value in state.items() if key != name}
        case "extra":
            return {**state, "dtn.rcm.mergefc.1.weight": torch.zeros(1)}
        case "shape":
            return {**state, name: torch.zeros(3)}
        case _:
            return {"weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"dtn\.rcm\.linear\.bias is missing"),
        ("extra", r"dtn\.rcm\.mergefc\.1\.weight is not part"),
        ("shape", r"dtn\.rcm\.linear\.bias is \(3,\), does not fit \(64,\)"),
        ("other", "not a MotionRGBD checkpoint"),
    ],
)
def test_what_does_not_fit_is_refused(kind: str, message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", change(to_official(net()), kind))
    with pytest.raises(InputError, match=message) as error:
        load_released(path)
    assert "\n" not in str(error.value)


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_released(tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(InputError, match="not a checkpoint of tensors"):
        load_released(tmp_path / "text.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(InputError, match="not a dict of tensors"):
        load_released(tmp_path / "list.pth")


def test_training_starts_from_a_released_file_of_other_classes(tmp_path: Path) -> None:
    released, own = net(classes=27, seed=3), net(classes=5, seed=4)
    head = own.heads[0][1].weight.clone()  # type: ignore[index]
    start_from_released(own, save(tmp_path / "jester.pth", to_official(released)))
    assert torch.equal(own.dsn.linear.weight, released.dsn.linear.weight)
    assert torch.equal(own.heads[0][1].weight, head)  # type: ignore[index]
    plain = UnimodalNet(plain_dsn((4,), (2,), 64), None, DTN((2,), 64, 1, 1, 64, 16, 0.7), 64, 5)
    with pytest.raises(InputError, match="does not fit the network of the parameters"):
        start_from_released(plain, tmp_path / "jester.pth")


def test_fusion_needs_both_sides() -> None:
    state = {name: value for name, value in to_official(fusion()).items() if not name.startswith("Modalit_d")}
    with pytest.raises(ValueError, match="not a MotionRGBD checkpoint"):
        fusion_from_official(state)
