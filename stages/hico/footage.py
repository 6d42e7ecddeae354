"""Videos as `prepare` lists them, and clips read from them.

`data/hico/<scale>/<seed>/` holds `index.parquet` (every file's frames, `stages.common.video.reading`),
`listing.json` (what the files show, as `Footage`), `skipped.json` (one line for each file that was left out) and,
where they were generated, the files.
"""

import contextlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.common.video.reading import VideoError, VideoIndex, VideoReader, load_indexes, save_indexes
from stages.common.video.sampling import interval_frame_indices, timestamp_frame_indices
from stages.hico.method.clip_sampling import Window
from stages.hico.params import Clip

UNKNOWN = -1
DECODERS = 2  # threads: FFmpeg works outside Python's lock


@dataclass(frozen=True)
class Video:
    """A video, or a stretch of one.

    `files` are consecutive pieces, by number (one file, as a rule; five-second pieces for HACS and UK400). The
    video is what lies between `start` and `end` seconds of them. `segments` are (start, end, action) within it.
    """

    files: tuple[int, ...]
    start: float
    end: float
    action: int = UNKNOWN
    topic: int = UNKNOWN
    segments: tuple[tuple[float, float, int], ...] = ()

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.end - self.start


@dataclass(frozen=True)
class Footage:
    """Sets of videos by name: `untrimmed`, `trimmed`, and for each target `<target>/train` and `/test`.

    Where a target comes from untrimmed video, `<target>/untrimmed/train` and `/test` are those, with their segments.
    `classes` are the action names of each target.
    """

    sets: dict[str, list[Video]]
    classes: dict[str, list[str]]


def save_footage(
    folder: Path, indexes: Sequence[VideoIndex], footage: Footage, skipped: Sequence[str]
) -> None:
    """Write what `prepare` leaves; paths inside `folder` are kept relative to it."""
    relative = [
        replace(
            index, path=index.path.relative_to(folder) if index.path.is_relative_to(folder) else index.path
        )
        for index in indexes
    ]
    save_indexes(folder / "index.parquet", relative)
    (folder / "listing.json").write_text(json.dumps(asdict(footage)))
    (folder / "skipped.json").write_text(json.dumps(list(skipped), indent=1) + "\n")


class Library:
    """The files of one prepared folder, and clips of them.

    Args:
        folder: as `save_footage` left it.
        clip: geometry of clips.
        in_memory: whether files are decoded once and kept (when `decode` is told, or the first time one of them is
            wanted), or read each time.
    """

    def __init__(self, folder: Path, clip: Clip, in_memory: bool) -> None:
        self.clip, self.in_memory = clip, in_memory
        self.indexes = [
            replace(index, path=folder / index.path) for index in load_indexes(folder / "index.parquet")
        ]
        content = json.loads((folder / "listing.json").read_text())
        self.footage = Footage(
            {name: [_video(entry) for entry in entries] for name, entries in content["sets"].items()},
            content["classes"],
        )
        self._kept: dict[int, Tensor] = {}

    def decode(self, videos: Sequence[Video]) -> None:
        """Decode the files of these videos ahead, side by side; nothing where they are not kept in memory.

        A file that cannot be decoded is left for the one who wants it: only there it is known whether to skip it.
        """
        if not self.in_memory:
            return
        missing = {number for video in videos for number in video.files} - self._kept.keys()
        with ThreadPoolExecutor(DECODERS) as pool:
            list(pool.map(self._keep, sorted(missing)))

    def _keep(self, number: int) -> None:
        with contextlib.suppress(VideoError):
            self._kept[number] = self._decoded(number, np.arange(self.indexes[number].frames))

    def windows(self, video: Video, windows: Sequence[Window]) -> Tensor:
        """Clips between these seconds of a video, uint8 `[n, T, C, H, W]`.

        Raises:
            VideoError: a file cannot be decoded.
        """
        fps = self.indexes[video.files[0]].fps
        numbers = [
            timestamp_frame_indices(
                self._frames(video), fps, video.start + start, video.start + end, self.clip.frames
            )
            for start, end in windows
        ]
        return self._read(video, np.stack(numbers))

    def views(self, video: Video, count: int) -> Tensor:
        """`count` clips spread over a video, uint8 `[count, T, C, H, W]`."""
        fps = self.indexes[video.files[0]].fps
        first = min(round(video.start * fps), self._frames(video) - 1)
        frames = max(min(round(video.end * fps), self._frames(video)) - first, 1)
        clip = self.clip
        numbers = [
            first + interval_frame_indices(frames, fps, view, count, clip.frames, clip.rate, clip.target_fps)
            for view in range(count)
        ]
        return self._read(video, np.stack(numbers))

    def _frames(self, video: Video) -> int:
        return sum(self.indexes[number].frames for number in video.files)

    def _read(self, video: Video, numbers_NT: np.ndarray) -> Tensor:
        """Frames by their number in the joined files; every file is opened once."""
        ends = list(accumulate(self.indexes[number].frames for number in video.files))
        wanted, inverse = np.unique(numbers_NT, return_inverse=True)
        pieces = np.array([bisect_right(ends, int(number)) for number in wanted])
        frames: list[Tensor] = []
        for piece in np.unique(pieces):
            offset = ends[piece] - self.indexes[video.files[piece]].frames
            frames.append(self._of_file(video.files[piece], wanted[pieces == piece] - offset))
        joined = torch.cat(frames)[torch.from_numpy(inverse.reshape(-1))]
        return joined.view(*numbers_NT.shape, *joined.shape[1:])

    def _of_file(self, number: int, frames: np.ndarray) -> Tensor:
        if not self.in_memory:
            return self._decoded(number, frames)
        if number not in self._kept:
            self._kept[number] = self._decoded(number, np.arange(self.indexes[number].frames))
        return self._kept[number][torch.from_numpy(frames)]

    def _decoded(self, number: int, frames: np.ndarray) -> Tensor:
        """Frames scaled to cover the common size and cut to it: videos of mixed sizes share a batch."""
        index, height, width = self.indexes[number], self.clip.height, self.clip.width
        scale = max(height / index.height, width / index.width)
        size = max(round(index.height * scale), height), max(round(index.width * scale), width)
        with VideoReader(index, size) as reader:
            frames_TCHW = reader.read(frames)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        return frames_TCHW[..., top : top + height, left : left + width]

    def batches(self, videos: Sequence[Video], views: int, batch: int) -> Iterator[tuple[Tensor, list[int]]]:
        """Views of all these videos, uint8 `[b * views, T, C, H, W]`, and the videos' places in the list."""
        for first in range(0, len(videos), batch):
            places = list(range(first, min(first + batch, len(videos))))
            yield torch.cat([self.views(videos[place], views) for place in places]), places


def _video(entry: dict[str, Any]) -> Video:
    files, segments = entry["files"], entry["segments"]
    return Video(**{**entry, "files": tuple(files), "segments": tuple(tuple(s) for s in segments)})
