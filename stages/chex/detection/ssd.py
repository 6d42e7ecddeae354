"""SSD as the paper prunes it: a ResNet cut after its third stage, extra blocks, a head on every map.

Boxes, matching, loss and decoding follow the card, "Detection"; golden cases hold them equal to the authors' (`ssd_pieces`).

Shapes: B images, H W pixels, A default boxes, K classes with the background as class 0, G objects of an image, D detections.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert, box_iou

from stages.common.dense.detectors import MEAN, STD

VARIANCE_CENTRE, VARIANCE_SIZE = 0.1, 0.2  # offsets are divided by them
MATCH_IOU = 0.5
NEGATIVES = 3  # hardest background boxes in the loss, per matched box
SCORE, NMS_IOU, MOST = 0.05, 0.5, 200  # of decoding; MOST per class, and in all


@dataclass(frozen=True)
class SSDSpec:
    """What an SSD looks like behind its body.

    Attributes:
        size: side of the square that images are resized to, pixels.
        maps: side of every map.
        steps: pixels between the default boxes of a map.
        scales: side of a map's smaller square default box, pixels; one more at the end.
        ratios: further shapes of a map's default boxes, each with its inverse.
        extras: inner width, width, stride and padding of the block that makes the next map.
    """

    size: int
    maps: tuple[int, ...]
    steps: tuple[int, ...]
    scales: tuple[float, ...]
    ratios: tuple[tuple[int, ...], ...]
    extras: tuple[tuple[int, int, int, int], ...]

    def boxes_per_place(self) -> list[int]:
        """Default boxes at every place of each map."""
        return [2 + 2 * len(ratios) for ratios in self.ratios]


def default_boxes(spec: SSDSpec) -> Tensor:
    """All default boxes, [A, 4], centre and size as fractions of the image: by map, shape, row and column."""
    boxes = []
    for place, (side, step, ratios) in enumerate(zip(spec.maps, spec.steps, spec.ratios, strict=True)):
        small, large = spec.scales[place] / spec.size, spec.scales[place + 1] / spec.size
        shapes = [(small, small), (math.sqrt(small * large),) * 2]
        for ratio in ratios:
            wide, narrow = small * math.sqrt(ratio), small / math.sqrt(ratio)
            shapes += [(wide, narrow), (narrow, wide)]
        for (width, height), row, column in itertools.product(shapes, range(side), range(side)):
            centre = ((column + 0.5) * step / spec.size, (row + 0.5) * step / spec.size)
            boxes.append((*centre, width, height))
    return torch.tensor(boxes).clamp_(0, 1)


def match(default_A4: Tensor, box_G4: Tensor, label_G: Tensor) -> tuple[Tensor, Tensor]:
    """Which object every default box stands for.

    A box takes the object that it overlaps most, if by more than `MATCH_IOU`; and every object takes the box that
    overlaps it most.

    Args:
        default_A4: centre and size. box_G4: corners; both as fractions of the image.
        label_G: 1 .. K - 1.

    Returns:
        [A, 4] the object's centre and size (the default box itself where there is none), and [A] its label (0).
    """
    label_A = torch.zeros(len(default_A4), dtype=torch.long, device=default_A4.device)
    if not len(box_G4):
        return default_A4.clone(), label_A
    iou_GA = box_iou(box_G4, box_convert(default_A4, "cxcywh", "xyxy"))
    overlap_A, object_A = iou_GA.max(0)
    best_G = iou_GA.argmax(1)
    overlap_A[best_G] = 2.0
    object_A[best_G] = torch.arange(len(box_G4), device=object_A.device)
    matched_A = overlap_A > MATCH_IOU
    label_A[matched_A] = label_G[object_A[matched_A]]
    target_A4 = torch.where(matched_A[:, None], box_convert(box_G4, "xyxy", "cxcywh")[object_A], default_A4)
    return target_A4, label_A


def offsets(default_A4: Tensor, target_A4: Tensor) -> Tensor:
    """What the network predicts for a box: its place and size relative to the default box, [..., A, 4]."""
    centre = (target_A4[..., :2] - default_A4[:, :2]) / default_A4[:, 2:] / VARIANCE_CENTRE
    size = (target_A4[..., 2:] / default_A4[:, 2:]).log() / VARIANCE_SIZE
    return torch.cat([centre, size], -1)


def ssd_loss(
    offset_B4A: Tensor, logit_BKA: Tensor, target_B4A: Tensor, label_BA: Tensor
) -> tuple[Tensor, Tensor]:
    """Box and class loss: per image the sum over boxes, divided by how many are matched (0 if none are); mean over images.

    Classes: cross-entropy of the matched boxes and of the hardest background ones, `NEGATIVES` for each matched one.
    """
    matched_BA = label_BA > 0
    count_B = matched_BA.sum(1)
    box_BA = F.smooth_l1_loss(offset_B4A, target_B4A, reduction="none").sum(1)
    class_BA = F.cross_entropy(logit_BKA, label_BA, reduction="none")
    background_BA = class_BA.detach().masked_fill(matched_BA, 0.0)
    rank_BA = background_BA.argsort(1, descending=True).argsort(1)
    hard_BA = rank_BA < (NEGATIVES * count_B).clamp_max(label_BA.shape[1])[:, None]
    weight_B = torch.where(count_B > 0, 1 / count_B.clamp_min(1), 0.0)
    box_B = (box_BA * matched_BA).sum(1)
    class_B = (class_BA * (matched_BA.float() + hard_BA.float())).sum(1)
    return (box_B * weight_B).mean(), (class_B * weight_B).mean()


def decode(
    default_A4: Tensor, offset_4A: Tensor, logit_KA: Tensor, nms_iou: float = NMS_IOU, most: int = MOST
) -> dict[str, Tensor]:
    """Detections of one image, best first: boxes [D, 4] (corners, fractions of the image), scores and labels [D]."""
    offset_A4 = offset_4A.T
    centre_A2 = offset_A4[:, :2] * VARIANCE_CENTRE * default_A4[:, 2:] + default_A4[:, :2]
    size_A2 = (offset_A4[:, 2:] * VARIANCE_SIZE).exp() * default_A4[:, 2:]
    box_A4 = box_convert(torch.cat([centre_A2, size_A2], 1), "cxcywh", "xyxy")
    score_KA = logit_KA.float().softmax(0)
    kept = []
    for label in range(1, len(score_KA)):
        candidates = (score_KA[label] > SCORE).nonzero()[:, 0]
        best = candidates[score_KA[label, candidates].argsort(descending=True, stable=True)[:most]]
        kept.append(torch.stack([torch.full_like(best, label), best], 1))
    label_D, place_D = torch.cat(kept).unbind(1)
    score_D, box_D4 = score_KA[label_D, place_D], box_A4[place_D]
    chosen = batched_nms(box_D4, score_D, label_D, nms_iou)[:most]
    return {"boxes": box_D4[chosen], "scores": score_D[chosen], "labels": label_D[chosen]}


def extra_block(before: int, inner: int, width: int, stride: int, padding: int) -> nn.Sequential:
    """1x1, then 3x3 to the next map, each with norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(before, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(inplace=True),
        nn.Conv2d(inner, width, 3, stride, padding, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
    )  # fmt: skip


class SSDNet(nn.Module):
    """Body, extra blocks and heads: convolutions only, so that the coupling analysis can follow all of it.

    Args:
        body: [B, 3, H, W] -> [B, width, H/8, W/8].
        width: channels of its map.
        classes: K, the background included.
        spec: the rest.
    """

    def __init__(self, body: nn.Module, width: int, classes: int, spec: SSDSpec) -> None:
        super().__init__()
        self.body = body
        widths = [width, *(out for _, out, _, _ in spec.extras)]
        self.extras = nn.ModuleList(
            [extra_block(before, *block) for before, block in zip(widths, spec.extras, strict=False)]
        )
        heads = list(zip(widths, spec.boxes_per_place(), strict=True))
        self.offsets = nn.ModuleList([nn.Conv2d(before, 4 * boxes, 3, padding=1) for before, boxes in heads])
        self.logits = nn.ModuleList(
            [nn.Conv2d(before, classes * boxes, 3, padding=1) for before, boxes in heads]
        )
        for part in (self.extras, self.offsets, self.logits):
            for parameter in part.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)

    def forward(self, x_B3HW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of every map the offsets [B, 4 * boxes, h, w] and the logits [B, K * boxes, h, w]."""
        maps = [self.body(x_B3HW)]
        for block in self.extras:
            maps.append(block(maps[-1]))
        return (
            [head(x) for head, x in zip(self.offsets, maps, strict=True)],
            [head(x) for head, x in zip(self.logits, maps, strict=True)],
        )


class SSD(nn.Module):
    """The detector, called as torchvision's: losses of images and targets in training, detections of images otherwise."""

    default_A4: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, net: SSDNet, classes: int, spec: SSDSpec) -> None:
        super().__init__()
        self.net, self.classes, self.size = net, classes, spec.size
        self.register_buffer("default_A4", default_boxes(spec), persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def predict(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Offsets [B, 4, A] and logits [B, K, A] of images [3, H, W] in 0 .. 1, of any sizes."""
        square = [
            F.interpolate(image[None], (self.size, self.size), mode="bilinear", antialias=True)[0]
            if image.shape[1:] != (self.size, self.size) else image
            for image in images
        ]  # fmt: skip
        offset_maps, logit_maps = self.net((torch.stack(square) - self.mean) / self.std)
        batch = len(images)
        return (
            torch.cat([x.reshape(batch, 4, -1) for x in offset_maps], 2),
            torch.cat([x.reshape(batch, self.classes, -1) for x in logit_maps], 2),
        )

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """See the class; boxes are corners in pixels of the image."""
        offset_B4A, logit_BKA = self.predict(images)
        sizes = [image.new_tensor([image.shape[2], image.shape[1]] * 2) for image in images]
        if self.training:
            assert targets is not None
            pairs = [
                match(self.default_A4, target["boxes"] / size, target["labels"])
                for target, size in zip(targets, sizes, strict=True)
            ]
            target_BA4 = offsets(self.default_A4, torch.stack([box for box, _ in pairs]))
            label_BA = torch.stack([label for _, label in pairs])
            box_loss, class_loss = ssd_loss(offset_B4A.float(), logit_BKA.float(), target_BA4.mT, label_BA)
            return {"box": box_loss, "class": class_loss}
        found = []
        for offset_4A, logit_KA, size in zip(offset_B4A.float(), logit_BKA, sizes, strict=True):
            detections = decode(self.default_A4, offset_4A, logit_KA)
            boxes_D4 = (detections["boxes"] * size).clamp_min(0).minimum(size)
            found.append({**detections, "boxes": boxes_D4})
        return found
