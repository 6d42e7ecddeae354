"""Decode a picture: `python -m stages.entroformer.decode out.enc image.png --model codec.safetensors`.

The format of the picture is that of its name's ending; use one without loss, such as .png.
"""

import argparse
import io
from pathlib import Path

from PIL import Image

from stages.common.stage.errors import ParameterError
from stages.common.stage.files import write_atomic
from stages.common.stage.run import run
from stages.entroformer.cells import load_model
from stages.entroformer.file_format import FileCodec, read_file


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(prog="decode", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="the codec that the file was encoded with")
    options = parser.parse_args()
    kind = Image.registered_extensions().get(options.image.suffix.lower())
    if kind is None:
        raise ParameterError(f"{options.image}: no picture format has this ending; use .png")
    codec = FileCodec(load_model(options.model))
    image = codec.decode(read_file(options.file), str(options.file)).to_image()
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind)
    except (OSError, KeyError, ValueError) as error:
        raise ParameterError(
            f"{options.image}: {kind} cannot hold a {image.mode} picture ({error}); use .png"
        ) from None
    write_atomic(options.image, buffer.getvalue())


if __name__ == "__main__":
    run(main)
