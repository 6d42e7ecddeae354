"""Which frames of a clip are taken: one of each of k segments (lib/datasets/base.py and lib/model/DTN.py)."""

from typing import Literal

import torch
from torch import Generator, Tensor

Pick = Literal["random", "middle", "mean"]


def segment_ranges(frames: int, count: int) -> Tensor:
    """Half-open ranges `[count, 2]`; a segment is never empty, so that short clips repeat frames."""
    bounds = [
        (frames * i // count, max(frames * i // count + 1, frames * (i + 1) // count)) for i in range(count)
    ]
    return torch.tensor(bounds)


def segment_indices(frames: int, count: int, pick: Pick, generator: Generator | None = None) -> Tensor:
    """One frame of each segment, `[count]`.

    Args:
        frames: length of the clip.
        count: how many frames to take.
        pick: `random` draws (training), `mean` is the released evaluation's `int(mean(range))` on a video,
            `middle` is element `len // 2`, which evaluation takes of tokens here (the released code draws there too).
        generator: of the draws; torch's own when None.
    """
    start_k, end_k = segment_ranges(frames, count).unbind(1)
    match pick:
        case "random":
            share_k = torch.rand(count, generator=generator)
            return start_k + (share_k * (end_k - start_k)).long()
        case "middle":
            return start_k + (end_k - start_k) // 2
        case "mean":
            return (start_k + end_k - 1) // 2
