"""The slim network: its file, exports, official checkpoints, empty layers, latency."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from torch import Tensor, nn

from stages.chex.latency import latency_ratio
from stages.chex.method.channel_groups import find_channel_groups
from stages.chex.method.flops import count_params
from stages.chex.method.narrow import SlimGroupNorm
from stages.chex.method.resnet import build
from stages.chex.method.slim import load_slim, save_slim, slim
from stages.chex.official import from_official, load_official
from tests.chex.test_channel_groups import mask_, random_masks, randomise


def slimmed(name: str, size: int, keep: float = 0.5, groups: int = 0) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = randomise(build(name, 7, groups=groups)).eval(), torch.randn(2, 3, size, size)
    found, _ = find_channel_groups(model, x)
    masks = random_masks(found, keep)
    mask_(model, found, masks)
    return model, slim(model, found, masks), x


@pytest.mark.parametrize("groups", [0, 4])
def test_file_round_trip_needs_no_dense_net(tmp_path: Path, groups: int) -> None:
    model, small, x = slimmed("quick", 12, groups=groups)
    save_slim(small, tmp_path / "slim.safetensors")
    loaded = load_slim(tmp_path / "slim.safetensors")
    assert torch.equal(loaded(x), small(x))
    assert count_params(loaded) == count_params(small) < count_params(model)
    assert (tmp_path / "slim.safetensors").stat().st_size < 4 * count_params(small) + 60_000
    save_slim(loaded, tmp_path / "again.safetensors")
    assert torch.equal(load_slim(tmp_path / "again.safetensors")(x), small(x))


def test_file_of_a_user_s_architecture_takes_a_skeleton(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = randomise(torchvision.models.mobilenet_v2(num_classes=4)).eval(), torch.randn(1, 3, 32, 32)
    groups, _ = find_channel_groups(model, x)
    small = slim(model, groups, random_masks(groups))
    path = tmp_path / "slim.safetensors"
    save_slim(small, path)
    with torch.device("meta"):
        skeleton = torchvision.models.mobilenet_v2(num_classes=4)
    torch.testing.assert_close(load_slim(path, skeleton)(x), small(x), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="pass the dense architecture"):
        load_slim(path)
    with pytest.raises(ValueError, match="does not fit ResNet"):
        load_slim(path, build("quick", 4))
    with pytest.raises(ValueError, match=r"slim\(\)"):
        save_slim(model, path)


@pytest.mark.parametrize("groups", [0, 4])
def test_exports_agree(tmp_path: Path, groups: int) -> None:
    _, small, x = slimmed("quick", 12, groups=groups)
    expected = small(x).detach()
    exported = torch.export.export(small, (x,))
    torch.testing.assert_close(exported.module()(x), expected, atol=1e-5, rtol=1e-5)
    torch.onnx.export(small, (x,), tmp_path / "slim.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "slim.onnx", providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["inner", "shortcut"])
@pytest.mark.parametrize("norm_groups", [0, 4])
def test_empty_groups(kind: str, norm_groups: int) -> None:
    torch.manual_seed(0)
    model, x = randomise(build("quick", 7, groups=norm_groups)).eval(), torch.randn(2, 3, 12, 12)
    groups, _ = find_channel_groups(model, x)
    masks = {g.name: torch.full((g.units,), g.kind != kind) for g in groups}
    small = slim(model, groups, masks)
    mask_(model, groups, masks)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), atol=1e-5, rtol=1e-5)
    torch.export.export(small, (x,))


def test_slim_group_norm_trains_like_the_masked_one() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(3, 12)
    nn.init.uniform_(norm.weight)
    kept = [0, 1, 4, 5, 6, 7]  # the last group is gone
    x = torch.randn(2, 12, 5, 5) + 100  # far from zero: the variance must not cancel
    x[:, [c for c in range(12) if c not in kept]] = 0
    torch.testing.assert_close(SlimGroupNorm(norm, kept)(x[:, kept]), norm(x)[:, kept], atol=1e-5, rtol=1e-5)
    norm, x = norm.double(), x.double().requires_grad_()
    narrow_x = x.detach()[:, kept].requires_grad_()
    full, narrow = norm(x)[:, kept], SlimGroupNorm(norm, kept)(narrow_x)
    full.square().sum().backward()
    narrow.square().sum().backward()
    assert x.grad is not None
    assert narrow_x.grad is not None
    torch.testing.assert_close(narrow_x.grad, x.grad[:, kept], atol=1e-9, rtol=1e-9)


def test_official_file_with_exact_zeros(tmp_path: Path) -> None:
    model, small, _ = slimmed("resnet50", 64, keep=0.3)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    path = tmp_path / "released.pth.tar"
    torch.save({"state_dict": state, "arch": "resnet50", "epoch": 250, "best_prec1": 76.0}, path)
    x = torch.randn(1, 3, 64, 64)
    loaded = load_official(path)
    torch.testing.assert_close(loaded(x), model(x), atol=1e-5, rtol=1e-5)
    assert count_params(loaded) == count_params(small)


def test_official_file_that_is_narrow_already() -> None:
    _, small, _ = slimmed("resnet18", 64)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(from_official(small.state_dict())(x), small(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("tensor", "index", "message"),
    [
        ("layer1.0.bn1.bias", 0, r"layer1\.0\.bn1\.bias is not zero"),
        ("layer1.0.bn1.weight", 0, r"layer1\.0\.bn1\.weight is not zero"),
        ("layer2.0.conv2.weight", (slice(1, None), 0), r"layer2\.0\.conv2\.weight has input columns"),
    ],
)
def test_official_zeros_must_fit_together(tensor: str, index, message: str) -> None:
    torch.manual_seed(0)
    model = build("quick", 4)
    groups, _ = find_channel_groups(model, torch.zeros(1, 3, 16, 16))
    mask_(model, groups, {g.name: torch.arange(g.units) > 0 for g in groups})
    state = model.state_dict()
    state[tensor][index] = 1.0
    with pytest.raises(ValueError, match=message):
        from_official(state)


def test_official_refuses_other_files(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no 'state_dict'"):
        load_official(tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not a released ResNet"):
        from_official({"fc.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="unexpected"):
        from_official(build("quick", 4).state_dict() | {"extra": torch.zeros(1)})


def test_slim_is_faster() -> None:
    model, small, _ = slimmed("resnet50", 64, keep=0.25)
    measured = latency_ratio(model, small, (1, 3, 96, 96), repeats=30, threads=1)
    assert measured.ratio > 1.2
    assert measured.dense_s > measured.slim_s > 0
