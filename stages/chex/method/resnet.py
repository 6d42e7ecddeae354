"""Residual networks of the CHEX experiments, from one small specification.

Parameter names follow torchvision (`layer1.0.conv1.weight`, `layer1.0.downsample.0.weight`, `fc.weight`), so
that torchvision's and the authors' weights load as they are. Convolutions have no bias. Sources: card,
"Classification recipe" (initialisation), "Data" (the quick net) and torchvision (places of the strides: the
3x3 of a bottleneck).

Shapes: N batch, C channels, H and W pixels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ResNetSpec:
    """What a residual network looks like.

    Attributes:
        block: "basic" (two 3x3) or "bottleneck" (1x1, 3x3, 1x1).
        stem: channels of the first convolution.
        large_stem: 7x7 stride 2 and a max pool (ImageNet) instead of one 3x3 of stride 1.
        depths: blocks per stage.
        outs: channels of the residual stream per stage.
        mids: inner width of each block, in network order (length sum(depths)).
        strides: stride of the first block of each stage.
        num_classes, in_channels: logits and image channels.
        groups: 0 for BatchNorm, otherwise GroupNorm with so many groups in every norm layer.
    """

    block: Literal["basic", "bottleneck"]
    stem: int
    large_stem: bool
    depths: tuple[int, ...]
    outs: tuple[int, ...]
    mids: tuple[int, ...]
    strides: tuple[int, ...]
    num_classes: int
    in_channels: int = 3
    groups: int = 0

    def norm(self, channels: int) -> nn.Module:
        """The norm layer over `channels` channels."""
        return nn.GroupNorm(self.groups, channels) if self.groups else nn.BatchNorm2d(channels)


class BasicBlock(nn.Module):
    """relu(shortcut(x) + norm(conv3x3(relu(norm(conv3x3(x))))))."""

    def __init__(self, spec: ResNetSpec, inp: int, mid: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inp, mid, 3, stride, 1, bias=False)
        self.bn1 = spec.norm(mid)
        self.conv2 = nn.Conv2d(mid, out, 3, 1, 1, bias=False)
        self.bn2 = spec.norm(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(spec, inp, out, stride, project=stride != 1 or inp != out)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inp, H, W] -> [N, out, H/stride, W/stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """relu(shortcut(x) + 1x1 -> 3x3 (carries the stride) -> 1x1), each convolution followed by its norm."""

    def __init__(self, spec: ResNetSpec, inp: int, mid: int, out: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inp, mid, 1, bias=False)
        self.bn1 = spec.norm(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, 1, bias=False)
        self.bn2 = spec.norm(mid)
        self.conv3 = nn.Conv2d(mid, out, 1, bias=False)
        self.bn3 = spec.norm(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(spec, inp, out, stride, project)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inp, H, W] -> [N, out, H/stride, W/stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def _shortcut(spec: ResNetSpec, inp: int, out: int, stride: int, project: bool) -> nn.Sequential | None:
    if not project:
        return None
    return nn.Sequential(nn.Conv2d(inp, out, 1, stride, bias=False), spec.norm(out))


class ResNet(nn.Module):
    """A residual network; norm scales start at `norm_scale` (CHEX: 0.5), convolutions Kaiming."""

    def __init__(self, spec: ResNetSpec, norm_scale: float = 1.0) -> None:
        super().__init__()
        self.spec = spec
        self.conv1 = (
            nn.Conv2d(spec.in_channels, spec.stem, 7, 2, 3, bias=False)
            if spec.large_stem
            else nn.Conv2d(spec.in_channels, spec.stem, 3, 1, 1, bias=False)
        )
        self.bn1 = spec.norm(spec.stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if spec.large_stem else nn.Identity()
        self.stages = [f"layer{s + 1}" for s in range(len(spec.depths))]
        inp, mids = spec.stem, iter(spec.mids)
        for name, depth, out, stride in zip(self.stages, spec.depths, spec.outs, spec.strides, strict=True):
            blocks: list[nn.Module] = []
            for b in range(depth):
                step = stride if b == 0 else 1
                if spec.block == "basic":
                    blocks.append(BasicBlock(spec, inp, next(mids), out, step))
                else:
                    blocks.append(Bottleneck(spec, inp, next(mids), out, step, project=b == 0))
                inp = out
            self.add_module(name, nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inp, spec.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.constant_(module.weight, norm_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> logits [N, num_classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


_IMAGENET: dict[str, tuple[Literal["basic", "bottleneck"], tuple[int, ...]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
}
_CIFAR = {"resnet20": 3, "resnet56": 9}
NAMES = (*_IMAGENET, *_CIFAR, "quick")


def resnet_spec(name: str, num_classes: int, in_channels: int = 3, groups: int = 0) -> ResNetSpec:
    """The specification of a named network (`NAMES`); see `ResNetSpec` for the arguments.

    Raises:
        ValueError: unknown name.
    """
    common = {"num_classes": num_classes, "in_channels": in_channels, "groups": groups}
    if name in _IMAGENET:
        block, depths = _IMAGENET[name]
        widths = (64, 128, 256, 512)
        mids = tuple(w for w, depth in zip(widths, depths, strict=True) for _ in range(depth))
        outs = widths if block == "basic" else tuple(4 * w for w in widths)
        return ResNetSpec(block, 64, True, depths, outs, mids, (1, 2, 2, 2), **common)
    if name in _CIFAR:
        depth = _CIFAR[name]
        mids = (16,) * depth + (32,) * depth + (64,) * depth
        return ResNetSpec("basic", 16, False, (depth,) * 3, (16, 32, 64), mids, (1, 2, 2), **common)
    if name == "quick":
        mids = (16, 24, 24, 32)
        return ResNetSpec("bottleneck", 12, False, (1, 2, 1), (32, 48, 64), mids, (2, 2, 2), **common)
    raise ValueError(f"unknown network {name!r}; choose from {', '.join(NAMES)}")


def build(
    name: str, num_classes: int, in_channels: int = 3, groups: int = 0, norm_scale: float = 1.0
) -> ResNet:
    """A freshly initialised network: resnet18/34/50/101 (ImageNet form), resnet20/56 (CIFAR form) or quick.

    Example:
        >>> build("quick", num_classes=10, in_channels=1)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    return ResNet(resnet_spec(name, num_classes, in_channels, groups), norm_scale)
