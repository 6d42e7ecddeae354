"""Released files: DINO and DINOv2 backbones, timm's models by name, heads."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from stages.common.stage.errors import InputError
from stages.transfgu.method.mask_transformer import MaskTransformer
from stages.transfgu.method.vision_transformer import VisionTransformer
from stages.transfgu.official import (
    backbone_from_official,
    head_from_official,
    load_backbone,
    load_head,
    save_backbone,
    timm_backbone,
    to_official,
)


@pytest.fixture
def backbone() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(8, 64, 2, 1, 3)


@pytest.mark.parametrize("form", ["flat", "teacher", "encoder"])
def test_every_form_of_a_backbone(form: str, backbone: VisionTransformer, tmp_path: Path) -> None:
    state = to_official(backbone)
    files = {
        "flat": state,
        "teacher": {
            "teacher": {
                **{f"module.backbone.{n}": v for n, v in state.items()},
                "module.head.last_layer.weight_g": torch.ones(3, 1),
            },
            "epoch": 1,
        },
        "encoder": {f"module.encoder.{n}": v for n, v in state.items()},
    }
    torch.save(files[form], tmp_path / "file.pth")
    loaded = load_backbone(tmp_path / "file.pth")
    assert not loaded.training
    assert all(torch.equal(value, state[name]) for name, value in to_official(loaded).items())


def test_a_backbone_of_this_project_comes_back_with_its_heads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = VisionTransformer(4, 12, 2, 3, 4).eval(), torch.randn(1, 3, 16, 16)
    save_backbone(model, tmp_path / "dino.safetensors")
    with torch.no_grad():
        assert torch.equal(load_backbone(tmp_path / "dino.safetensors")(x), model(x))
    content = (tmp_path / "dino.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(content[:-4])
    with pytest.raises(InputError, match="not a checkpoint"):
        load_backbone(tmp_path / "short.safetensors")
    with pytest.raises(InputError, match="no such file"):
        load_backbone(tmp_path / "absent.safetensors")


def test_a_wrong_backbone_is_refused(backbone: VisionTransformer, tmp_path: Path) -> None:
    state = to_official(backbone)
    missing = {name: value for name, value in state.items() if name != "blocks.1.mlp.fc1.bias"}
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.fc1\.bias is missing"):
        backbone_from_official(missing)
    with pytest.raises(ValueError, match="extra is not part"):
        backbone_from_official({**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"norm\.bias is \(3,\)"):
        backbone_from_official({**state, "norm.bias": torch.zeros(3)})
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "resnet.pth")
    with pytest.raises(InputError, match="not a ViT"):
        load_backbone(tmp_path / "resnet.pth")
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="not a checkpoint"):
        load_backbone(tmp_path / "broken.pth")
    with pytest.raises(InputError, match="no such file"):
        load_backbone(tmp_path / "absent.pth")


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("code ran",))


def test_no_code_of_a_file_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"pos_embed": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="not a checkpoint"):
        load_backbone(tmp_path / "evil.pth")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "size"), [("vit_small_patch16_224.dino", 224), ("vit_small_patch14_dinov2.lvd142m", 518)]
)
def test_timms_models_have_the_same_features(name: str, size: int) -> None:
    torch.manual_seed(0)
    reference: Any = timm.create_model(name, pretrained=False, num_classes=0).eval()
    model = backbone_from_official(reference.state_dict())
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(
            model.forward_features(x), reference.forward_features(x), rtol=0, atol=1e-4
        )


def test_a_model_by_name() -> None:
    torch.manual_seed(0)
    model = timm_backbone("vit_small_patch8_224.dino", pretrained=False)
    assert (model.patch, model.width, len(model.blocks), model.native) == (8, 384, 12, 28)


def test_head_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = MaskTransformer(5, 32, 64, n_heads=1).eval()
    torch.save(
        {f"module.{name}": value for name, value in to_official(head).items()}, tmp_path / "coco_decoder.pt"
    )
    loaded = load_head(tmp_path / "coco_decoder.pt")
    x = torch.randn(2, 7, 32)
    with torch.no_grad():
        assert torch.equal(head(x)[0], loaded(x)[0])
    with pytest.raises(ValueError, match="no cls_emb"):
        head_from_official({"proj_dec.weight": torch.zeros(2, 2)})
