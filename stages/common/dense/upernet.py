"""UPerNet (Xiao et al., arXiv 1807.10221): a pyramid pooling module on the coarsest map, a feature pyramid, one fused map.

With the auxiliary FCN head that Swin and ELSA train it with. Legend: B images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common.dense.coco import Target
from stages.common.dense.detectors import MEAN, STD
from stages.common.dense.semantic import IGNORED


@dataclass(frozen=True)
class UPerNetConfig:
    """Sizes of a UPerNet; the defaults are ADE20K's (card, "Training recipes").

    Attributes:
        channels: of the pyramid. pools: sides of the pooled maps.
        auxiliary_channels: of the FCN head on the last but one map. auxiliary_weight: of its loss.
        dropout: of whole channels before each classifier.
    """

    channels: int = 512
    pools: tuple[int, ...] = (1, 2, 3, 6)
    auxiliary_channels: int = 256
    auxiliary_weight: float = 0.4
    dropout: float = 0.1


def _conv(cin: int, cout: int, kernel: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU; the size stays."""
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(cout), nn.ReLU()
    )


def _resize(x_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x_BCHW, tuple(size), mode="bilinear", align_corners=False)


class PyramidPooling(nn.Module):
    """A map beside itself pooled to a few sizes, fused: `[B, C, H, W]` to `[B, channels, H, W]` (PSPNet's module)."""

    def __init__(self, cin: int, channels: int, pools: Sequence[int]) -> None:
        super().__init__()
        self.pools = tuple(pools)
        self.branches = nn.ModuleList(_conv(cin, channels, 1) for _ in pools)
        self.fuse = _conv(cin + len(self.pools) * channels, channels, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Pool, project, resize, concatenate, fuse."""
        pooled = [
            _resize(branch(F.adaptive_avg_pool2d(x_BCHW, side)), x_BCHW.shape[-2:])
            for branch, side in zip(self.branches, self.pools, strict=True)
        ]
        return self.fuse(torch.cat([x_BCHW, *pooled], 1))


class UPerHead(nn.Module):
    """Maps of a backbone, finest first, to logits `[B, K, H_0, W_0]`."""

    def __init__(self, in_channels: Sequence[int], classes: int, config: UPerNetConfig) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        channels = config.channels
        self.pooling = PyramidPooling(coarsest, channels, config.pools)
        self.laterals = nn.ModuleList(_conv(cin, channels, 1) for cin in finer)
        self.smooth = nn.ModuleList(_conv(channels, channels, 3) for _ in finer)
        self.fuse = _conv(len(in_channels) * channels, channels, 3)
        self.classify = nn.Sequential(nn.Dropout2d(config.dropout), nn.Conv2d(channels, classes, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Top-down sums, then all levels at the finest size."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps[:-1], strict=True)]
        levels.append(self.pooling(maps[-1]))
        for lower in range(len(levels) - 2, -1, -1):
            levels[lower] = levels[lower] + _resize(levels[lower + 1], levels[lower].shape[-2:])
        smoothed = [smooth(x) for smooth, x in zip(self.smooth, levels[:-1], strict=True)]
        size = levels[0].shape[-2:]
        return self.classify(self.fuse(torch.cat([_resize(x, size) for x in (*smoothed, levels[-1])], 1)))


class UPerNet(nn.Module):
    """Semantic segmentation on a backbone that maps images to a dict of maps, finest first.

    In training `network(images, targets)` gives a dict of losses, in evaluation `network(images)` logits
    `[K, H, W]` of each image. Images are 0 .. 1, `[3, H, W]`; a target has `semantic` `[H, W]`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, body: nn.Module, in_channels: Sequence[int], classes: int, config: UPerNetConfig
    ) -> None:
        super().__init__()
        self.body, self.config = body, config
        self.head = UPerHead(in_channels, classes, config)
        self.auxiliary = nn.Sequential(
            _conv(in_channels[-2], config.auxiliary_channels, 3),
            nn.Dropout2d(config.dropout),
            nn.Conv2d(config.auxiliary_channels, classes, 1),
        )
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(
        self, images: list[Tensor], targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Tensor]:
        """Losses in training (images of one size), logits in evaluation (of any sizes)."""
        if not self.training:
            one_size = len({image.shape for image in images}) == 1
            batches = [torch.stack(images)] if one_size else [image[None] for image in images]
            logits = [_resize(self.head(self._maps(x)), x.shape[-2:]).float() for x in batches]
            return [logits_KHW for logits_BKHW in logits for logits_KHW in logits_BKHW]
        assert targets is not None
        label_BHW = torch.stack([target["semantic"] for target in targets])
        maps = self._maps(torch.stack(images))
        return {
            "segmentation": _loss(self.head(maps), label_BHW),
            "auxiliary": self.config.auxiliary_weight * _loss(self.auxiliary(maps[-2]), label_BHW),
        }

    def _maps(self, x_BCHW: Tensor) -> list[Tensor]:
        return list(self.body((x_BCHW - self.mean) / self.std).values())


def _loss(logits_BKHW: Tensor, label_BHW: Tensor) -> Tensor:
    """Cross-entropy at the labels' size."""
    logits_BKHW = _resize(logits_BKHW, label_BHW.shape[-2:]).float()
    return F.cross_entropy(logits_BKHW, label_BHW, ignore_index=IGNORED)
