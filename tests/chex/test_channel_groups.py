"""Coupling analysis on residual, dense, depthwise, grouped, plain and unsupported networks; slim equals
masked."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from stages.chex.method.channel_groups import ChannelGroup, find_channel_groups
from stages.chex.method.flops import MacModel, count_macs
from stages.chex.method.narrow import tensor_masks
from stages.chex.method.resnet import build
from stages.chex.method.slim import slim


class Odd(nn.Module):
    """A convolution, then an operation that mixes channels, then two more."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).roll(1, 1)
        return self.head(self.third(self.second(x).relu()).relu()).mean((2, 3))


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else x


class HardCoded(nn.Module):
    """LeNet style: the flattened size is written as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.conv1(x).relu()).relu().view(-1, 6 * 16))


class SqueezeExcite(nn.Module):
    """Gate, concatenation, group norm and grouped convolution in one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.GroupNorm(2, 8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.grouped = nn.Conv2d(8, 16, 3, groups=4)
        self.side = nn.Conv2d(8, 5, 3)
        self.bn = nn.BatchNorm2d(21)
        self.head = nn.Linear(21 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x * torch.sigmoid(self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()))
        x = self.bn(torch.cat([self.grouped(x), self.side(x)], 1)).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def randomise(model: nn.Module) -> nn.Module:
    """Norm statistics, scales and offsets as after some training."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.3, 0.3, generator=generator)
    return model


def random_masks(groups: list[ChannelGroup], keep: float = 0.5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    masks = {g.name: torch.rand(g.units, generator=generator) < keep for g in groups}
    for mask in masks.values():
        mask[-1] = True
    return masks


@torch.no_grad()
def mask_(model: nn.Module, groups: list[ChannelGroup], masks: dict[str, Tensor]) -> None:
    for name, mask in tensor_masks(model, groups, masks).items():
        model.get_parameter(name).mul_(mask)


def assert_slim_equals_masked(model: nn.Module, x: Tensor, residual: str = "dense") -> list[ChannelGroup]:
    randomise(model).eval()
    groups, _ = find_channel_groups(model, x, residual)  # type: ignore[arg-type]
    masks = random_masks(groups)
    slimmed = slim(model, groups, masks)
    mask_(model, groups, masks)
    with torch.no_grad():
        torch.testing.assert_close(slimmed(x), model(x), atol=1e-5, rtol=1e-5)
    macs = MacModel(model, groups, x)
    assert macs([g.units for g in groups]) == count_macs(model, x)
    assert macs.of_masks(masks) == count_macs(slimmed, x)
    return groups


NETS: dict[str, tuple[Callable[[], nn.Module], int, int, int]] = {  # net, input size, groups, units
    "resnet18": (lambda: build("resnet18", 7), 48, 8, 1920),
    "resnet50": (lambda: build("resnet50", 7), 33, 36, 11_392),
    "resnet20": (lambda: build("resnet20", 7), 16, 9, 336),
    "quick": (lambda: build("quick", 7), 12, 11, 336),
    "quick_gn": (lambda: build("quick", 7, groups=4), 12, 11, 336),
    "torchvision_resnet34": (lambda: torchvision.models.resnet34(num_classes=7), 33, 16, 3776),
    "resnext": (lambda: torchvision.models.resnext50_32x4d(num_classes=7), 33, 20, 4352),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=7), 32, 20, 8752),
    "densenet121": (lambda: torchvision.models.DenseNet(8, (2, 3, 2), 16, 4, num_classes=7), 32, 17, 332),
    "vgg11": (lambda: nn.Sequential(*list(torchvision.models.vgg11().features)[:8], nn.Flatten(),
    nn.Linear(256 * 16, 9)), 16, 3, 448), "squeeze_excite": (SqueezeExcite, 12, 3, 13),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_slim_equals_masked(name: str) -> None:
    torch.manual_seed(0)
    make, size, n_groups, units = NETS[name]
    groups = assert_slim_equals_masked(make(), torch.randn(2, 3, size, size))
    assert (len(groups), sum(g.units for g in groups)) == (n_groups, units)


@pytest.mark.parametrize("name", ["quick", "resnet20"])
def test_residual_stream_can_be_pruned_as_one_group(name: str) -> None:
    torch.manual_seed(0)
    groups = assert_slim_equals_masked(build(name, 7), torch.randn(2, 3, 12, 12), "coupled")
    assert {g.kind for g in groups} == {"inner", "coupled"}


def test_prunable_places_are_the_paper_s() -> None:
    groups, dense = find_channel_groups(build("resnet50", 10), torch.zeros(1, 3, 64, 64))
    assert not dense
    for group in groups:
        assert group.name.endswith(("conv1", "conv2", "downsample.0"))
        assert (group.kind == "shortcut") == group.name.endswith("downsample.0")
    for name in ("resnet18", "resnet34", "resnet20"):
        groups, dense = find_channel_groups(build(name, 10), torch.zeros(1, 3, 32, 32))
        assert not dense
        assert all(g.name.endswith(".conv1") and g.kind == "inner" for g in groups)


def test_unsupported_operation_is_named_and_its_layers_stay_dense() -> None:
    groups, dense = find_channel_groups(Odd(), torch.zeros(1, 3, 9, 9))
    assert [g.name for g in groups] == ["second", "third"]
    assert [name for name, _ in dense] == ["first"]
    assert "roll" in dense[0][1]
    torch.manual_seed(0)
    assert_slim_equals_masked(Odd(), torch.randn(2, 3, 9, 9))


def test_untraceable_submodule_is_named_and_left_dense() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), Untraceable(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    groups, dense = find_channel_groups(model, torch.zeros(1, 3, 4, 4))
    assert [g.name for g in groups] == ["2"]
    assert [name for name, _ in dense] == ["1", "0"]
    assert "1 (Untraceable)" in dense[1][1]


def test_hard_coded_size_and_shared_layer_are_left_dense() -> None:
    groups, dense = find_channel_groups(HardCoded(), torch.zeros(1, 1, 8, 8))
    assert [g.name for g in groups] == ["conv1"]
    assert dense[0][0] == "conv2"
    shared = nn.Conv2d(4, 4, 1)
    groups, dense = find_channel_groups(
        nn.Sequential(nn.Conv2d(3, 4, 1), shared, shared, nn.Conv2d(4, 2, 1)), torch.zeros(1, 3, 4, 4)
    )
    assert not groups
    assert ("1", "it is called more than once") in dense


class Twice(nn.Module):
    """Concatenates a tensor with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(12, 5, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.second(torch.cat([x, x], 1)))


def test_a_tensor_concatenated_with_itself_counts_twice() -> None:
    torch.manual_seed(0)
    groups = assert_slim_equals_masked(Twice(), torch.randn(2, 3, 4, 4))
    assert [len(g.consumers) for g in groups] == [2, 1]


def test_shufflenet_says_which_layers_stay_dense() -> None:
    torch.manual_seed(0)
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=4)
    _, dense = find_channel_groups(model, torch.zeros(1, 3, 32, 32))
    assert any("view in stage2.0" in reason for _, reason in dense)
    assert_slim_equals_masked(model, torch.randn(1, 3, 32, 32))


def test_analysis_leaves_the_model_as_it_was() -> None:
    model = build("quick", 3)
    model.get_submodule("layer1").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    find_channel_groups(model, torch.zeros(1, 3, 12, 12))
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
