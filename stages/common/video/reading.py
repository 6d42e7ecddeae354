"""Reading video files with PyAV: an index of a file's frames, and frames by their number."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from stages.common.stage.errors import InputError
from stages.common.stage.files import write_atomic

CHANNELS = {"rgb": 3, "gray": 1}
RGB_FORMATS = (
    "gbrp",
    "rgb24",
)  # of eight bits: what lossless files hold needs no conversion, half of the reading time
# a file is called truncated when it lacks more than this share of the frames that it promises: headers are often off by one
LACKING_SHARE, LACKING_FRAMES = 0.05, 2
FPS_TOLERANCE = 0.01  # 29.97 is not 30, 23.976 is 23.98


class VideoError(InputError):
    """A video file that cannot be used; one line with its path and what is wrong with it."""


@dataclass(frozen=True)
class VideoIndex:
    """What a file holds.

    `pts_F` are presentation times in ticks, in the order of display; `key_K` the numbers of the key frames and `seek_K` the
    times in ticks by which containers find them (of decoding, which comes before presentation where frames are reordered).
    """

    path: Path
    fps: float
    height: int
    width: int
    pts_F: np.ndarray
    key_K: np.ndarray
    seek_K: np.ndarray

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return len(self.pts_F)

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.fps


INDEX_COLUMNS = tuple(field.name for field in fields(VideoIndex))


def index_video(path: Path, expect_fps: float | None = None) -> VideoIndex:
    """Read the packets of a file, but decode none.

    Raises:
        VideoError: no such file, no video in it, truncated, without frames, or of another frame rate than `expect_fps`.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        try:
            # an empty packet repeats the frame before it; a discarded one is cut off by the container's edit list
            packets = [
                (
                    packet.pts if packet.pts is not None else packet.dts,
                    packet.dts if packet.dts is not None else packet.pts,
                    packet.is_keyframe,
                )
                for packet in container.demux(stream)
                if packet.size and not packet.is_discard
            ]
        except av.FFmpegError as error:
            raise VideoError(f"{path}: damaged ({_reason(error)})") from None
        fps = float(stream.average_rate or 0)
        promised = stream.frames or round(float(container.duration or 0) / av.time_base * fps)
        height, width = stream.codec_context.height, stream.codec_context.width
    if not packets or fps <= 0:
        raise VideoError(f"{path}: has no frames")
    lacking = promised - len(packets)
    if lacking > max(LACKING_FRAMES, LACKING_SHARE * promised):
        raise VideoError(f"{path}: truncated ({len(packets)} of {promised} frames)")
    if expect_fps is not None and abs(fps - expect_fps) > FPS_TOLERANCE:
        raise VideoError(f"{path}: has {fps:g} frames a second, {expect_fps:g} are expected")
    packets.sort()  # from the order of decoding to that of display
    pts_F = np.array([pts for pts, _, _ in packets], dtype=np.int64)
    key_K = np.flatnonzero([key for _, _, key in packets])
    seek_K = np.array([dts for _, dts, key in packets if key], dtype=np.int64)
    return VideoIndex(path, fps, height, width, pts_F, key_K, seek_K)


class VideoReader:
    """Frames of one file by number, as uint8 tensors.

    Args:
        source: a file, or its index where that is known already.
        size: None keeps the file's size; a number is the short side; or (height, width).
        colour: "rgb" (three channels), or "gray" for depth and grey video: one, as files hold it three times.

    Raises:
        VideoError: as `index_video` says; `read`, when a frame cannot be decoded.
    """

    def __init__(
        self,
        source: VideoIndex | Path,
        size: int | tuple[int, int] | None = None,
        colour: Literal["rgb", "gray"] = "rgb",
    ) -> None:
        self.index = source if isinstance(source, VideoIndex) else index_video(source)
        self.height, self.width = _scaled(self.index.height, self.index.width, size)
        self._channels = CHANNELS[colour]
        self._reformatter = VideoReformatter()  # keeps its tables from frame to frame
        self._container = _opened(self.index.path)
        self._stream: VideoStream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1  # loaders run several readers side by side
        self._decoded: Iterator[VideoFrame] | None = None
        self._next = 0  # number of the frame that the decoder gives next

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def read(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """The frames with these numbers, in this order: `[T, C, H, W]`."""
        numbers = [int(number) for number in indices]
        known: dict[int, np.ndarray] = {}
        for number in sorted(set(numbers)):
            if not 0 <= number < self.index.frames:
                raise IndexError(f"{self.index.path}: has no frame {number}; there are {self.index.frames}")
            frame = self._frame(number)
            if frame.format.name not in RGB_FORMATS or (frame.height, frame.width) != (
                self.height,
                self.width,
            ):
                frame = self._reformatter.reformat(
                    frame, self.width, self.height, "rgb24", interpolation="AREA"
                )
            known[number] = frame.to_ndarray()
        frames = torch.from_numpy(np.stack([known[number] for number in numbers]))
        return frames.permute(0, 3, 1, 2)[:, : self._channels]

    def _frame(self, number: int) -> VideoFrame:
        """Decode the frame with this number; from the key frame before it, unless the decoder is nearer."""
        before = max(int(np.searchsorted(self.index.key_K, number, "right")) - 1, 0)
        try:
            if self._decoded is None or number < self._next or self.index.key_K[before] > self._next:
                self._container.seek(int(self.index.seek_K[before]), stream=self._stream)
                self._decoded = self._container.decode(self._stream)
            for frame in self._decoded:
                time = frame.pts if frame.pts is not None else frame.dts
                place = int(np.searchsorted(self.index.pts_F, time if time is not None else -1))
                self._next = place + 1
                if place == number and not frame.is_corrupt:
                    return frame
                if place >= number:
                    break
            reason = "cannot be decoded"
        except av.FFmpegError as error:
            reason = _reason(error)
        self._decoded = None
        raise VideoError(f"{self.index.path}: damaged at frame {number} ({reason})")


def save_indexes(path: Path, indexes: Sequence[VideoIndex]) -> None:
    """Keep the indexes of many files in one Parquet file, so that training opens each file once."""
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, list[Any]] = {
        name: [getattr(index, name) for index in indexes] for name in INDEX_COLUMNS
    }
    columns["path"] = [str(index.path) for index in indexes]
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    write_atomic(path, buffer.getvalue().to_pybytes())


def load_indexes(path: Path) -> list[VideoIndex]:
    """What `save_indexes` kept, in its order."""
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(path, columns=list(INDEX_COLUMNS)).to_pylist()
    lists = [name for name in INDEX_COLUMNS if name[-2:] in ("_F", "_K")]
    return [
        VideoIndex(
            **{**row, "path": Path(row["path"]), **{n: np.array(row[n], dtype=np.int64) for n in lists}}
        )
        for row in rows
    ]


def _opened(path: Path) -> InputContainer:
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        known = "no such file" if isinstance(error, FileNotFoundError) else _reason(error)
        raise VideoError(f"{path}: not a video, or truncated ({known})") from None
    if not container.streams.video:
        container.close()
        raise VideoError(f"{path}: has no video in it")
    return container


def _scaled(height: int, width: int, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Height and width to decode at."""
    if size is None:
        return height, width
    if isinstance(size, tuple):
        return size
    scale = size / min(height, width)
    return round(height * scale), round(width * scale)


def _reason(error: Exception) -> str:
    """FFmpeg's words, in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
