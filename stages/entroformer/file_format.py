"""The file that `encode` writes, version 2. All numbers are little-endian.

| bytes | what |
|---|---|
| 4 | `ENTF` |
| 1 | version: 2 |
| 1 | kind: bit 0 grey, bit 1 an alpha channel follows |
| 2, 2 | height and width of the picture, in pixels |
| 6 | model id: digest of specification, weights and integer tables (`ImageCodec.model_id`) |
| 4 | CRC-32 of the latents as int8, z before y, each in channel, row, column order |
| 4 | CRC-32 of the whole file but these four bytes |
| 4, n | only with alpha: n, and the alpha channel deflated |
| rest | range coder: z in channel, row, column order, then y |

y goes position by position, all channels of a position together: in raster order, or (two-pass models) first the
positions whose row + column is odd, then the others. What is coded together (z; a position; a half or all of them) is
coded in the order of its tables (`range_coder`). Version 1 was coded in float64 by position.

A file is refused with one line when it is no such file, of another version, damaged, cut short, or of another
model; and when the latents that come out are not those that went in, which a machine with other arithmetic could cause.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.common.stage.errors import InputError
from stages.entroformer.images import Picture, crop, pad, to_array, to_tensor
from stages.entroformer.method.codec import ImageCodec, LatentCoder, one_thread

MAGIC, VERSION = b"ENTF", 2
HEADER = struct.Struct("<4sBBHH6sII")
GREY, ALPHA = 1, 2
CHECKED_UP_TO = HEADER.size - 4  # where the file's own CRC stands, last in the header


@dataclass(frozen=True)
class Encoded:
    """What encoding gives: the file's bytes, and the picture that decoding it will give."""

    content: bytes
    picture: Picture


class FileCodec:
    """Pictures to files and back with one model."""

    def __init__(self, codec: ImageCodec) -> None:
        self.codec, self.coder, self.id = codec.cpu().eval(), LatentCoder(codec.entropy), codec.model_id()

    def encode(self, picture: Picture) -> Encoded:
        """The file of a picture."""
        height, width = picture.rgb.shape[:2]
        with one_thread():
            y, z = self.codec.latents(pad(to_tensor(picture.rgb), self.codec.spec.multiple))
        alpha = b""
        if picture.alpha is not None:
            deflated = zlib.compress(picture.alpha.tobytes(), 9)
            alpha = struct.pack("<I", len(deflated)) + deflated
        kind = (GREY if picture.grey else 0) | (ALPHA if alpha else 0)
        head = HEADER.pack(MAGIC, VERSION, kind, height, width, self.id, latents_crc(y, z), 0)[:CHECKED_UP_TO]
        body = alpha + self.coder.encode(y, z)
        content = head + struct.pack("<I", zlib.crc32(head + body)) + body
        return Encoded(content, Picture(self._synthesise(y, height, width), picture.grey, picture.alpha))

    def decode(self, content: bytes, name: str = "file") -> Picture:
        """The picture of a file; `name` is what errors call it.

        Raises:
            InputError: one line; see the top of this module.
        """
        kind, height, width, crc = check(content, self.id, name)
        body, alpha = content[HEADER.size :], None
        try:
            if kind & ALPHA:
                (length,) = struct.unpack_from("<I", body)
                plane = zlib.decompress(body[4 : 4 + length])
                alpha = np.frombuffer(plane, dtype=np.uint8).reshape(height, width)
                body = body[4 + length :]
            spec = self.codec.spec
            h, w = ((side + -side % spec.multiple) // spec.stride for side in (height, width))
            y, z = self.coder.decode(body, h, w)
        except (ValueError, AssertionError, struct.error, zlib.error) as error:
            # its CRC is right, so it was written like this
            raise InputError(
                f"{name}: holds no picture of this model ({' '.join(str(error).split())[:80]})"
            ) from None
        if latents_crc(y, z) != crc:
            raise InputError(
                f"{name}: other latents come out than went in; decode it on a machine like the one that encoded it"
            )
        return Picture(self._synthesise(y, height, width), bool(kind & GREY), alpha)

    def _synthesise(self, y: Tensor, height: int, width: int) -> np.ndarray:
        with torch.no_grad(), one_thread():
            return to_array(crop(self.codec.synthesis(y.float()), height, width))


def check(content: bytes, model_id: bytes, name: str) -> tuple[int, int, int, int]:
    """Kind, height, width and CRC of the latents, once everything in front of the decoder has been checked."""
    if content[: len(MAGIC)] != MAGIC:
        raise InputError(f"{name}: not an Entroformer file (it does not start with {MAGIC.decode()})")
    if len(content) < HEADER.size:
        raise InputError(f"{name}: cut short ({len(content)} bytes; the header alone has {HEADER.size})")
    _, version, kind, height, width, its_model, latents, crc = HEADER.unpack_from(content)
    if version != VERSION:
        raise InputError(f"{name}: has version {version} of the format; this program reads version {VERSION}")
    if zlib.crc32(content[:CHECKED_UP_TO] + content[HEADER.size :]) != crc:
        raise InputError(f"{name}: damaged or cut short (its checksum is not that of its bytes)")
    if its_model != model_id:
        raise InputError(
            f"{name}: was written with model {its_model.hex()}, the model given is {model_id.hex()}"
        )
    return kind, height, width, latents


def latents_crc(y: Tensor, z: Tensor | None) -> int:
    """CRC-32 of integer latents."""
    parts = [t.to(torch.int8).cpu().contiguous().numpy().tobytes() for t in (z, y) if t is not None]
    return zlib.crc32(b"".join(parts))


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
