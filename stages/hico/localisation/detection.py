"""Temporal localisation: segments from window scores, and how well they match the truth (card, "Metrics").

A segment is (video, start, end, class, score); times in seconds or frames, as long as all have the same unit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))  # of temporal IoU


class Segment(NamedTuple):
    """A detection, or a truth (whose score does not count)."""

    video: int
    start: float
    end: float
    label: int
    score: float = 1.0


def tiou(start: float, end: float, other_start: float, other_end: float) -> float:
    """Intersection over union of two stretches."""
    shared = max(min(end, other_end) - max(start, other_start), 0.0)
    union = (end - start) + (other_end - other_start) - shared
    return shared / union if union > 0 else 0.0


def _matches(detections: Sequence[Segment], truths: Sequence[Segment], threshold: float) -> np.ndarray:
    """Whether each detection, best score first, takes the best overlapping truth of its video that is still free."""
    taken: set[int] = set()
    by_video: dict[int, list[int]] = {}
    for number, truth in enumerate(truths):
        by_video.setdefault(truth.video, []).append(number)
    hits = []
    for found in detections:
        overlaps = [
            (tiou(found.start, found.end, truths[number].start, truths[number].end), -number)
            for number in by_video.get(found.video, [])
            if number not in taken
        ]
        best, number = max(overlaps, default=(0.0, 0))
        hits.append(best >= threshold)
        if hits[-1]:
            taken.add(-number)
    return np.array(hits, dtype=bool)


def average_precision(detections: Sequence[Segment], truths: Sequence[Segment], threshold: float) -> float:
    """All-point interpolated average precision of one class, 0 .. 1; a truth is matched once."""
    if not truths:
        raise ValueError("average precision needs a truth")
    ordered = sorted(detections, key=lambda segment: -segment.score)
    hits = _matches(ordered, truths, threshold)
    recall = np.cumsum(hits) / len(truths)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[
        ::-1
    ]  # the best precision at this recall or a higher one
    return float(np.sum(np.diff(np.concatenate([[0.0], recall])) * envelope)) if len(hits) else 0.0


def detection_map(detections: Sequence[Segment], truths: Sequence[Segment]) -> dict[str, float]:
    """mAP in percent at tIoU .5, .75, .95, and averaged over .5:.05:.95; the mean is over classes with a truth."""
    found_of, true_of = _by_label(detections), _by_label(truths)
    values = {
        threshold: float(
            np.mean([average_precision(found_of.get(n, []), true_of[n], threshold) for n in true_of])
        )
        for threshold in THRESHOLDS
    }
    named = {f"mAP@{threshold:g}": 100 * values[threshold] for threshold in (0.5, 0.75, 0.95)}
    return {**named, "mAP": 100 * float(np.mean(list(values.values())))}


def _by_label(segments: Sequence[Segment]) -> dict[int, list[Segment]]:
    """The segments of each class, in ascending order of classes."""
    groups: dict[int, list[Segment]] = {}
    for segment in sorted(segments, key=lambda segment: segment.label):
        groups.setdefault(segment.label, []).append(segment)
    return groups


def recall_curve(proposals: Sequence[Segment], truths: Sequence[Segment], count: int) -> np.ndarray:
    """AR@1 .. AR@`count` in percent: recall of the best proposals of each video, averaged over tIoU .5:.05:.95.

    The last value is AR@`count`, the mean the area under the curve (AUC).
    """
    kept: list[Segment] = []
    rank_N: list[int] = []
    seen: dict[int, int] = {}
    for segment in sorted(proposals, key=lambda segment: -segment.score):
        rank = seen.get(segment.video, 0)
        if rank < count:
            kept.append(segment)
            rank_N.append(rank)
            seen[segment.video] = rank + 1
    # a truth is taken in the order of scores: the first k of a video match the same truths whatever follows them
    hits_NK = np.array([_matches(kept, truths, threshold) for threshold in THRESHOLDS]).reshape(
        len(THRESHOLDS), len(kept)
    )
    found_K = np.bincount(np.array(rank_N, dtype=int), weights=hits_NK.mean(0), minlength=count)
    return 100 * np.cumsum(found_K) / len(truths)


def merge_windows(
    video: int, starts_N: np.ndarray, length: float, probability_NK: np.ndarray, threshold: float
) -> list[Segment]:
    """Segments from scores of sliding windows; the last column of `probability_NK` is background.

    Neighbouring windows whose probability of a class is at least `threshold` become one segment, scored by their mean.
    """
    segments = []
    step = float(starts_N[1] - starts_N[0]) if len(starts_N) > 1 else length
    margin = (length - step) / 2  # each window speaks for its middle
    for label in range(probability_NK.shape[1] - 1):
        above = np.concatenate([[False], probability_NK[:, label] >= threshold, [False]])
        edges = np.flatnonzero(np.diff(above.astype(int)))
        for first, stop in zip(edges[::2], edges[1::2], strict=True):
            score = float(probability_NK[first:stop, label].mean())
            segments.append(
                Segment(video, starts_N[first] + margin, starts_N[stop - 1] + margin + step, label, score)
            )
    return segments
