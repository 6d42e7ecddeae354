"""Released files: prefixes, EMA copies, buffers, detectors; and what is wrong with others, in one line."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stages.common.stage.errors import InputError
from stages.elsa.method.dense import DenseBackbone
from stages.elsa.method.swin import SwinTransformer, elsa_swin
from stages.elsa.official import load_official


def small(img_size: int | None = 12) -> SwinTransformer:
    return elsa_swin(
        8, (1, 1), (2, 2), 4, img_size=img_size, patch_size=2, elsa_kernel=3, window_size=3, num_classes=3
    )


def released(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    """A state dict as the authors publish it: prefixed, with the buffers of window attention."""
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    buffers = {"relative_id": torch.zeros(81, dtype=torch.long), "attn_mask": torch.zeros(4, 9, 9)}
    return state | {f"{prefix}layers.1.blocks.0.attn.{name}": value for name, value in buffers.items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def test_classifier_with_and_without_ema(tmp_path: Path) -> None:
    plain, averaged, path = small(), small(), tmp_path / "elsa.pth.tar"
    content = {"epoch": 300, "arch": "elsa", "state_dict": released(plain, "module.")}
    torch.save({**content, "state_dict_ema": released(averaged, "")}, path)
    assert same(load_official(small(), path), plain)
    assert same(load_official(small(), path, ema=True), averaged)
    torch.save(content, path)
    with pytest.raises(InputError, match="has no state_dict_ema"):
        load_official(small(), path, ema=True)


def test_backbone_of_a_detector(tmp_path: Path) -> None:
    backbone, path = DenseBackbone(small(None), (0, 1)), tmp_path / "mask_rcnn.pth"
    names = {name.removeprefix("trunk."): value for name, value in backbone.state_dict().items()}
    state = {f"backbone.{name}": value for name, value in names.items()}
    torch.save({"meta": {}, "state_dict": {**state, "rpn_head.rpn_conv.weight": torch.zeros(2)}}, path)
    loaded = load_official(DenseBackbone(small(None), (0, 1)), path)
    assert same(loaded, backbone)
    assert not loaded.training


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with pytest.raises(InputError, match="no such file"):
        load_official(small(), path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="not a checkpoint"):
        load_official(small(), path)
    torch.save({"state_dict": {"head.weight": torch.zeros(7, 16)}}, path)
    with pytest.raises(InputError, match=r"head\.weight|Missing key") as error:
        load_official(small(), path)
    assert "\n" not in str(error.value)
