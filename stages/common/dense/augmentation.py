"""The papers' augmentations as `batches.py` takes them: (image, target) to (image, target), drawn from torch's generator."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from stages.common.dense.batches import Item
from stages.common.dense.coco import Target
from stages.common.dense.semantic import IGNORED

TRIES = 10  # for a crop in which no class covers too much


def _wrapped(image_CHW: Tensor, target: Target) -> tuple[Tensor, Target]:
    """As torchvision's transforms know what is what."""
    size = (image_CHW.shape[-2], image_CHW.shape[-1])
    known = dict(target)
    if "boxes" in target:
        known["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
    for name in ("masks", "semantic"):
        if name in target:
            known[name] = tv_tensors.Mask(target[name])
    return tv_tensors.Image(image_CHW), known


def _plain(image_CHW: Tensor, target: Target) -> Item:
    return image_CHW.as_subclass(Tensor), {name: value.as_subclass(Tensor) for name, value in target.items()}


class DetectionAugmentation:
    """Flip and resize; half the time crop in between, as DETR, Swin and ELSA do on COCO (card, "Training recipes").

    Args:
        sizes: short sides, one is drawn. longest: bound of the long side.
        crop_sizes: short sides before a crop. crop: sides of the crop, from .. to.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        longest: int,
        crop_sizes: Sequence[int] = (400, 500, 600),
        crop: tuple[int, int] = (384, 600),
    ) -> None:
        self.flip, self.clean = v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes()
        self.resize = v2.RandomShortestSize(list(sizes), longest)
        self.enlarge, self.crop = v2.RandomShortestSize(list(crop_sizes)), crop

    def __call__(self, image_CHW: Tensor, target: Target) -> Item:
        """Augment one image; objects that a crop leaves nothing of go away."""
        image_CHW, target = self.flip(*_wrapped(image_CHW, target))
        if torch.rand(()) < 0.5:
            image_CHW, target = self.enlarge(image_CHW, target)
            low, high = self.crop
            height, width = (
                int(torch.randint(min(side, low), min(side, high) + 1, ())) for side in image_CHW.shape[-2:]
            )
            image_CHW, target = v2.RandomCrop((height, width))(image_CHW, target)
        return _plain(*self.clean(*self.resize(image_CHW, target)))


class SegmentationAugmentation:
    """Resize, crop, flip, change colours, as UPerNet, Swin and ELSA do on ADE20K (card, "Training recipes").

    Args:
        short, longest: sides that an image is fitted into, times a ratio drawn from `ratios`.
        crop: side of the square crop; what an image lacks is filled with the mean colour and `IGNORED`.
        most: share of the crop that one class may cover; the crop is drawn again otherwise.
    """

    def __init__(
        self,
        crop: int,
        short: int = 512,
        longest: int = 2048,
        ratios: tuple[float, float] = (0.5, 2.0),
        most: float = 0.75,
    ) -> None:
        self.short, self.longest, self.ratios, self.most = short, longest, ratios, most
        filled = {tv_tensors.Image: 0.5, tv_tensors.Mask: IGNORED}
        self.crop = v2.RandomCrop(crop, pad_if_needed=True, fill=filled)
        self.finish = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomPhotometricDistort()])

    def __call__(self, image_CHW: Tensor, target: Target) -> Item:
        """Augment one image."""
        image_CHW, target = _wrapped(image_CHW, target)
        ratio = float(torch.empty(()).uniform_(*self.ratios))
        scale = ratio * min(self.short / min(image_CHW.shape[-2:]), self.longest / max(image_CHW.shape[-2:]))
        size = [max(1, round(side * scale)) for side in image_CHW.shape[-2:]]
        image_CHW, target = v2.Resize(size)(image_CHW, target)
        for _ in range(TRIES):
            cropped = self.crop(image_CHW, target)
            counts = cropped[1]["semantic"].flatten().bincount(minlength=IGNORED + 1)[:IGNORED]
            if counts.max() < self.most * counts.sum():
                break
        return _plain(*self.finish(*cropped))
