"""Temporal localisation at small cost: a linear classifier on sliding windows, merged into segments (card, "Metrics").

It stands in for BMN on clip features, which the paper uses on ActivityNet-1.3.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from stages.hico.footage import Video
from stages.hico.method.detection import (
    Segment,
    average_recall,
    detection_map,
    merge_windows,
    recall_area,
)
from stages.hico.method.metrics import standardised

STEP = 0.5  # of a window's length
THRESHOLD = 0.5  # of a class's probability
MOST_WINDOWS = 200  # of a video; longer ones get a larger step


def sliding_windows(video: Video, seconds: float) -> list[Video]:
    """Windows of `seconds` over an untrimmed video."""
    step = max(STEP * seconds, (video.duration - seconds) / (MOST_WINDOWS - 1))
    count = max(int((video.duration - seconds) / step + 1e-6) + 1, 1)
    starts = [video.start + number * step for number in range(count)]
    return [Video(video.files, start, min(start + seconds, video.end)) for start in starts]


def window_labels(video: Video, seconds: float, background: int) -> list[int]:
    """The action in the middle of each window, or `background`."""
    labels = []
    for part in sliding_windows(video, seconds):
        middle = (part.start + part.end) / 2
        inside = [action for start, end, action in video.segments if start <= middle < end]
        labels.append(inside[0] if inside else background)
    return labels


def localise(
    train: Sequence[Video],
    test: Sequence[Video],
    train_NC: Tensor,
    test_NC: Tensor,
    classes: int,
    seconds: float,
) -> dict[str, float]:
    """mAP, AR@100 and AUC in percent, from the features of all windows of the training and test videos."""
    from sklearn.linear_model import LogisticRegression

    labels = [label for video in train for label in window_labels(video, seconds, classes)]
    fitted_NC, tested_NC = standardised(train_NC, test_NC)
    classifier = LogisticRegression(max_iter=1000).fit(fitted_NC.numpy(), labels)
    probability_NK = np.zeros((len(tested_NC), classes + 1))
    probability_NK[:, classifier.classes_] = classifier.predict_proba(tested_NC.numpy())
    found: list[Segment] = []
    truths: list[Segment] = []
    first = 0
    for number, video in enumerate(test):
        starts = np.array([window.start for window in sliding_windows(video, seconds)])
        rows_NK = probability_NK[first : first + len(starts)]
        first += len(starts)
        found += merge_windows(number, starts, seconds, rows_NK, THRESHOLD)
        truths += [Segment(number, start, end, action) for start, end, action in video.segments]
    return {
        **detection_map(found, truths),
        "AR@100": average_recall(found, truths, 100),
        "AUC": recall_area(found, truths),
    }
