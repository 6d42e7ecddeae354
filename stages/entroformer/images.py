"""Pictures as the codec takes them: any size, and what grey, alpha and other modes mean.

RGB is coded as it is. Grey (`1`, `L`) is coded as three equal channels and comes back grey. An alpha channel
(`RGBA`, `LA`, or a palette with transparency) is kept without loss beside the colours. Other modes of 8 bits become
RGB; more than 8 bits are refused.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from stages.common.stage.errors import InputError

MAX_SIDE = 65535  # sizes in a file have 16 bits
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Picture:
    """A picture of 8 bits: `rgb` `[H, W, 3]`, whether it was grey, and its alpha channel `[H, W]` or None."""

    rgb: np.ndarray
    grey: bool = False
    alpha: np.ndarray | None = None

    def to_image(self) -> Image.Image:
        """As Pillow has it, in the mode that it came with (grey, RGB, or either with alpha)."""
        image = Image.fromarray(self.rgb)
        if self.grey:
            image = image.convert("L")
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        return image


def read_picture(path: Path) -> Picture:
    """Read a picture of any format that Pillow knows.

    Raises:
        InputError: the file is missing, is not a picture, is damaged, or has more than 8 bits per channel.
    """
    try:
        with Image.open(path) as image:
            image.load()
            mode = image.mode
            if mode in DEEP_MODES:
                raise InputError(f"{path}: has {mode} pixels; pictures of 8 bits per channel can be coded")
            if max(image.size) > MAX_SIDE:
                raise InputError(
                    f"{path}: {image.width}x{image.height} pixels; at most {MAX_SIDE} a side can be coded"
                )
            alpha = np.asarray(image.convert("RGBA"))[:, :, 3] if image.has_transparency_data else None
            return Picture(np.array(image.convert("RGB")), mode in ("1", "L", "LA"), alpha)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path}: not a picture that can be read ({' '.join(str(error).split())[:120]})"
        ) from None


def to_tensor(rgb_HW3: np.ndarray) -> Tensor:
    """uint8 `[H, W, 3]` to float32 `[1, 3, H, W]` in [0, 1]."""
    return torch.from_numpy(rgb_HW3).permute(2, 0, 1)[None].float() / 255


def to_array(x_13HW: Tensor) -> np.ndarray:
    """Float `[1, 3, H, W]` to uint8 `[H, W, 3]`, clamped and rounded."""
    return (x_13HW[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def pad(x: Tensor, multiple: int) -> Tensor:
    """Repeat the border until height and width are multiples, the picture in the middle."""
    top, left, bottom, right = _margins(x.shape[2], x.shape[3], multiple)
    return F.pad(x, (left, right, top, bottom), mode="replicate")


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """The picture in the middle of what `pad` made of it."""
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width]


def _margins(height: int, width: int, multiple: int) -> tuple[int, int, int, int]:
    rest_h, rest_w = -height % multiple, -width % multiple
    return rest_h // 2, rest_w // 2, rest_h - rest_h // 2, rest_w - rest_w // 2
