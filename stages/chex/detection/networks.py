"""The detectors of tables T2 and T3 and what of them is pruned: the body's channel groups."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from stages.chex.detection.params import DetectorName, NetName
from stages.chex.detection.ssd import SSD, SSDNet, SSDSpec
from stages.chex.method.resnet import Bottleneck, ResNet, ResNetSpec, resnet_spec
from stages.common.dense.detectors import MaskRCNNConfig, mask_rcnn

BODY: dict[DetectorName, str] = {"ssd": "net.body", "mask-rcnn": "backbone.body"}  # what is pruned
NORM_SCALE = (
    0.5  # first value of the body's norm scales, as in classification (card, "Classification recipe")
)

SSD_SPECS: dict[NetName, SSDSpec] = {
    "resnet50": SSDSpec(
        size=300,
        maps=(38, 19, 10, 5, 3, 1),
        steps=(8, 16, 32, 64, 100, 300),
        scales=(21, 45, 99, 153, 207, 261, 315),
        ratios=((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        extras=((256, 512, 2, 1), (256, 512, 2, 1), (128, 256, 2, 1), (128, 256, 1, 0), (128, 256, 1, 0)),
    ),
    "quick": SSDSpec(
        size=64,
        maps=(8, 4, 2),
        steps=(8, 16, 32),
        scales=(10, 17, 27, 38),
        ratios=((2,), (2,), (2,)),
        extras=((32, 64, 2, 1), (32, 64, 2, 1)),
    ),
}
MASK_RCNN: dict[NetName, MaskRCNNConfig] = {
    "resnet50": MaskRCNNConfig(),
    "quick": MaskRCNNConfig(
        channels=24, strides=(4, 8, 16), anchor_scale=2.5, box_features=64, mask_channels=(24, 24), proposals=64,
        regions=16, sizes=(64,), longest=64, detections=20,
    ),
}  # fmt: skip


class Stages(ResNet):
    """A ResNet without its classifier, which gives the maps of its stages by name ("0" the finest)."""

    def __init__(self, spec: ResNetSpec, norm_scale: float = NORM_SCALE) -> None:
        super().__init__(spec, norm_scale)
        del self.avgpool, self.fc

    def maps(self, x_BCHW: Tensor) -> list[Tensor]:
        """The map of every stage."""
        x_BCHW = self.maxpool(self.relu(self.bn1(self.conv1(x_BCHW))))
        found = []
        for name in self.stages:
            x_BCHW = self.get_submodule(name)(x_BCHW)
            found.append(x_BCHW)
        return found

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Images [B, 3, H, W] -> maps by name."""
        return {str(place): x for place, x in enumerate(self.maps(x_BCHW))}


class LastStage(Stages):
    """The same, of which only the last map is wanted."""

    def forward(self, x_BCHW: Tensor) -> Tensor:  # type: ignore[override]
        """Images [B, 3, H, W] -> [B, C, h, w]."""
        return self.maps(x_BCHW)[-1]


def ssd_body(net: NetName) -> LastStage:
    """ResNet-50 (or the quick net) up to its third stage, which keeps the resolution of the second one; BatchNorm."""
    spec = replace(resnet_spec("resnet50", 1), depths=(3, 4, 6)) if net == "resnet50" else _quick()
    blocks = sum(spec.depths)
    return LastStage(replace(spec, mids=spec.mids[:blocks], outs=spec.outs[:3], strides=(1, 2, 1)))


def mask_rcnn_body(net: NetName) -> Stages:
    """ResNet-50 (or the quick net), GroupNorm, with the stride in the first 1x1 convolution of a block."""
    spec = resnet_spec("resnet50", 1, groups=32) if net == "resnet50" else replace(_quick(), groups=4)
    body = Stages(spec)
    for module in body.modules():
        if isinstance(module, Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
    return body


def _quick() -> ResNetSpec:
    return ResNetSpec("bottleneck", 8, True, (1, 1, 1), (32, 48, 64), (32, 32, 48), (1, 2, 2), 1)


def detector(name: DetectorName, net: NetName, classes: int, seed: int) -> nn.Module:
    """The untrained detector of a seed, for `classes` classes besides the background."""
    torch.manual_seed(seed)
    if name == "ssd":
        spec, body = SSD_SPECS[net], ssd_body(net)
        return SSD(SSDNet(body, body.spec.outs[-1], classes + 1, spec), classes + 1, spec)
    maps = mask_rcnn_body(net)
    return mask_rcnn(maps, maps.spec.outs, classes, MASK_RCNN[net])


def body_example(name: DetectorName, net: NetName, batch: int = 1) -> Tensor:
    """An input of the body at the size that its cost is counted for (card, "Metrics"), [B, 3, H, W]."""
    if name == "ssd":
        return torch.zeros(batch, 3, SSD_SPECS[net].size, SSD_SPECS[net].size)
    config = MASK_RCNN[net]
    sides = (800, 1344) if net == "resnet50" else (config.sizes[-1], config.longest)
    return torch.zeros(batch, 3, *sides)
