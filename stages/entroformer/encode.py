"""Encode a picture: `python -m stages.entroformer.encode image.png out.enc --model codec.safetensors`.

Any format that Pillow reads, any size, grey, RGB or with alpha (`stages.entroformer.images`). The file is described in
`stages.entroformer.file_format`.
"""

import argparse
from pathlib import Path

from stages.common.stage.files import write_atomic
from stages.common.stage.run import run
from stages.entroformer.cells import load_model
from stages.entroformer.file_format import FileCodec
from stages.entroformer.images import read_picture


def main() -> None:
    """Write the file, say how large it is."""
    parser = argparse.ArgumentParser(prog="encode", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--model", type=Path, required=True, help="a codec that entroformer-train has written"
    )
    options = parser.parse_args()
    codec = FileCodec(load_model(options.model))
    picture = read_picture(options.image)
    content = codec.encode(picture).content
    write_atomic(options.out, content)
    height, width = picture.rgb.shape[:2]
    print(f"{options.out}: {len(content)} bytes, {8 * len(content) / (height * width):.4f} bits per pixel")


if __name__ == "__main__":
    run(main)
