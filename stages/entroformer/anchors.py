"""Codecs that everybody has, through Pillow: what a learned codec is compared with."""

import io
from typing import Any

import numpy as np
from PIL import Image

# name -> Pillow's format and how a quality of 1 .. 100 is asked for
ANCHORS: dict[str, str] = {"jpeg": "JPEG", "jpeg2000": "JPEG2000", "webp": "WEBP", "avif": "AVIF"}


def anchor(name: str, rgb_HW3: np.ndarray, quality: int) -> tuple[int, np.ndarray]:
    """Bytes of the file and the picture that comes out of it."""
    options: dict[str, Any] = {"quality": quality}
    if name == "jpeg2000":  # has no quality: a compression ratio from 200 (quality 1) to 2 (quality 100)
        ratio = 200 ** (1 - quality / 100) * 2 ** (quality / 100)
        options = {"quality_mode": "rates", "quality_layers": [ratio], "irreversible": True}
    buffer = io.BytesIO()
    Image.fromarray(rgb_HW3).save(buffer, ANCHORS[name], **options)
    return buffer.tell(), np.asarray(Image.open(buffer).convert("RGB"))
