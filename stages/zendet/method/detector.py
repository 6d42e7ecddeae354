"""Detectors on a searched backbone: FCOS and RetinaNet (torchvision's) and GFLV2 (ours), all behind one interface.

As torchvision's: in training `detector(images, targets)` gives a dict of losses, in evaluation `detector(images)` a list
of dicts with boxes `[D, 4]` (x1, y1, x2, y2 in pixels), scores and labels `[D]` (0 .. classes - 1). Images are float in
0 .. 1, of any sizes; they are resized, normalised and padded to multiples of 32.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import batched_nms, generalized_box_iou_loss

from stages.zendet.method.atss import assign, centres, grid_anchors
from stages.zendet.method.gfl import GFLHead, distribution_focal_loss, integral, quality_focal_loss
from stages.zendet.method.masternet import MasterNet
from stages.zendet.method.metrics import Target
from stages.zendet.method.structure import Structure

HeadName = Literal["fcos", "retinanet", "gfl"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCORE, NMS, CANDIDATES, DETECTIONS = 0.05, 0.6, 1000, 100
BOX_WEIGHT, DFL_WEIGHT = 2.0, 0.25
CENTRE_RADIUS = 1.5  # strides around an object's centre where FCOS has its positives
BIN_MARGIN = 0.1  # targets stay this far below the last bin


@dataclass(frozen=True)
class DetectorConfig:
    """Neck and head: `channels` of both, `convs` per branch, `levels` from P3 on, `groups` of group norm.

    `sizes` are the short sides of training (one is drawn; the last serves the test), `longest` caps the long side.
    """

    head: HeadName
    classes: int
    channels: int = 256
    convs: int = 4
    levels: int = 5
    groups: int = 32
    sizes: tuple[int, ...] = (800,)
    longest: int = 1333

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the levels."""
        return tuple(8 * 2**level for level in range(self.levels))


class FPN(nn.Module):
    """Feature pyramid on C3 .. C5; levels beyond come from stride-2 convolutions on the level before.

    Module names are those of the authors' checkpoints (MMDetection's neck).
    """

    def __init__(self, channels_in: Sequence[int], channels: int, levels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(_Conv(cin, channels, 1) for cin in channels_in)
        self.fpn_convs = nn.ModuleList(
            _Conv(channels, channels, 3, stride=1 if level < len(channels_in) else 2)
            for level in range(levels)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """C3 .. C5 to P3, P4, ..."""
        maps = [lateral(x) for lateral, x in zip(self.lateral_convs, features, strict=True)]
        for lower in range(len(maps) - 2, -1, -1):
            maps[lower] = maps[lower] + F.interpolate(maps[lower + 1], maps[lower].shape[-2:])
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, maps, strict=False)]
        for conv in self.fpn_convs[len(maps) :]:
            outputs.append(conv(outputs[-1]))
        return outputs


class _Conv(nn.Module):
    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.conv(x_BCHW)
        return y_BCHW


class Pyramid(nn.Module):
    """Backbone and neck, as torchvision's detectors want them."""

    def __init__(self, body: MasterNet, config: DetectorConfig) -> None:
        super().__init__()
        self.body, self.neck = body, FPN(body.out_channels, config.channels, config.levels)
        self.out_channels = config.channels

    def forward(self, x_BCHW: Tensor) -> OrderedDict[str, Tensor]:
        """Images to P3, P4, ... by name, in order."""
        return OrderedDict((f"p{i}", p) for i, p in enumerate(self.neck(self.body(x_BCHW)), 3))


def build_detector(structure: Structure, config: DetectorConfig, zero_residual: bool = False) -> nn.Module:
    """A detector on the stages C3 .. C5 of a structure, its weights fresh."""
    pyramid = Pyramid(MasterNet(structure, (2, 3, 4), zero_residual), config)
    norm = partial(nn.GroupNorm, config.groups)
    common = {
        "min_size": config.sizes, "max_size": config.longest, "image_mean": MEAN, "image_std": STD,
        "score_thresh": SCORE, "nms_thresh": NMS, "detections_per_img": DETECTIONS,
        "topk_candidates": CANDIDATES,
    }  # fmt: skip
    match config.head:
        case "gfl":
            return GFLDetector(pyramid, config)
        case "fcos":
            anchors = AnchorGenerator(
                tuple((_fcos_size(s, config),) for s in config.strides), ((1.0,),) * config.levels
            )
            head = FCOSHead(config.channels, 1, config.classes, num_convs=0)
            head.classification_head = FCOSClassificationHead(
                config.channels, 1, config.classes, num_convs=config.convs, norm_layer=norm
            )
            head.regression_head = FCOSRegressionHead(
                config.channels, 1, num_convs=config.convs, norm_layer=norm
            )
            # torchvision measures the radius in anchor sides, which are not the strides here
            radius = CENTRE_RADIUS * config.strides[0] / _fcos_size(config.strides[0], config)
            return FCOS(
                pyramid,
                config.classes,
                center_sampling_radius=radius,
                anchor_generator=anchors,
                head=head,
                **common,
            )
        case _:
            scales = tuple(tuple(round(4 * s * 2 ** (i / 3)) for i in range(3)) for s in config.strides)
            sized = AnchorGenerator(scales, ((0.5, 1.0, 2.0),) * config.levels)
            return RetinaNet(
                pyramid,
                config.classes,
                anchor_generator=sized,
                head=RetinaNetHead(config.channels, 9, config.classes, norm_layer=norm),
                **common,
            )


def _fcos_size(stride: int, config: DetectorConfig) -> int:
    """Side that FCOS measures a level's objects in: the stride at 800 px, proportionally smaller for small images.

    A level takes objects of 4 to 8 times it, so that in images of 128 px, too, they spread over the levels.
    """
    return max(1, round(stride * min(1.0, config.sizes[-1] / 512)))


class GFLDetector(nn.Module):
    """GFLV2: ATSS assignment, quality and distribution focal loss, GIoU loss."""

    def __init__(self, pyramid: Pyramid, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.transform = GeneralizedRCNNTransform(config.sizes, config.longest, MEAN, STD)
        self.backbone = pyramid
        channels = config.channels
        self.head = GFLHead(
            config.classes, channels, channels, config.convs, config.levels, groups=config.groups
        )

    def forward(
        self, images: list[Tensor], targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation."""
        originals = [(image.shape[-2], image.shape[-1]) for image in images]
        batch, targets = self.transform(images, targets)
        outputs = self.head(list(self.backbone(batch.tensors).values()))
        sizes = [(score.shape[-2], score.shape[-1]) for score, _ in outputs]
        anchors = grid_anchors(sizes, self.config.strides, batch.tensors.device)
        scores = [score.flatten(2).transpose(1, 2).float() for score, _ in outputs]  # [B, N_l, K]
        logits = [logit.flatten(2).transpose(1, 2) for _, logit in outputs]  # [B, N_l, 4 R]
        if self.training:
            assert targets is not None
            return self._losses(torch.cat(scores, 1), torch.cat(logits, 1), anchors, targets)
        detections = [
            self._detect([s[i] for s in scores], [b[i] for b in logits], anchors, batch.image_sizes[i])
            for i in range(len(images))
        ]
        return self.transform.postprocess(detections, batch.image_sizes, originals)

    def _losses(
        self, score_BNK: Tensor, logits_BNR: Tensor, anchors: list[Tensor], targets: list[Target]
    ) -> dict[str, Tensor]:
        strides_N, centre_N2 = self._strides(anchors), centres(torch.cat(anchors))
        counts = torch.tensor([len(target["boxes"]) for target in targets])
        first = (counts.cumsum(0) - counts).tolist()  # of each image's objects among those of the batch
        object_M4, label_M = (torch.cat([target[key] for target in targets]) for key in ("boxes", "labels"))
        owner_BN = torch.stack([assign(anchors, target["boxes"]) for target in targets])
        image_P, anchor_P = (owner_BN >= 0).nonzero(as_tuple=True)
        own_P = owner_BN[image_P, anchor_P] + torch.tensor(first, device=owner_BN.device)[image_P]
        box_P4, stride_P1, centre_P2 = object_M4[own_P], strides_N[anchor_P, None], centre_N2[anchor_P]
        logits_P = logits_BNR[image_P, anchor_P]
        predicted_P4 = _decode(centre_P2, integral(logits_P) * stride_P1)

        label_BN = torch.full_like(owner_BN, self.config.classes)
        label_BN[image_P, anchor_P] = label_M[own_P]
        quality_BN = score_BNK.new_zeros(owner_BN.shape)
        quality_BN[image_P, anchor_P] = _paired_iou(predicted_P4.detach(), box_P4)
        weight_P = score_BNK[image_P, anchor_P].detach().amax(1)
        positives, total = max(len(weight_P), 1), weight_P.sum().clamp(min=1e-6)
        quality = quality_focal_loss(score_BNK.flatten(0, 1), label_BN.flatten(), quality_BN.flatten())
        giou = generalized_box_iou_loss(predicted_P4 / stride_P1, box_P4 / stride_P1)
        distance_P4 = torch.cat([centre_P2 - box_P4[:, :2], box_P4[:, 2:] - centre_P2], 1) / stride_P1
        dfl = distribution_focal_loss(
            logits_P.unflatten(1, (4, -1)).flatten(0, 1),
            distance_P4.clamp(0, self.head.reg_max - BIN_MARGIN).flatten(),
        )
        return {
            "quality": quality.sum() / positives,
            "giou": BOX_WEIGHT * (giou * weight_P).sum() / total,
            "distribution": DFL_WEIGHT * (dfl.view(-1, 4).mean(1) * weight_P).sum() / total,
        }

    def _strides(self, anchors: list[Tensor]) -> Tensor:
        """Stride of every anchor, `[N]`."""
        return torch.cat(
            [
                torch.full((len(a),), float(s), device=a.device)
                for a, s in zip(anchors, self.config.strides, strict=True)
            ]
        )

    def _detect(
        self, scores: list[Tensor], logits: list[Tensor], anchors: list[Tensor], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        boxes, kept, labels = [], [], []
        for score_NK, logits_NR, anchor_N4, stride in zip(
            scores, logits, anchors, self.config.strides, strict=True
        ):
            flat = score_NK.flatten()
            candidates = flat.topk(min(CANDIDATES, len(flat)))
            chosen = candidates.indices[candidates.values > SCORE]
            row, label = chosen // score_NK.shape[1], chosen % score_NK.shape[1]
            box = _decode(centres(anchor_N4[row]), integral(logits_NR[row]) * stride)
            boxes.append(
                torch.stack([box[:, 0::2].clamp(0, size[1]), box[:, 1::2].clamp(0, size[0])], -1).flatten(1)
            )
            kept.append(flat[chosen])
            labels.append(label)
        box_D4, score_D, label_D = torch.cat(boxes), torch.cat(kept), torch.cat(labels)
        keep = batched_nms(box_D4, score_D, label_D, NMS)[:DETECTIONS]
        return {"boxes": box_D4[keep], "scores": score_D[keep], "labels": label_D[keep]}


def _paired_iou(a_P4: Tensor, b_P4: Tensor) -> Tensor:
    """IoU of each box with the one at the same place, `[P]`."""
    overlap_P2 = (torch.minimum(a_P4[:, 2:], b_P4[:, 2:]) - torch.maximum(a_P4[:, :2], b_P4[:, :2])).clamp(
        min=0
    )
    overlap_P = overlap_P2.prod(1)
    areas = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(1) for box in (a_P4, b_P4)]
    return overlap_P / (areas[0] + areas[1] - overlap_P).clamp(min=1e-6)


def _decode(centre_N2: Tensor, distance_N4: Tensor) -> Tensor:
    """Boxes from centres and distances to the left, top, right and bottom side."""
    return torch.cat([centre_N2 - distance_N4[:, :2], centre_N2 + distance_N4[:, 2:]], 1)
