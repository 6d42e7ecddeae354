"""Which frames of a file make a clip. All return int64 numbers of frames, which may repeat."""

import numpy as np
import torch
from torch import Generator


def timestamp_frame_indices(frames: int, fps: float, start: float, end: float, count: int) -> np.ndarray:
    """`count` frames spread over the stretch `start` .. `end` (s) of a file of `frames` at `fps`.

    The stretch is cut to the file; one that is shorter than `count` frames repeats some (HiCo card, "Clip geometry").
    """
    first, stop = max(int(start * fps), 0), min(int(end * fps), frames)
    first = min(first, max(stop - 1, 0))  # a stretch beyond the end: the last frame
    return np.clip(_line(first, stop, count), first, max(stop - 1, first)).astype(np.int64)


def interval_frame_indices(
    frames: int, fps: float, view: int, views: int, count: int, rate: int, target_fps: float
) -> np.ndarray:
    """The view number `view` of `views`: `count` frames, `rate` apart on a clock of `target_fps`.

    Starts are `view / views` of the largest possible one, so that the tail is never reached, as in the official test; a
    single view is the middle one.
    """
    length = count * rate * fps / target_fps
    largest = max(frames - length, 0.0)
    start = largest / 2 if views == 1 else largest * view / views
    return np.clip(_line(start, start + max(length - 1, 0), count), 0, frames - 1).astype(np.int64)


def segment_frame_indices(frames: int, count: int, generator: Generator | None = None) -> np.ndarray:
    """One frame of each of `count` equal parts: a random one with a generator, otherwise the middle one."""
    edges = frames * np.arange(count + 1) / count
    first = np.floor(edges[:-1]).astype(np.int64)
    last = np.maximum(np.floor(edges[1:]).astype(np.int64) - 1, first)
    if generator is None:
        return (first + last) // 2
    drawn = torch.rand(count, generator=generator, dtype=torch.float64).numpy()
    return first + np.floor(drawn * (last - first + 1)).astype(np.int64)


def _line(first: float, last: float, count: int) -> np.ndarray:
    """Evenly spread, in float32 as torch has it: what is truncated to a whole number must be the official one."""
    return torch.linspace(first, last, count).numpy()
