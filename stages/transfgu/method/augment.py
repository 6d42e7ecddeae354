"""Training crops of an image, its labels and its pseudo maps, taken together (card, "Training with restarts")."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.ops import roi_align

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
CROP_SCALES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def normalise(images_BCHW: Tensor) -> Tensor:
    """0..255 -> ImageNet's mean 0 and deviation 1, float32."""
    mean, std = (torch.tensor(value, device=images_BCHW.device)[:, None, None] for value in (MEAN, STD))
    return (images_BCHW.float() / 255 - mean) / std


@dataclass(frozen=True)
class Crops:
    """Drawn boxes in pixels and mirrorings, `[B]` each."""

    top_B: Tensor
    left_B: Tensor
    height_B: Tensor
    width_B: Tensor
    flip_B: Tensor


def draw_crops(batch: int, height: int, width: int, generator: Generator) -> Crops:
    """Boxes of the image's shape, their scale one of `CROP_SCALES`, at random places; half of them mirrored."""
    scale_B = torch.tensor(CROP_SCALES)[torch.randint(len(CROP_SCALES), (batch,), generator=generator)]
    height_B, width_B = (scale_B * height).int(), (scale_B * width).int()
    place_2B = torch.rand(2, batch, generator=generator)
    top_B = (place_2B[0] * (height - height_B + 1)).int()
    left_B = (place_2B[1] * (width - width_B + 1)).int()
    return Crops(top_B, left_B, height_B, width_B, torch.rand(batch, generator=generator) < 0.5)


@dataclass(frozen=True)
class PseudoLabelAugment:
    """Half-size crops of images, labels and pseudo maps of patch size `patch`."""

    patch: int

    def __call__(self, images_BCHW: Tensor, maps_BKhw: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Images 0..255 with their maps -> normalised crops `[B, 3, H/2, W/2]` and their maps."""
        batch, _, height, width = images_BCHW.shape
        crops = draw_crops(batch, height, width, generator)
        return self.images(photometric(images_BCHW, generator), crops), self.maps(
            maps_BKhw, crops, images_BCHW.shape
        )

    def images(self, images_BCHW: Tensor, crops: Crops) -> Tensor:
        """Normalised crops `[B, 3, H/2, W/2]`, bilinear."""
        size = images_BCHW.shape[-2] // 2, images_BCHW.shape[-1] // 2
        normal_BCHW = normalise(images_BCHW)
        parts = [
            F.interpolate(normal_BCHW[i : i + 1, :, y : y + h, x : x + w], size, mode="bilinear")
            for i, (y, x, h, w) in enumerate(_boxes(crops))
        ]
        return _flip(torch.cat(parts), crops)

    def labels(self, labels_BHW: Tensor, crops: Crops) -> Tensor:
        """Label crops `[B, H/2, W/2]`, nearest."""
        size = labels_BHW.shape[-2] // 2, labels_BHW.shape[-1] // 2
        parts = [
            F.interpolate(labels_BHW[i : i + 1, None, y : y + h, x : x + w].float(), size, mode="nearest")[
                :, 0
            ]
            for i, (y, x, h, w) in enumerate(_boxes(crops))
        ]
        return _flip(torch.cat(parts), crops).to(labels_BHW.dtype)

    def maps(self, maps_BKhw: Tensor, crops: Crops, image_shape: torch.Size) -> Tensor:
        """Pseudo maps on the crops' patch grids `[B, K, H/2/patch, W/2/patch]`, RoI-Align."""
        height, width = image_shape[-2:]
        scale = maps_BKhw.shape[-2] / height
        boxes = torch.tensor(_boxes(crops), dtype=torch.float32)
        rois_B5 = torch.stack(
            [
                torch.arange(len(boxes), dtype=torch.float32),
                boxes[:, 1] * scale,
                boxes[:, 0] * scale,
                (boxes[:, 1] + boxes[:, 3]) * scale,
                (boxes[:, 0] + boxes[:, 2]) * scale,
            ],
            1,
        ).to(maps_BKhw.device)
        size = height // 2 // self.patch, width // 2 // self.patch
        return _flip(roi_align(maps_BKhw, rois_B5, size, aligned=True), crops)


def _boxes(crops: Crops) -> list[tuple[int, int, int, int]]:
    columns = (crops.top_B, crops.left_B, crops.height_B, crops.width_B)
    return [(int(y), int(x), int(h), int(w)) for y, x, h, w in zip(*columns, strict=True)]


def _flip(x: Tensor, crops: Crops) -> Tensor:
    flip_B = crops.flip_B.to(x.device).view(-1, *[1] * (x.ndim - 1))
    return torch.where(flip_B, x.flip(-1), x)


def photometric(images_BCHW: Tensor, generator: Generator) -> Tensor:
    """One draw for the whole batch: colour jitter (probability 0.3), grey (0.2), blur (0.2); 0..255 in and out."""
    from torchvision.transforms import functional as tv

    draw = torch.rand(8, generator=generator).tolist()
    x = images_BCHW.float() / 255
    if draw[0] < 0.3:
        x = tv.adjust_brightness(x, 0.2 + 1.6 * draw[1])
        x = tv.adjust_contrast(x, 0.2 + 1.6 * draw[2])
        x = tv.adjust_saturation(x, 0.2 + 1.6 * draw[3])
        x = tv.adjust_hue(x, -0.2 + 0.4 * draw[4])
    if draw[5] < 0.2:
        x = tv.rgb_to_grayscale(x, 3)
    if draw[6] < 0.2:
        x = tv.gaussian_blur(x, [3, 3], [1 + draw[7]] * 2)
    return x * 255
