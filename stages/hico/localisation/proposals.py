"""Proposals from what a boundary-matching network says of a video, and their suppression (BMN, section 3.5).

Letters: T places, D durations, P proposals (start, end, score), as shares of the video.
"""

import numpy as np
import torch
from torch import Tensor

PEAK = 0.5  # of the largest probability: that much is a boundary even where it is no local maximum
SIGMA = 0.4  # of soft suppression
OVERLAP_SHORT, OVERLAP_LONG = (
    0.5,
    0.9,
)  # temporal IoU that is not suppressed: of proposals of no length, of all the video


def proposals(start_T: Tensor, end_T: Tensor, quality_2DT: Tensor, count: int) -> Tensor:
    """The `count` best proposals of a video, `[count, 3]`, best first; what is missing has score 0.

    A proposal joins a likely start and a likely end, and scores the product of their probabilities with the geometric
    mean of its two qualities.
    """
    durations, places = quality_2DT.shape[1:]
    starts, ends = boundaries(start_T), boundaries(end_T)
    first_SE, last_SE = torch.meshgrid(starts, ends, indexing="ij")
    fits_SE = (last_SE >= first_SE) & (last_SE - first_SE < durations)
    first_P, last_P = first_SE[fits_SE], last_SE[fits_SE]
    quality_P = quality_2DT[:, last_P - first_P, first_P].prod(0).sqrt()
    score_P = start_T[first_P] * end_T[last_P] * quality_P
    found_P3 = torch.stack([first_P / places, (last_P + 1) / places, score_P], 1)
    return suppressed(found_P3, count)


def boundaries(probability_T: Tensor) -> Tensor:
    """Places where something starts (or ends): local maxima, and all above half the largest; ascending."""
    padded = torch.nn.functional.pad(probability_T, (1, 1), value=-1.0)
    peaks = (probability_T > padded[:-2]) & (probability_T > padded[2:])
    return torch.nonzero(peaks | (probability_T > PEAK * probability_T.max()))[:, 0]


def suppressed(found_P3: Tensor, count: int) -> Tensor:
    """Gaussian soft suppression: the best is kept, and what overlaps it much loses score, until `count` are kept."""
    start_P, end_P, score_P = (column.copy() for column in found_P3.double().numpy().T)
    kept = np.zeros((count, 3))
    for place in range(min(count, len(score_P))):
        best = int(score_P.argmax())
        start, end, score = start_P[best], end_P[best], score_P[best]
        kept[place] = start, end, score
        shared_P = (np.minimum(end_P, end) - np.maximum(start_P, start)).clip(0)
        iou_P = shared_P / (end_P - start_P + end - start - shared_P)
        allowed = OVERLAP_SHORT + (OVERLAP_LONG - OVERLAP_SHORT) * (end - start)
        score_P = np.where(iou_P > allowed, score_P * np.exp(-(iou_P**2) / SIGMA), score_P)
        score_P[best] = -1.0  # taken
    return torch.from_numpy(kept).float()
