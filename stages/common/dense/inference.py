"""Running trained networks on a test set. Legend: K classes, H W size of an image."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from stages.common.dense.average_precision import coco_results
from stages.common.dense.batches import Item, as_lists
from stages.common.dense.coco import CocoImages, Target
from stages.common.dense.mean_iou import confusion
from stages.common.dense.semantic import AdeImages
from stages.common.dense.training import allow_fast_kernels

BATCH = 16


def _batches(
    images: Dataset[Item], count: int, workers: int
) -> Iterator[tuple[list[int], list[Tensor], list[Target]]]:
    """All images in order: indices, images and targets."""
    order = [list(range(i, min(i + BATCH, count))) for i in range(0, count, BATCH)]
    loader = DataLoader(images, batch_sampler=order, num_workers=workers, collate_fn=as_lists)
    for indices, (pictures, targets) in zip(order, loader, strict=True):
        yield indices, pictures, targets


@torch.no_grad()
def detect(
    model: nn.Module, images: CocoImages, device: torch.device, workers: int = 0
) -> list[dict[str, Any]]:
    """What a detector finds in all images, as COCO's result files have it."""
    allow_fast_kernels(device)
    model.eval()
    found: list[dict[str, Any]] = []
    for indices, pictures, _ in _batches(images, len(images), workers):
        detections = model([picture.to(device) for picture in pictures])
        for index, detection in zip(indices, detections, strict=True):
            found += coco_results(images.ids[index], detection, images.categories)
    return found


@torch.no_grad()
def segment(
    model: nn.Module,
    images: AdeImages,
    device: torch.device,
    ratios: Sequence[float] = (1.0,),
    mirrored: bool = False,
    workers: int = 0,
) -> Tensor:
    """Confusion `[K, K]` over all images; probabilities are averaged over sizes (`ratios`) and mirror images."""
    model.eval()
    total_KK = torch.zeros(images.classes, images.classes, dtype=torch.long)
    for _, pictures, targets in _batches(images, len(images), workers):
        inputs = [picture.to(device) for picture in pictures]
        sums = [torch.zeros(1, images.classes, *x.shape[-2:], device=device) for x in inputs]
        for ratio in ratios:
            scaled = [x if ratio == 1 else _resize(x, ratio) for x in inputs]
            for flipped in (False, True) if mirrored else (False,):
                logits = model([x.flip(-1) for x in scaled] if flipped else scaled)
                for sum_1KHW, logits_KHW in zip(sums, logits, strict=True):
                    straight_KHW = logits_KHW.flip(-1) if flipped else logits_KHW
                    sum_1KHW += F.interpolate(
                        straight_KHW.softmax(0)[None], sum_1KHW.shape[-2:], mode="bilinear"
                    )
        for sum_1KHW, target in zip(sums, targets, strict=True):
            total_KK += confusion(sum_1KHW[0].argmax(0).cpu(), target["semantic"], images.classes)
    return total_KK


def _resize(x_CHW: Tensor, ratio: float) -> Tensor:
    return F.interpolate(x_CHW[None], scale_factor=ratio, mode="bilinear")[0]
