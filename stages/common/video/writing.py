"""Writing small video files: lossless, and the same bytes for the same frames."""

import io
from fractions import Fraction

import av
from av.video.frame import VideoFrame
from torch import Tensor

KEY_EVERY = 16  # frames; a reader decodes half as many on average before the one that it wants


def encode_video(frames_TCHW: Tensor, fps: float, key_every: int = KEY_EVERY) -> bytes:
    """An MP4 file of uint8 frames of three channels (RGB) or one (grey), lossless H.264.

    One thread, for the same bytes everywhere; the fastest preset, whose simple entropy code decodes three times as fast at
    these sizes for a fifth more bytes. Grey is written as RGB: decoders hand out monochrome H.264 in a reduced range.
    """
    images = frames_TCHW.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    options = {"qp": "0", "preset": "ultrafast"}
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264rgb", Fraction(fps).limit_denominator(1001), options)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "rgb24"
        stream.gop_size = key_every
        stream.codec_context.thread_count = 1
        for image in images:
            container.mux(stream.encode(VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
