"""Pictures of clips for people: GIF and PNG strips."""

import io
from pathlib import Path

import numpy as np
from torch import Tensor

from stages.common.stage.files import write_atomic


def write_gif(frames_TCHW: Tensor, path: Path, fps: float, scale: int = 1) -> None:
    """An animated GIF of a uint8 clip, each pixel `scale` wide."""
    from PIL import Image

    images = [Image.fromarray(image) for image in _pixels(frames_TCHW, scale)]
    buffer = io.BytesIO()
    images[0].save(
        buffer, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0
    )
    write_atomic(path, buffer.getvalue())


def write_strip(clips: list[Tensor], path: Path, scale: int = 1) -> None:
    """A PNG with one clip a row, its frames side by side; clips are uint8 `[T, C, H, W]` of one size."""
    from PIL import Image

    rows = [np.concatenate(list(_pixels(frames_TCHW, scale)), axis=1) for frames_TCHW in clips]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows, axis=0)).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


def _pixels(frames_TCHW: Tensor, scale: int) -> np.ndarray:
    """`[T, H, W, 3]`; one channel is shown grey."""
    frames_T3HW = frames_TCHW.expand(-1, 3, -1, -1)
    enlarged = frames_T3HW.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return enlarged.permute(0, 2, 3, 1).cpu().numpy()
