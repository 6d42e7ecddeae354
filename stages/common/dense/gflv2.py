"""GFLV2 as a detector: one stage, no anchors to choose, boxes as distributions (Li et al., CVPR 2021).

Called as torchvision's detectors: `detector(images, targets)` gives a dict of losses in training, `detector(images)` a list
of dicts in evaluation: boxes `[D, 4]` (x1, y1, x2, y2 in pixels), scores and labels `[D]`. Images are 0 .. 1, of any sizes;
labels are 0 .. classes - 1, there is no background class.

Legend: B images, N positions of all levels, K classes, R bins of a distance, P positive positions, M objects of a batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import batched_nms, generalized_box_iou_loss

from stages.common.dense.atss import assign, centres, grid_anchors
from stages.common.dense.coco import Target
from stages.common.dense.detectors import MEAN, STD
from stages.common.dense.gfl import GFLHead, distribution_focal_loss, integral, quality_focal_loss

SCORE, NMS, CANDIDATES, DETECTIONS = 0.05, 0.6, 1000, 100  # of the test; candidates are per level
BOX_WEIGHT, DFL_WEIGHT = 2.0, 0.25
BIN_MARGIN = 0.1  # target distances stay this far below the last bin


@dataclass(frozen=True)
class GFLV2Config:
    """Sizes of a GFLV2; the defaults are those of COCO (MMDetection).

    Attributes:
        strides: of the pyramid's maps, pixels. convs: of each branch of the head. groups: of group norm.
        sizes: short sides of training, one is drawn; the last one is the test's. longest: bound of the long side.
    """

    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    convs: int = 4
    groups: int = 32
    sizes: tuple[int, ...] = (800,)
    longest: int = 1333


class GFLV2(nn.Module):
    """ATSS assignment, quality and distribution focal loss, GIoU loss, and non-maximum suppression.

    `pyramid` maps images `[B, 3, H, W]` (sides are multiples of 32) to a dict of maps of `pyramid.out_channels` channels,
    finest first, one for each of `config.strides`.
    """

    def __init__(self, pyramid: nn.Module, classes: int, config: GFLV2Config) -> None:
        super().__init__()
        self.classes, self.strides = classes, config.strides
        self.transform = GeneralizedRCNNTransform(config.sizes, config.longest, MEAN, STD)
        self.backbone = pyramid
        channels = int(pyramid.out_channels)  # type: ignore[arg-type]
        levels = len(config.strides)
        self.head = GFLHead(classes, channels, channels, config.convs, levels, groups=config.groups)

    def forward(
        self, images: list[Tensor], targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation."""
        originals = [(image.shape[-2], image.shape[-1]) for image in images]
        batch, targets = self.transform(images, targets)
        outputs = self.head(list(self.backbone(batch.tensors).values()))
        sizes = [(score.shape[-2], score.shape[-1]) for score, _ in outputs]
        anchors = grid_anchors(sizes, self.strides, batch.tensors.device)
        scores = [score.flatten(2).transpose(1, 2).float() for score, _ in outputs]  # [B, N_l, K]
        logits = [logit.flatten(2).transpose(1, 2) for _, logit in outputs]  # [B, N_l, 4 R]
        if self.training:
            assert targets is not None
            with torch.autocast(batch.tensors.device.type, enabled=False):  # cross entropy of probabilities
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

        label_BN = torch.full_like(owner_BN, self.classes)
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
                for a, s in zip(anchors, self.strides, strict=True)
            ]
        )

    def _detect(
        self, scores: list[Tensor], logits: list[Tensor], anchors: list[Tensor], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        boxes, kept, labels = [], [], []
        for score_NK, logits_NR, anchor_N4, stride in zip(scores, logits, anchors, self.strides, strict=True):
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
    low_P2, high_P2 = torch.maximum(a_P4[:, :2], b_P4[:, :2]), torch.minimum(a_P4[:, 2:], b_P4[:, 2:])
    overlap_P = (high_P2 - low_P2).clamp(min=0).prod(1)
    areas = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(1) for box in (a_P4, b_P4)]
    return overlap_P / (areas[0] + areas[1] - overlap_P).clamp(min=1e-6)


def _decode(centre_N2: Tensor, distance_N4: Tensor) -> Tensor:
    """Boxes from centres and distances to the left, top, right and bottom side."""
    return torch.cat([centre_N2 - distance_N4[:, :2], centre_N2 + distance_N4[:, 2:]], 1)
